"""Following answers that are on their way, and showing those that are there in the view that is chosen."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import gradio as gr

from adapters.ui.tab import Viewer
from adapters.ui.words import Language
from serving.comparison_store import SavedComparison
from serving.comparisons import BasePrompt
from serving.live_turn import LiveTurn
from serving.ui.compare.lanes import Updates
from serving.ui.compare.updates import PageUpdates
from serving.ui.compare.views import View, panels
from serving.ui.compare.words import say

HEARTBEAT = 5  # steps of a watch without news; Gradio notices a closed page only when something is sent

Stream = AsyncGenerator[Updates, None]


async def follow(page: PageUpdates, live: LiveTurn, viewer: Viewer, language: Language, first: Updates) -> Stream:
    """A turn, as answers, until it has ended and is kept. `first` is shown with the first of it."""
    widgets = page.widgets
    begun = {**page.as_answers(), **first, **page.busy(), **page.notice(), widgets.comparison: live.id}
    silent = 0
    async with aclosing(live.watch()) as steps:
        async for grown in steps:
            silent = 0 if grown else silent + 1
            if grown:
                yield {**begun, **page.drawn(live.saved(), grown, language, running=True)}
                begun = {}
            elif silent % HEARTBEAT == 0:
                yield page.nothing()
    if live.trouble:
        gr.Warning(say(language, "not_kept", why=live.trouble.message))
    saved = live.saved()
    ended = {**page.drawn(saved, live.slots, language, running=False), **page.kept(viewer, saved)}
    yield {**ended, **await page.recent(viewer, language)}
    # By itself: Gradio sends the last update twice, and by the second time something else may be on screen.
    yield page.idle()


async def in_view(
    page: PageUpdates, saved: SavedComparison, view: View, base_prompt: BasePrompt, key: str, language: Language
) -> Stream:
    """The last answers in a view."""
    choice = {page.widgets.toolbar.base_prompt: gr.Radio(visible=view == "tokens")}
    if view == "answers":
        yield {**page.as_answers(), **choice}
        return
    async with aclosing(panels(page.comparisons, saved, view, base_prompt, key, language)) as steps:
        async for html_by_slot in steps:
            yield {**page.as_panels(html_by_slot), **choice}
