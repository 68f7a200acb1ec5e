"""What happens when somebody searches, renames, deletes or exports conversations, or keeps a system prompt."""

import asyncio
import json
from html import escape

import gradio as gr

from adapters.errors import BianlianError
from adapters.ui.tab import Viewer, link_to
from serving.conversation import Conversation
from serving.conversation_export import ExportFormat, exported, file_name, to_uploads
from serving.ui.chat.drawing import ChatServices, Drawing, Update
from serving.ui.chat.layout import CUSTOM, SAVED, Widgets
from serving.ui.chat.words import say


class Desk:
    """Every method is one event."""

    def __init__(self, services: ChatServices, widgets: Widgets):
        self.services = services
        self.history = services.conversations.history
        self.widgets = widgets
        self.drawing = Drawing(services, widgets)

    async def search(self, request: gr.Request, conversation: str, search: str, everyone: bool) -> Update:
        return await self.drawing.list(await self.drawing.visitor(request, conversation, search, everyone))

    async def rename(self, request: gr.Request, title: str, conversation: str, search: str, everyone: bool) -> Update:
        visitor = await self.drawing.visitor(request, conversation, search, everyone)
        try:
            opened = await self.history.database.call(self.history.open, visitor.viewer, conversation)
            if title == opened.title:
                return gr.skip()
            await self.history.database.call(self.history.rename, visitor.viewer, conversation, title)
        except BianlianError as error:
            gr.Warning(error.message)
            return gr.skip()
        return await self.drawing.list(visitor)

    def doubt(self) -> Update:
        """Delete was clicked: ask once more."""
        head = self.widgets.head
        return {head.delete: gr.Button(visible=False)} | {
            button: gr.Button(visible=True) for button in (head.really, head.keep)
        }

    def keep(self) -> Update:
        head = self.widgets.head
        return {head.delete: gr.Button(visible=True)} | {
            button: gr.Button(visible=False) for button in (head.really, head.keep)
        }

    async def delete(self, request: gr.Request, conversation: str, search: str, everyone: bool, model: str) -> Update:
        visitor = await self.drawing.visitor(request, conversation, search, everyone)
        try:
            await self.services.conversations.delete(visitor.viewer, conversation)
        except BianlianError as error:
            gr.Warning(error.message)
        visitor = await self.drawing.visitor(request, "", search, everyone)
        return await self.drawing.everything(visitor, None, model)

    async def download(self, request: gr.Request, conversation: str, scope: str, form: ExportFormat) -> str:
        """A file's name and text as JSON, for the browser; "" when there is nothing to export."""
        viewer = await self.services.viewer_of(request)
        try:
            chosen = await self._chosen(viewer, conversation, scope)
            text = await asyncio.to_thread(exported, chosen, form)
        except BianlianError as error:
            gr.Warning(error.message)
            return ""
        return json.dumps({"name": file_name(form), "text": text})

    async def reuse(self, request: gr.Request, conversation: str, scope: str) -> str:
        """Put conversations among the uploads. Returns the line that leads to the training tab."""
        visitor = await self.drawing.visitor(request, conversation)
        if not visitor.viewer.admin:
            gr.Warning(say(visitor.language, "admin_only"))
            return ""
        try:
            chosen = await self._chosen(visitor.viewer, conversation, scope)
            stored = await asyncio.to_thread(to_uploads, chosen, self.services.files)
        except BianlianError as error:
            gr.Warning(error.message)
            return ""
        link = escape(link_to("train", file=stored.id))
        name, go = escape(stored.filename), say(visitor.language, "train_on_it")
        return f'<p>{say(visitor.language, "uploaded")}{name} <a href="{link}">{go}</a></p>'

    async def choose_prompt(self, request: gr.Request, preset: str) -> Update:
        saved = await self.drawing.saved(await self.services.viewer_of(request))
        text = saved.get(preset.removeprefix(SAVED), "") if preset.startswith(SAVED) else None
        return self.drawing.prompt_boxes(preset, text)  # not the preset: it may have been chosen anew meanwhile

    async def save_prompt(self, request: gr.Request, name: str, text: str) -> Update:
        visitor = await self.drawing.visitor(request, "")
        prompts = self.services.prompts
        try:
            kept = await prompts.database.call(prompts.save, visitor.viewer, name, text)
        except BianlianError as error:
            gr.Warning(error.message)
            return gr.skip()
        gr.Info(say(visitor.language, "saved_prompt", name=kept))
        return self.drawing.prompt(SAVED + kept, text, await self.drawing.saved(visitor.viewer))

    async def delete_prompt(self, request: gr.Request, preset: str) -> Update:
        viewer = await self.services.viewer_of(request)
        prompts = self.services.prompts
        await prompts.database.call(prompts.delete, viewer, preset.removeprefix(SAVED))
        return self.drawing.prompt(CUSTOM, None, await self.drawing.saved(viewer))

    async def _chosen(self, viewer: Viewer, conversation: str, scope: str) -> list[Conversation]:
        if scope == "all":
            return await self.history.database.call(lambda: list(self.history.open_all(viewer)))
        if not conversation:
            return []
        return [await self.history.database.call(self.history.open, viewer, conversation)]
