"""What the Chat tab shows of a conversation: values for its widgets, from what the services know."""

import asyncio
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from adapters.ui.tab import Viewer, ViewerOf
from adapters.ui.words import Language, language_of
from serving.chat import ChatService
from serving.conversation import Conversation, StoredMessage
from serving.conversations import Conversations, RunningAnswer
from serving.files import FileStore
from serving.system_prompts import SystemPrompts
from serving.ui.chat.faces import avatar_styles, face_of, faces, welcome
from serving.ui.chat.layout import CUSTOM, NONE, OWN, SAVED, Widgets, preset_choices
from serving.ui.chat.side import conversation_list
from serving.ui.chat.transcript import answer_bubble, settled
from serving.ui.chat.words import say
from serving.ui.models import offer

Update = Any  # what a handler gives a component: its value, or gr.update(...)
Updates = dict[Any, Update]  # by component


@dataclass(frozen=True)
class ChatServices:
    chat: ChatService
    conversations: Conversations
    prompts: SystemPrompts
    files: FileStore
    viewer_of: ViewerOf


@dataclass(eq=False)
class Visitor:
    """Who looks, in which language, and at what, which may change in the course of an event."""

    viewer: Viewer
    language: Language
    conversation_id: str = ""
    search: str = ""
    everyone: bool = False


class Drawing:
    """Reads and draws, and changes nothing."""

    def __init__(self, services: ChatServices, widgets: Widgets):
        self.services = services
        self.widgets = widgets

    async def visitor(
        self, request: gr.Request, conversation_id: str, search: str = "", everyone: bool = False
    ) -> Visitor:
        viewer = await self.services.viewer_of(request)
        return Visitor(viewer, language_of(request), conversation_id, search, everyone)

    async def everything(self, visitor: Visitor, running: RunningAnswer | None, model: str | None = None) -> Updates:
        """The tab with the visitor's conversation on screen and its settings, or with none and `model` chosen."""
        conversation = await self._conversation(visitor)
        return await self.talk(visitor, running, model) | await self.settings(visitor, conversation, model)

    async def talk(self, visitor: Visitor, running: RunningAnswer | None, model: str | None = None) -> Updates:
        """The conversation and the list, without the settings: those may have been changed for the next question.
        `running` is its answer that was being given a moment ago; it may have ended since."""
        conversation = await self._conversation(visitor)
        drawn = await asyncio.to_thread(self._turns, visitor, conversation, running, model)
        return drawn | self._heading(conversation) | self._buttons(running) | await self.list(visitor)

    def live(self, running: RunningAnswer, language: Language) -> Updates:
        """The answer that is being given, as far as it is."""
        progress = running.progress
        message = StoredMessage(
            running.message_id, None, "assistant", progress.text, progress.reasoning, running.record
        )
        return {self.widgets.talk.live: answer_bubble(message, [message], language, running=True)}

    async def list(self, visitor: Visitor) -> Updates:
        history, side = self.services.conversations.history, self.widgets.side
        found = await history.database.call(
            history.all, visitor.viewer, search=visitor.search, everyone=visitor.everyone
        )
        shown = conversation_list(
            found, visitor.conversation_id, visitor.viewer, visitor.language, search=visitor.search
        )
        return {side.list: shown}

    def rights(self, viewer: Viewer) -> Updates:
        """What only admins are offered."""
        side, with_keys = self.widgets.side, viewer.key != ""
        return {
            side.everyone: gr.Checkbox(visible=viewer.admin and with_keys),
            side.reuse: gr.Button(interactive=viewer.admin),
        }

    def _buttons(self, running: RunningAnswer | None) -> Updates:
        talk, busy = self.widgets.talk, running is not None
        return {talk.send: gr.Button(visible=not busy), talk.stop: gr.Button(visible=busy)}

    async def settings(self, visitor: Visitor, conversation: Conversation | None, model: str | None) -> Updates:
        """Model and system prompt as the conversation has them, or the model's own to begin with."""
        wanted = conversation.model if conversation else model
        choices, kept = await asyncio.to_thread(offer, self.services.chat, wanted, visitor.language)
        drawn: Updates = {self.widgets.head.model: gr.Dropdown(choices=choices, value=kept)}
        drawn |= await self.own_prompt(kept, visitor.language)
        if conversation:
            saved = await self.saved(visitor.viewer)
            preset, text = _preset_of(conversation.system, saved)
            drawn |= self.prompt(preset, text, saved)
        return drawn

    async def own_prompt(self, model: str, language: Language) -> Updates:
        face = await asyncio.to_thread(face_of, self.services.chat, model, language)
        text = say(language, "own", text=face.own_prompt) if face.own_prompt else ""
        return {self.widgets.drawer.own_prompt: gr.HTML(f"<p>{escape(text)}</p>", visible=bool(text))}

    async def saved(self, viewer: Viewer) -> dict[str, str]:
        prompts = self.services.prompts
        return await prompts.database.call(prompts.all, viewer)

    def prompt(self, preset: str, text: str | None, saved: dict[str, str]) -> Updates:
        """The drawer with this preset chosen. Without `text`, what is written in it stays."""
        chosen = gr.Dropdown(choices=preset_choices([*saved]), value=preset)
        return {self.widgets.drawer.preset: chosen} | self.prompt_boxes(preset, text)

    def prompt_boxes(self, preset: str, text: str | None) -> Updates:
        drawer, written = self.widgets.drawer, preset not in (OWN, NONE)
        name = preset.removeprefix(SAVED) if preset.startswith(SAVED) else ""
        return {
            drawer.system: gr.Textbox(visible=written, **({} if text is None else {"value": text})),
            drawer.prompt_name: gr.Textbox(visible=written, **({} if text is None else {"value": name})),
            drawer.save_prompt: gr.Button(visible=written),
            drawer.delete_prompt: gr.Button(visible=bool(name)),
        }

    async def _conversation(self, visitor: Visitor) -> Conversation | None:
        history = self.services.conversations.history
        if not visitor.conversation_id:
            return None
        return await history.database.call(history.open, visitor.viewer, visitor.conversation_id)

    def _turns(
        self,
        visitor: Visitor,
        conversation: Conversation | None,
        running: RunningAnswer | None,
        model: str | None,
    ) -> Updates:
        """Blocks: reads portraits."""
        chat, language, talk = self.services.chat, visitor.language, self.widgets.talk
        if conversation is None:
            chosen = face_of(chat, model or chat.base.name, language)
            shown, named = welcome(chosen, faces(chat, language), language), [chosen]
        else:
            shown = settled(conversation, running.message_id if running else None, language)
            models = dict.fromkeys(message.answer.model for message in conversation.branch if message.answer)
            named = [face_of(chat, each, language) for each in models]
        drawn = {
            talk.conversation: visitor.conversation_id,
            talk.faces: avatar_styles(named),
            talk.log: f'<div class="turns" role="log" aria-live="off" aria-label="{say(language, "log")}" '
            f'data-conversation="{visitor.conversation_id}">{shown}</div>',
            talk.live: "",
        }
        if running:
            drawn |= self.live(running, language)
        return drawn

    def _heading(self, conversation: Conversation | None) -> Updates:
        head = self.widgets.head
        there = conversation is not None
        return {
            head.title: gr.Textbox(value=conversation.title if conversation else "", interactive=there),
            head.delete: gr.Button(visible=there),
            head.really: gr.Button(visible=False),
            head.keep: gr.Button(visible=False),
        }


def _preset_of(system: str | None, saved: dict[str, str]) -> tuple[str, str]:
    """Which preset a conversation's system prompt is, and its text."""
    if system is None:
        return OWN, ""
    if not system:
        return NONE, ""
    name = next((name for name, text in saved.items() if text == system), None)
    return (SAVED + name if name else CUSTOM), system
