"""What this is, with a picture: one performer, several faces put on in turn. HTML and SVG of our own."""

import base64
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from adapters.settings import BUNDLED
from adapters.ui.tab import link_to

PORTRAITS = BUNDLED / "portraits"
ON_STAGE = ("wukong", "daiyu", "niangniang", "halyard")  # whose faces the picture shows, after the base's own
WAYS = (("talk", "chat"), ("compare", "compare"), ("train", "train"))  # to begin, and the tab each leads to
TURN_S = 2.4  # how long a face stays on

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


def hero(words: Mapping[str, str]) -> str:
    """The first thing on the page, in the language of `words`: what, how, picture, and two for each of WAYS."""
    ways = "".join(
        f'<a href="{link_to(tab)}" id="home-{way}"><b>{words[way]}</b><span>{words[f"{way}_what"]}</span></a>'
        for way, tab in WAYS
    )
    return (
        f'<section class="hero"><div><h2>{words["what"]}</h2><p class="how">{words["how"]}</p><nav>{ways}</nav></div>'
        f"{_picture(words['picture'])}</section>"
    )


def _picture(alt: str) -> str:
    """Faces that replace each other, the base's first. Still where motion is not wanted."""
    sources = [_as_uri(_BASE.encode()), *(uri for name in ON_STAGE if (uri := shipped_portrait(name)))]
    images = "".join(
        f'<img src="{uri}" alt="" style="animation-delay: {number * TURN_S:.1f}s">'
        for number, uri in enumerate(sources)
    )
    return (
        f'<div class="stage" role="img" aria-label="{alt}" style="--turn: {len(sources) * TURN_S:.1f}s">'
        f'<div class="curtain"></div><div class="faces">{images}</div></div>'
    )


@lru_cache
def shipped_portrait(name: str) -> str | None:
    """As a data URI; None for a face that came without."""
    path = PORTRAITS / f"{Path(name).name}.svg"
    return _as_uri(path.read_bytes()) if path.is_file() else None


def _as_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
