"""The faces that are here, as cards. What an adapter says of itself is escaped."""

import html
from collections.abc import Sequence

from adapters.manifest import AdapterVersion
from adapters.ui.tab import link_to
from adapters.ui.words import Language
from serving.ui.home.words import HOME
from serving.ui.portraits import portrait_of

MAX_CARDS = 8


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
        f'<li class="card"><img class="portrait" src="{portrait_of(version)}" alt="">'
        f"<div><h3>{title}</h3><code>{name}</code><p>{greeting}</p>"
        f'<a class="button" href="{chat}" aria-label="{talk}: {title}">{talk}</a> '
        f'<a href="{side_by_side}" aria-label="{compare}: {title}">{compare}</a></div></li>'
    )
