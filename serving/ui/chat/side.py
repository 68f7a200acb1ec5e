"""The list of conversations, as links: each can be opened in a tab of its own."""

import time
from collections.abc import Sequence
from html import escape
from itertools import groupby

from adapters.ui.tab import Viewer, link_to
from adapters.ui.words import Language
from serving.conversation import Summary
from serving.history import MAX_LISTED
from serving.ui.chat.words import say


def conversation_list(
    found: Sequence[Summary], current: str, viewer: Viewer, language: Language, *, search: str = ""
) -> str:
    """`found` by day; `current` is the one on screen. What is somebody else's says whose it is."""
    if not found:
        nothing = say(language, "nothing_found", words=search.strip()[:40]) if search.strip() else ""
        return f'<p class="empty">{escape(nothing or say(language, "no_conversations"))}</p>'
    days = groupby(found, key=lambda each: _day(each.updated_at))
    groups = "".join(
        f"<h3>{say(language, day)}</h3><ul>{''.join(_line(each, current, viewer) for each in those)}</ul>"
        for day, those in days
    )
    more = f'<p class="empty">{say(language, "more", n=MAX_LISTED)}</p>' if len(found) == MAX_LISTED else ""
    return f'<nav aria-label="{say(language, "conversations")}">{groups}{more}</nav>'


def _line(summary: Summary, current: str, viewer: Viewer) -> str:
    here = ' aria-current="page"' if summary.id == current else ""
    whose = f"{summary.key} · " if summary.key != viewer.key else ""
    address = escape(link_to("chat", c=summary.id))
    return (
        f'<li><a href="{address}" data-do="open" data-id="{escape(summary.id)}"{here}>'
        f"<span>{escape(summary.title)}</span><small>{escape(whose + summary.model)}</small></a></li>"
    )


def _day(moment: float) -> str:
    """By the server's clock: today, yesterday or earlier_days, which are lines of the tab's words."""
    today = time.localtime()
    for name, ago_s in (("today", 0), ("yesterday", 86_400)):
        if time.localtime(moment)[:3] == time.localtime(time.mktime(today) - ago_s)[:3]:
            return name
    return "earlier_days"
