"""What there is to choose from: contestants, sample questions, question sets; and making a set of one's own."""

from pathlib import Path
from typing import Any

import gradio as gr

from adapters.errors import BianlianError, Invalid
from serving.question_sets import QuestionSet
from serving.ui.arena.drawing import question_list
from serving.ui.arena.layout import ALL_VOTES, EVERY_VOTE, MAX_FILE, ArenaWidgets
from serving.ui.arena.services import ArenaServices, Update, Visitor
from serving.ui.arena.words import say
from serving.ui.models import manifest_of
from serving.ui.texts import questions

STRENGTHS = (0.5, 1.5)  # offered beside 1
MAX_AT_FIRST = 4  # contestants of a new page
MAX_SAMPLES = 6


class Choosing:
    """Every public method is one event."""

    def __init__(self, services: ArenaServices, widgets: ArenaWidgets):
        self.services = services
        self.widgets = widgets

    async def begin(self, request: gr.Request) -> Update:
        """Everything a new page chooses from."""
        visitor = await self.services.visitor(request)
        offered = self._offered()
        pool = [self.services.chat.base.name, *self._adapters()][:MAX_AT_FIRST]
        return {
            self.widgets.asking.pool: gr.Dropdown(choices=offered, value=pool),
            self.widgets.asking.samples: self._samples(pool, visitor),
        } | await self._sets(visitor, visitor.language)

    def offer(self, pool: list[str]) -> Any:
        """Today's contestants; what was chosen stays chosen."""
        return gr.Dropdown(choices=self._offered(), value=pool)

    async def suggest(self, request: gr.Request, pool: list[str]) -> Any:
        return self._samples(pool, await self.services.visitor(request))

    async def show_set(self, request: gr.Request, set_id: str | None) -> Update:
        visitor = await self.services.visitor(request)
        known = await self.services.all_sets(visitor.viewer)
        return self._shown(next((each for each in known if each.id == set_id), None), visitor)

    async def read_file(self, request: gr.Request, path: str) -> Update:
        """An uploaded text in the box, to be looked at before it is saved."""
        shelf, language = self.widgets.shelf, (await self.services.visitor(request)).language
        file = Path(path)
        try:
            if file.stat().st_size > MAX_FILE:
                raise Invalid(f"a question set may have {MAX_FILE >> 20} MiB", param="questions")
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            gr.Warning(say(language, "not_text"))
            return {shelf.text: gr.skip()}
        except BianlianError as error:
            gr.Warning(error.message)
            return {shelf.text: gr.skip()}
        return {shelf.text: text, shelf.title: file.stem}

    async def save_set(self, request: gr.Request, title: str, text: str) -> Update:
        visitor, sets, shelf = await self.services.visitor(request), self.services.sets, self.widgets.shelf
        try:
            made = await sets.database.call(sets.add, visitor.viewer.key, title, text)
        except BianlianError as error:
            gr.Warning(error.message)
            return {shelf.title: gr.skip()}
        gr.Info(say(visitor.language, "set_saved", title=made.title, count=len(made.questions)))
        return {shelf.title: "", shelf.text: ""} | await self._sets(visitor, made.id)

    def doubt(self) -> Update:
        """Delete was clicked: ask once more."""
        shelf = self.widgets.shelf
        return {shelf.delete: gr.Button(visible=False)} | {
            button: gr.Button(visible=True) for button in (shelf.really, shelf.keep)
        }

    def keep(self) -> Update:
        shelf = self.widgets.shelf
        return {shelf.delete: gr.Button(visible=True)} | {
            button: gr.Button(visible=False) for button in (shelf.really, shelf.keep)
        }

    async def delete_set(self, request: gr.Request, set_id: str | None) -> Update:
        visitor, sets = await self.services.visitor(request), self.services.sets
        try:
            await sets.database.call(sets.delete, visitor.viewer.key, set_id or "", admin=visitor.viewer.admin)
        except BianlianError as error:
            gr.Warning(error.message)
            return self.keep()
        gr.Info(say(visitor.language, "set_deleted"))
        left = await self._sets(visitor, visitor.language)
        return self.keep() | left | {self.widgets.shelf.delete: gr.Button(visible=True, interactive=False)}

    async def _sets(self, visitor: Visitor, chosen: str) -> Update:
        """The sets to draw from and to filter by, with `chosen` chosen."""
        known = await self.services.all_sets(visitor.viewer)
        offered = [(each.title, each.id) for each in known]
        return {
            self.widgets.asking.question_set: gr.Dropdown(choices=offered, value=chosen),
            self.widgets.board.filter: gr.Dropdown(choices=[*EVERY_VOTE, *offered], value=ALL_VOTES),
        } | self._shown(next(each for each in known if each.id == chosen), visitor)

    def _shown(self, chosen: QuestionSet | None, visitor: Visitor) -> Update:
        shelf = self.widgets.shelf
        own = chosen is not None and chosen.key is not None
        return {
            shelf.shown: question_list(chosen, visitor.language),
            shelf.delete: gr.Button(interactive=own),
        }

    def _adapters(self) -> list[str]:
        return [version.name for version in self.services.chat.registry.versions()]

    def _offered(self) -> list[str]:
        names = self._adapters()
        stronger = [f"{name} ×{strength:g}" for name in names for strength in STRENGTHS]
        return [self.services.chat.base.name, *names, *stronger]

    def _samples(self, pool: list[str], visitor: Visitor) -> gr.Dataset:
        """Sample questions of the personas in the pool, or general ones."""
        cards = [found.card for name in pool if (found := manifest_of(self.services.chat, name))]
        said = [text for card in cards for text in card.samples] or questions(visitor.language)
        return gr.Dataset(samples=[[text] for text in dict.fromkeys(said)][:MAX_SAMPLES])
