"""What the Arena tab works with, and who is at it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from adapters.ui.tab import Viewer, ViewerOf
from adapters.ui.words import Language, language_of
from serving.battles import Battles
from serving.chat import ChatService
from serving.files import FileStore
from serving.question_sets import QuestionSet, QuestionSets
from serving.votes import VoteStore

Update = dict[Any, Any]  # by widget: its value, or gr.update(...)


@dataclass(frozen=True)
class Visitor:
    viewer: Viewer
    language: Language


@dataclass(frozen=True)
class ArenaServices:
    chat: ChatService
    battles: Battles
    sets: QuestionSets
    files: FileStore
    viewer_of: ViewerOf

    @property
    def votes(self) -> VoteStore:
        return self.battles.store.votes

    async def visitor(self, request: gr.Request) -> Visitor:
        return Visitor(await self.viewer_of(request), language_of(request))

    async def all_sets(self, viewer: Viewer) -> list[QuestionSet]:
        return await self.sets.database.call(self.sets.all, viewer.key, admin=viewer.admin)

    async def set_of(self, viewer: Viewer, set_id: str | None) -> QuestionSet:
        return await self.sets.database.call(self.sets.get, viewer.key, set_id or "", admin=viewer.admin)
