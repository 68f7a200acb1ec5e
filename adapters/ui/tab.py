"""A tab of the page, and who is looking at it.

Tabs know nothing of each other. One sends its visitor to another by a link, which the other reads when it loads:
`?tab=chat&model=huanhuan` (`link_to`)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlencode

import gradio as gr

from adapters.ui.words import Words


@dataclass(frozen=True)
class Tab:
    """`build` lays the tab out inside the page, which it gets for `page.load`; `words` has its "title"; `css` is for
    what is in the tab alone."""

    id: str
    words: Words
    build: Callable[[gr.Blocks], None]
    css: str = ""


@dataclass(frozen=True)
class Viewer:
    """Who sent a request. `key` is the name of an API key; without keys it is "", and everyone is admin."""

    key: str
    admin: bool


ViewerOf = Callable[[gr.Request], Awaitable[Viewer]]


def link_to(tab: str, **values: str) -> str:
    """An address within the page that opens `tab` with these values."""
    return "?" + urlencode({"tab": tab, **values})
