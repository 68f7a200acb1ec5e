"""What happens when somebody asks, stops, or turns to another conversation."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr

from adapters.errors import BianlianError, Invalid
from serving.conversations import Manner, RunningAnswer
from serving.ui.chat.drawing import ChatServices, Drawing, Updates, Visitor
from serving.ui.chat.layout import NONE, OWN, Widgets
from serving.ui.models import first_adapter
from serving.ui.sampling import params_from
from serving.ui.texts import say as say_common

UPDATE_S = 0.1  # a browser that draws more often falls behind
HEARTBEAT_S = 0.5  # Gradio notices a closed page only when something is sent

Steps = AsyncGenerator[Updates, None]


class Handlers:
    """Every public method is one event. Generators show an answer while it grows; they only watch, and may be left at
    any time."""

    def __init__(self, services: ChatServices, widgets: Widgets):
        self.services = services
        self.conversations = services.conversations
        self.widgets = widgets
        self.drawing = Drawing(services, widgets)
        self._latest: dict[str, Visitor] = {}  # by browser session; what is shown to an earlier one ends

    async def load(self, request: gr.Request) -> Steps:
        """The page is opened: with the conversation that its address names, or a new one with its model."""
        asked = request.query_params if request.query_params.get("tab") == "chat" else {}
        visitor = await self.drawing.visitor(request, asked.get("c", ""))
        model = asked.get("model") or first_adapter(self.services.chat)
        async for step in self._shown(request, visitor, self._load(visitor, model)):
            yield step

    async def ask(
        self, request: gr.Request, question: str, conversation: str, search: str, everyone: bool, *settings: Any
    ) -> Steps:
        visitor = await self.drawing.visitor(request, conversation, search, everyone)
        async for step in self._shown(request, visitor, self._ask(visitor, question, settings)):
            yield step

    async def act(
        self, request: gr.Request, event: gr.EventData, conversation: str, search: str, everyone: bool, *settings: Any
    ) -> Steps:
        """A button of the transcript or the welcome, or a line of the list."""
        visitor = await self.drawing.visitor(request, conversation, search, everyone)
        async for step in self._shown(request, visitor, self._act(visitor, event._data, settings)):
            yield step

    async def new(self, request: gr.Request, search: str, everyone: bool, model: str) -> Updates:
        visitor = await self.drawing.visitor(request, "", search, everyone)
        self._latest.pop(request.session_hash, None)
        return await self.drawing.everything(visitor, None, model) | {self.widgets.talk.question: ""}

    async def stop(self, request: gr.Request, conversation: str) -> None:
        visitor = await self.drawing.visitor(request, conversation)
        try:
            await self.conversations.stop(visitor.viewer, conversation)
        except BianlianError as error:
            gr.Warning(error.message)

    async def meet(self, request: gr.Request, conversation: str, model: str) -> Updates:
        """Another model is chosen: it introduces itself, or answers from here on."""
        visitor = await self.drawing.visitor(request, conversation)
        if conversation:
            return await self.drawing.own_prompt(model, visitor.language)
        return await self.drawing.everything(visitor, None, model)

    async def _shown(self, request: gr.Request, visitor: Visitor, steps: Steps) -> Steps:
        """`steps`, until the browser session is shown something else."""
        session = request.session_hash
        self._latest[session] = visitor
        try:
            async with aclosing(steps):
                async for step in steps:
                    if self._latest.get(session) is not visitor:
                        return
                    yield step
        finally:
            if self._latest.get(session) is visitor:
                del self._latest[session]

    async def _load(self, visitor: Visitor, model: str) -> Steps:
        first = self.drawing.rights(visitor.viewer)
        try:
            await self.conversations.require(visitor.viewer, visitor.conversation_id)
        except BianlianError as error:
            gr.Warning(error.message)
            visitor.conversation_id = ""
        if not visitor.conversation_id:
            first |= self.drawing.prompt(OWN, "", await self.drawing.saved(visitor.viewer))
        async for step in self._open(visitor, model):
            yield first | step
            first = {}

    async def _act(self, visitor: Visitor, done: dict[str, str], settings: tuple[Any, ...]) -> Steps:
        conversations, viewer, here = self.conversations, visitor.viewer, visitor.conversation_id
        text, message_id = done["text"], int(done["id"]) if done["id"].isdecimal() else 0
        match done["do"]:
            case "sample":
                steps = self._ask(visitor, text, settings)
            case "edit":
                steps = self._begin(
                    visitor,
                    settings,
                    lambda manner: conversations.edit(viewer, here, message_id, text, manner),
                )
            case "again":
                steps = self._begin(
                    visitor,
                    settings,
                    lambda manner: conversations.regenerate(viewer, here, message_id, manner),
                )
            case "show":
                steps = self._show(visitor, message_id)
            case "open":
                visitor.conversation_id = done["id"]
                steps = self._open(visitor)
            case "pick":
                visitor.conversation_id = ""
                steps = self._open(visitor, done["model"])
            case other:
                raise Invalid(f"there is no button '{other[:40]}'")
        async for step in steps:
            yield step

    async def _ask(self, visitor: Visitor, question: str, settings: tuple[Any, ...]) -> Steps:
        if not question.strip():
            gr.Warning(say_common(visitor.language, "nothing"))
            yield gr.skip()
            return
        asked = self._begin(
            visitor,
            settings,
            lambda manner: self.conversations.ask(visitor.viewer, visitor.conversation_id, question, manner),
        )
        async for step in asked:
            yield step

    async def _begin(
        self, visitor: Visitor, settings: tuple[Any, ...], begin: Callable[[Manner], Awaitable[RunningAnswer]]
    ) -> Steps:
        """Start an answer and show it. What is refused says why and changes nothing: the question stays in its box."""
        try:
            running = await begin(self._manner(settings))
        except BianlianError as error:
            gr.Warning(error.message)
            yield gr.skip()
            return
        visitor.conversation_id = running.conversation_id
        yield await self.drawing.talk(visitor, running) | {self.widgets.talk.question: ""}
        async for step in self._watch(visitor, running):
            yield step

    async def _open(self, visitor: Visitor, model: str | None = None) -> Steps:
        """Show a conversation, and the answer that may be growing in it."""
        running = self.conversations.running(visitor.conversation_id)
        try:
            yield await self.drawing.everything(visitor, running, model)
        except BianlianError as error:
            gr.Warning(error.message)
            yield await self.drawing.list(visitor)
            return
        async for step in self._watch(visitor, running):
            yield step

    async def _show(self, visitor: Visitor, message_id: int) -> Steps:
        """Turn to the branch through a message."""
        history, running = self.conversations.history, self.conversations.running(visitor.conversation_id)
        try:
            await history.database.call(history.show, visitor.viewer, visitor.conversation_id, message_id)
            yield await self.drawing.talk(visitor, running)
        except BianlianError as error:
            gr.Warning(error.message)
            yield gr.skip()
            return
        async for step in self._watch(visitor, running):
            yield step

    async def _watch(self, visitor: Visitor, running: RunningAnswer | None) -> Steps:
        """`running` until it ends, then the conversation as it is, and what may run in it by then."""
        while running:
            drawn, silent_s = -1, 0.0
            while not running.task.done():
                await asyncio.wait([running.task], timeout=UPDATE_S)
                silent_s += UPDATE_S
                if running.progress.tokens != drawn:
                    drawn, silent_s = running.progress.tokens, 0.0
                    yield self.drawing.live(running, visitor.language)
                elif silent_s >= HEARTBEAT_S:
                    silent_s = 0.0
                    yield gr.skip()
            running = self.conversations.running(visitor.conversation_id)
            try:
                yield await self.drawing.talk(visitor, running)
            except BianlianError:  # deleted meanwhile, in another window
                visitor.conversation_id = ""
                yield await self.drawing.talk(visitor, None)

    def _manner(self, settings: tuple[Any, ...]) -> Manner:
        """`settings` are the values of the model picker and of `Drawer.settings`."""
        model, preset, system, strength, *sampling, seed = settings
        params, max_tokens = params_from(self.services.chat, (*sampling,), _seed(seed))
        prompt = None if preset == OWN else "" if preset == NONE else (system or "").strip()
        return Manner(model, params, prompt, max_tokens, float(strength))


def _seed(text: str) -> int | None:
    """None for an empty box: a new one each time."""
    text = (text or "").strip()
    if text and not text.isdecimal():
        raise Invalid(f"seed '{text[:20]}' is no whole number; write one, or nothing", param="seed")
    return int(text) if text else None
