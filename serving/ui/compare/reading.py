"""Comparisons read again: opened by their link, seen otherwise, replayed, deleted."""

import asyncio
from contextlib import aclosing
from typing import Any

import gradio as gr

from adapters.errors import BianlianError
from adapters.ui.tab import Viewer, ViewerOf
from adapters.ui.words import Language, language_of
from serving.compare import MAX_LANES, Lane
from serving.comparison_store import SavedComparison, slots_of
from serving.comparisons import BasePrompt, ReplayStep
from serving.ui.compare import drawing
from serving.ui.compare.following import HEARTBEAT, Stream, follow, in_view
from serving.ui.compare.lanes import Updates, choosing, lanes_of
from serving.ui.compare.updates import PageUpdates
from serving.ui.compare.views import View
from serving.ui.compare.words import say


class Reading:
    def __init__(self, page: PageUpdates, viewer_of: ViewerOf):
        self.page = page
        self.comparisons = page.comparisons
        self.viewer_of = viewer_of
        self._replays: dict[str, asyncio.Event] = {}  # in progress, by browser session; set to stop

    async def open(self, request: gr.Request, *models: str) -> Stream:
        """The page with what is offered now, and as its address says: `comparison=ID`, or `models=a,b`; one
        model stands beside the base."""
        language, viewer = language_of(request), await self.viewer_of(request)
        wanted = request.query_params.get("comparison", "")
        chat = self.comparisons.chat
        named = [name for name in request.query_params.get("models", "").split(",") if name]
        if len(named) == 1:
            named = [chat.base.name, *named]
        offered = {
            lane.model: choosing(chat, model, language)
            for lane, model in zip(self.page.widgets.lanes, models, strict=True)
        }
        yield {**offered, **await self.page.recent(viewer, language)}
        if wanted:
            async with aclosing(self._open(wanted, viewer, language)) as updates:
                async for update in updates:
                    yield update
        elif named:
            yield self.page.lanes_set_up({slot: Lane(name) for slot, name in enumerate(named[:MAX_LANES])}, language)

    async def _open(self, wanted: str, viewer: Viewer, language: Language) -> Stream:
        try:
            saved = await self.comparisons.get(wanted)
        except BianlianError as error:
            yield self.page.notice(drawing.notice(error.message, "bad"))
            return
        lanes = lanes_of(saved.turns[-1].lanes)
        live = self.comparisons.live(wanted)
        ready = {
            **self.page.lanes_set_up(lanes, language),
            **self.page.drawn(saved, list(lanes), language, running=live is not None),
        }
        if live is None:
            yield {**ready, **self.page.kept(viewer, saved), self.page.widgets.comparison: saved.id}
            return
        async with aclosing(follow(self.page, live, viewer, language, ready)) as updates:
            async for update in updates:
                yield update

    async def change_view(self, request: gr.Request, comparison: str, view: View, base_prompt: BasePrompt) -> Stream:
        language, viewer = language_of(request), await self.viewer_of(request)
        # While answers are on their way, it changes when they are there.
        if self.comparisons.live(comparison) or (not comparison and view == "answers"):
            yield self.page.nothing()
            return
        if not comparison:
            yield self.page.notice(drawing.notice(say(language, "nothing_yet")))
            return
        try:
            saved = await self.comparisons.get(comparison)
        except BianlianError as error:
            yield {**self.page.as_answers(), **self.page.notice(drawing.notice(error.message, "bad"))}
            return
        async with aclosing(in_view(self.page, saved, view, base_prompt, viewer.key, language)) as updates:
            async for update in updates:
                yield update

    async def replay(self, request: gr.Request, comparison: str) -> Stream:
        """Run the comparison on screen again, and say whether every text is identical."""
        language, viewer = language_of(request), await self.viewer_of(request)
        stopped = self._replays[request.session_hash] = asyncio.Event()
        try:
            saved = await self.comparisons.get(comparison)
            yield {**self.page.busy(), **self.page.as_answers(), **self._answers_chosen()}
            async with aclosing(self._replay(saved, viewer, language, stopped)) as updates:
                async for update in updates:
                    yield update
        except BianlianError as error:
            yield {**self.page.idle(), **self.page.notice(drawing.notice(error.message, "bad"))}
        finally:
            self._replays.pop(request.session_hash, None)

    async def _replay(
        self, saved: SavedComparison, viewer: Viewer, language: Language, stopped: asyncio.Event
    ) -> Stream:
        step, turn, silent = None, -1, 0
        async with aclosing(self.comparisons.replay(saved.id, key=viewer.key)) as steps:
            async for step in steps:
                if stopped.is_set():
                    break
                again = saved.model_copy(update={"turns": (*saved.turns[: step.turn], step.now)})
                silent = 0 if step.grown else silent + 1
                if step.turn > turn:
                    turn = step.turn
                    drawn = self.page.drawn(again, slots_of(again.turns), language, running=True)
                    yield {**drawn, **self.page.notice(drawing.replay_notice(saved, step, language, ended=False))}
                elif step.grown:
                    yield self.page.drawn(again, step.grown, language, running=True)
                elif silent % HEARTBEAT == 0:
                    yield self.page.nothing()
        said = self.page.drawn(saved, slots_of(saved.turns), language, running=False)
        yield {**said, **self.page.notice(self._outcome(saved, step, language, stopped.is_set()))}
        yield self.page.idle()

    def _outcome(self, saved: SavedComparison, step: ReplayStep | None, language: Language, stopped: bool) -> str:
        if stopped or step is None:
            return drawing.notice(say(language, "replay_stopped"))
        return drawing.replay_notice(saved, step, language, ended=True)

    def stop_replay(self, request: gr.Request) -> None:
        if stopped := self._replays.get(request.session_hash):
            stopped.set()

    async def delete(self, request: gr.Request, comparison: str) -> Updates:
        language, viewer = language_of(request), await self.viewer_of(request)
        store = self.comparisons.store
        try:
            await store.database.call(store.delete, comparison, None if viewer.admin else viewer.key)
        except BianlianError as error:
            return self.page.notice(drawing.notice(error.message, "bad"))
        gone = self.page.notice(drawing.notice(say(language, "deleted_comparison")))
        return {**self.new(), **await self.page.recent(viewer, language), **gone}

    def new(self) -> dict[Any, Any]:
        """An empty page with the same lanes."""
        widgets = self.page.widgets
        return {
            **self.page.as_answers(),
            **self.page.emptied(),
            **self.page.notice(),
            widgets.comparison: "",
            **self._answers_chosen(),
            widgets.kept.row: gr.Row(visible=False),
        }

    def _answers_chosen(self) -> Updates:
        toolbar = self.page.widgets.toolbar
        return {toolbar.view: "answers", toolbar.base_prompt: gr.Radio(visible=False)}
