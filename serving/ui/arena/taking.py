"""Votes taken away as files, put among the uploads, or deleted. Users take their own, admins all."""

import asyncio
import json

import gradio as gr

from adapters.errors import BianlianError
from adapters.ui.tab import Viewer
from serving.battle_store import CastVote
from serving.ui.arena.drawing import uploaded_note, votes_said
from serving.ui.arena.layout import ArenaWidgets
from serving.ui.arena.scoring import Scoring
from serving.ui.arena.services import ArenaServices, Update
from serving.ui.arena.words import say
from serving.vote_export import Kind, exported, file_name, to_uploads


class Taking:
    """Every public method is one event."""

    def __init__(self, services: ArenaServices, widgets: ArenaWidgets, scoring: Scoring):
        self.services = services
        self.store = services.battles.store
        self.widgets = widgets
        self.scoring = scoring

    async def pairs(self, request: gr.Request) -> str:
        return await self._file(request, "pairs")

    async def votes(self, request: gr.Request) -> str:
        return await self._file(request, "votes")

    async def train(self, request: gr.Request) -> gr.HTML:
        """Put the pairs among the uploads. Returns the line that leads to the training tab."""
        visitor = await self.services.visitor(request)
        if not visitor.viewer.admin:
            gr.Warning(say(visitor.language, "admin_train"))
            return gr.HTML("", visible=False)
        try:
            stored = await asyncio.to_thread(to_uploads, await self._cast(visitor.viewer), self.services.files)
        except BianlianError as error:
            gr.Warning(error.message)
            return gr.HTML("", visible=False)
        return gr.HTML(uploaded_note(stored.filename, stored.id, visitor.language), visible=True)

    def doubt(self) -> Update:
        """Clear was clicked: ask once more."""
        export = self.widgets.export
        return {export.clear: gr.Button(visible=False)} | {
            button: gr.Button(visible=True) for button in (export.really, export.keep)
        }

    def keep(self) -> Update:
        export = self.widgets.export
        return {export.clear: gr.Button(visible=True)} | {
            button: gr.Button(visible=False) for button in (export.really, export.keep)
        }

    async def clear(self, request: gr.Request, wanted: str | None) -> Update:
        visitor = await self.services.visitor(request)
        if not visitor.viewer.admin:
            gr.Warning(say(visitor.language, "admin_clear"))
            return self.keep()
        gone = await self.store.database.call(self.store.clear)
        gr.Info(say(visitor.language, "cleared", votes=votes_said(gone, visitor.language)))
        return self.keep() | await self.scoring.drawn(visitor, wanted)

    async def _file(self, request: gr.Request, kind: Kind) -> str:
        """A file's name and text as JSON, for the browser; "" when there is nothing to export."""
        viewer = await self.services.viewer_of(request)
        try:
            text = await asyncio.to_thread(exported, await self._cast(viewer), kind)
        except BianlianError as error:
            gr.Warning(error.message)
            return ""
        return json.dumps({"name": file_name(kind), "text": text})

    async def _cast(self, viewer: Viewer) -> list[CastVote]:
        return await self.store.database.call(self.store.cast, None if viewer.admin else viewer.key)
