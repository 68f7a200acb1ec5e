"""The faces as cards, and the picture of one performer who puts them on in turn. All of it is HTML and SVG of our own;
what an adapter says of itself is escaped."""

import base64
import html
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from adapters.manifest import AdapterVersion
from adapters.settings import BUNDLED
from adapters.ui.tab import link_to
from adapters.ui.words import Language
from serving.ui.home.words import HOME

PORTRAITS = BUNDLED / "portraits"
ON_STAGE = ("wukong", "daiyu", "niangniang", "halyard")  # whose faces the picture shows, after the base's own
MAX_CARDS = 8

# The base before it puts on a face: a plain mask.
_BASE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256">
<circle cx="128" cy="128" r="126" fill="#475569"/><circle cx="128" cy="128" r="118" fill="#cbd5e1"/>
<path fill="#475569" d="M30 196C52 210 84 204 128 204S204 210 226 196C208 228 172 246 128 246S48 228 30 196Z"/>
<path fill="#f8fafc" stroke="#64748b" stroke-width="5"
 d="M70 96C70 44 186 44 186 96C190 150 164 206 128 206S66 150 70 96Z"/>
<path fill="none" stroke="#64748b" stroke-width="6" stroke-linecap="round"
 d="M88 104C98 96 108 96 116 103M140 103C148 96 158 96 168 104M108 168C120 176 136 176 148 168M128 116V144"/>
<ellipse cx="102" cy="122" rx="9" ry="6" fill="#64748b"/><ellipse cx="154" cy="122" rx="9" ry="6" fill="#64748b"/>
</svg>"""


def picture(alt: object) -> str:
    """The performer: faces that replace each other, the base first. Still where motion is not wanted."""
    sources = [_as_uri(_BASE.encode()), *(uri for name in ON_STAGE if (uri := _shipped_portrait(name)))]
    step_s = 2.4
    images = "".join(
        f'<img src="{uri}" alt="" style="animation-delay: {number * step_s:.1f}s">'
        for number, uri in enumerate(sources)
    )
    return (
        f'<div class="stage" role="img" aria-label="{alt}" style="--turn: {len(sources) * step_s:.1f}s">'
        f'<div class="curtain"></div><div class="faces">{images}</div></div>'
    )


def cards(versions: Sequence[AdapterVersion], base: str, language: Language) -> str:
    """One card a face, with links to talk to it and to compare it; what to do where there is none."""

    def say(key: str, **values: object) -> str:
        return html.escape(HOME.say(language, key, **values))

    if not versions:
        link = f'<a class="button" href="{link_to("train")}">{say("train_first")}</a>'
        return f'<h2>{say("faces")}</h2><p class="empty">{say("no_faces")} {link}</p>'
    shown = "".join(
        _card(version, base, say("plain"), say("talk_to"), say("with_base")) for version in versions[:MAX_CARDS]
    )
    rest = len(versions) - MAX_CARDS
    more = f'<p><a href="{link_to("adapters")}">{say("more", n=rest)}</a></p>' if rest > 0 else ""
    return f'<h2>{say("faces")}</h2><ul class="cards">{shown}</ul>{more}'


def _card(version: AdapterVersion, base: str, plain: str, talk: str, compare: str) -> str:
    card = version.manifest.card if version.manifest else None
    title = html.escape((card and card.title) or version.name)
    greeting = html.escape((card and card.greeting) or "") or plain
    name = html.escape(str(version))
    chat, side_by_side = (
        html.escape(link_to("chat", model=version.name)),
        html.escape(link_to("compare", models=f"{base},{version.name}")),
    )
    return (
        f'<li class="card">{_portrait(version)}<div><h3>{title}</h3><code>{name}</code><p>{greeting}</p>'
        f'<a class="button" href="{chat}" aria-label="{talk}: {title}">{talk}</a> '
        f'<a href="{side_by_side}" aria-label="{compare}: {title}">{compare}</a></div></li>'
    )


def _portrait(version: AdapterVersion) -> str:
    """Its picture; for who has none, a letter on a colour of its own."""
    if uri := _shipped_portrait(version.name):
        return f'<img class="portrait" src="{uri}" alt="">'
    hue = zlib.crc32(version.name.encode()) % 360
    letter = html.escape(version.name[:1].upper())
    return f'<span class="portrait" style="background: hsl({hue} 45% 32%)" aria-hidden="true">{letter}</span>'


@lru_cache
def _shipped_portrait(name: str) -> str | None:
    path = PORTRAITS / f"{Path(name).name}.svg"
    return _as_uri(path.read_bytes()) if path.is_file() else None


def _as_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
