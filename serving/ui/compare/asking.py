"""Questions: to the lanes on screen, or to lanes that a preset puts there."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from adapters.errors import BianlianError
from adapters.ui.tab import ViewerOf
from adapters.ui.words import Language, language_of
from serving.chat import ChatService
from serving.compare import Lane
from serving.ui.compare import presets
from serving.ui.compare.following import Stream, follow
from serving.ui.compare.lanes import Updates, lanes_from
from serving.ui.compare.updates import PageUpdates
from serving.ui.models import manifest_of
from serving.ui.sampling import Values, params_from
from serving.ui.texts import questions
from serving.ui.texts import say as common

MAX_SAMPLES = 6

Preset = Callable[[ChatService, Mapping[int, Lane], Language], dict[int, Lane]]


@dataclass(frozen=True)
class Chosen:
    """What is set on the page, from the values of `CompareWidgets.settings`."""

    comparison: str
    lanes: dict[int, Lane]
    seed: float | None
    sampling: Values

    @classmethod
    def read(cls, values: Sequence[Any]) -> "Chosen":
        comparison, slots, seed, temperature, top_p, top_k, max_tokens, *lanes = values
        sampling = (temperature, top_p, top_k, max_tokens)
        return cls(comparison or "", lanes_from(slots, lanes), seed, sampling)


class Asking:
    def __init__(self, page: PageUpdates, viewer_of: ViewerOf):
        self.page = page
        self.comparisons = page.comparisons
        self.chat = page.comparisons.chat
        self.viewer_of = viewer_of

    async def ask(self, request: gr.Request, question: str | list[str], *values: Any) -> Stream:
        """A question, or a sample, which arrives as a row of one."""
        text = question if isinstance(question, str) else question[0]
        if not text.strip():
            gr.Warning(common(language_of(request), "nothing"))
            yield self.page.nothing()
            return
        async with aclosing(self._ask(request, text, Chosen.read(values), {})) as updates:
            async for update in updates:
                yield update

    async def sweep(self, request: gr.Request, question: str, *values: Any) -> Stream:
        async with aclosing(self._ask_preset(request, question, values, presets.strength_sweep)) as updates:
            async for update in updates:
                yield update

    async def ablation(self, request: gr.Request, question: str, *values: Any) -> Stream:
        async with aclosing(self._ask_preset(request, question, values, presets.ablation)) as updates:
            async for update in updates:
                yield update

    async def stop(self, request: gr.Request, comparison: str) -> None:
        live, viewer = self.comparisons.live(comparison), await self.viewer_of(request)
        if live and (viewer.admin or live.before.key == viewer.key):
            live.stop()

    def samples(self, models: Sequence[str], language: Language) -> list[str]:
        """Sample questions of the personas among the models, or general ones."""
        cards = [manifest.card for model in models if (manifest := manifest_of(self.chat, model))]
        found = [text for card in cards for text in card.samples] or questions(language)
        return list(dict.fromkeys(found))[:MAX_SAMPLES]

    async def _ask_preset(self, request: gr.Request, question: str, values: Sequence[Any], preset: Preset) -> Stream:
        """A new comparison of the preset's lanes: on the question in its box, or the one asked last, or a sample."""
        language, chosen = language_of(request), Chosen.read(values)
        try:
            lanes = preset(self.chat, chosen.lanes, language)
        except BianlianError as error:
            gr.Warning(error.message)
            yield self.page.nothing()
            return
        text = question.strip() or await self._last_question(chosen.comparison)
        text = text or self.samples([lane.model for lane in lanes.values()], language)[0]
        fresh = Chosen("", lanes, chosen.seed, chosen.sampling)
        ready = self.page.lanes_set_up(lanes, language)
        async with aclosing(self._ask(request, text, fresh, ready)) as updates:
            async for update in updates:
                yield update

    async def _ask(self, request: gr.Request, question: str, chosen: Chosen, ready: Updates) -> Stream:
        """Ask, and follow the answers. `ready` is shown with the first of them."""
        viewer = await self.viewer_of(request)
        try:
            params, max_tokens = params_from(self.chat, chosen.sampling, chosen.seed)
            live = await self.comparisons.ask(
                chosen.comparison or None, question, chosen.lanes, params, max_tokens, key=viewer.key
            )
        except BianlianError as error:
            gr.Warning(error.message)
            yield self.page.nothing()
            return
        emptied = {} if chosen.comparison else self.page.emptied()
        first = {**ready, **emptied, self.page.widgets.asking.question: ""}
        async with aclosing(follow(self.page, live, viewer, language_of(request), first)) as updates:
            async for update in updates:
                yield update

    async def _last_question(self, comparison: str) -> str:
        if not comparison:
            return ""
        try:
            return (await self.comparisons.get(comparison)).turns[-1].question
        except BianlianError:  # deleted since, in another window
            return ""
