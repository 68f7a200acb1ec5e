"""Clocks on the page that stand while nobody looks: gr.Timer itself stops while the page is hidden, and this one while
another tab is shown."""

from typing import Any

import gradio as gr
from gradio.context import get_render_context


def tab_here() -> gr.Tab:
    """The tab that is being laid out."""
    here = get_render_context()
    while here is not None and not isinstance(here, gr.Tab):
        here = here.parent
    assert here is not None, "this is built outside a tab"
    return here


def rest_while_elsewhere(tab: gr.Tab, timer: gr.Timer) -> None:
    """Stop `timer` when another tab is chosen; who starts it is the tab's business."""
    tabs = tab.parent
    assert isinstance(tabs, gr.Tabs)

    def rest(chosen: gr.SelectData) -> Any:
        here = isinstance(chosen.index, int) and tabs.children[chosen.index] is tab
        return gr.skip() if here else gr.Timer(active=False)

    tabs.select(rest, None, timer, queue=False, api_visibility="private", show_progress="hidden")
