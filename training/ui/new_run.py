"""A new run: the file, what is found in it, how to learn, and the start."""

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from adapters.errors import BianlianError, Invalid
from adapters.ui.words import Language, language_of
from training.choices import Checked, Choices, check, suggested_name
from training.data.files import SUFFIXES
from training.jobs.queue import Job
from training.ui import checked as html
from training.ui.form import Form, choices_of, settings_form
from training.ui.services import TrainServices
from training.ui.words import say, t

_KEPT_CHECKS = 16
_KEPT_DRAFTS = 100
_LISTED_FILES = 100
Update = Any  # what a handler gives a component: its value, or gr.update(...)


@dataclass(frozen=True)
class NewRunWidgets:
    column: gr.Column
    upload: gr.File
    status: gr.HTML
    report: gr.HTML
    preview: gr.HTML
    settings: gr.Column
    form: Form
    plan: gr.HTML
    estimate: gr.HTML
    start: gr.Button

    @property
    def found(self) -> list[Any]:
        """What a check fills."""
        return [self.status, self.report, self.preview, self.settings, self.plan, self.estimate, self.start]


def lay_out(services: TrainServices) -> NewRunWidgets:
    with gr.Column(elem_id="train-new-run") as column:
        gr.HTML(f'<div class="tr-h">{t("step_data")}</div>', padding=False)
        with gr.Row(equal_height=True):
            upload = gr.File(
                label=t("drop"),
                file_types=[*SUFFIXES, ".gz"],
                height=140,
                min_width=260,
                scale=2,
                elem_id="train-file",
            )
            file = gr.Dropdown(
                [], value=None, label=t("data"), info=t("data_info"), min_width=260, scale=2, elem_id="train-data"
            )
        status = gr.HTML("", elem_id="train-status", padding=False)
        report = gr.HTML("", elem_id="train-report", padding=False)
        preview = gr.HTML("", elem_id="train-preview", padding=False)
        with gr.Column(visible=False, elem_id="train-settings") as settings:
            gr.HTML(f'<div class="tr-h">{t("step_settings")}</div>', padding=False)
            form = settings_form(list(services.tuning.bases), file)
            with gr.Accordion(t("chosen"), open=False, elem_id="train-chosen"):
                plan = gr.HTML("", padding=False, elem_id="train-plan")
            gr.HTML(f'<div class="tr-h">{t("step_start")}</div>', padding=False)
            with gr.Row(equal_height=True, elem_classes=["tr-panel"], elem_id="train-go"):
                estimate = gr.HTML("", elem_id="train-estimate", padding=False, min_width=240)
                start = gr.Button(
                    t("start"), variant="primary", size="lg", scale=0, min_width=220, elem_id="train-start"
                )
    return NewRunWidgets(column, upload, status, report, preview, settings, form, plan, estimate, start)


class NewRun:
    """What happens in the form. Checks are kept a while, so that looking again costs nothing, and so is what each
    viewer has filled in, so that a reload loses nothing."""

    def __init__(self, services: TrainServices):
        self.services = services
        self.tuning = services.tuning
        self._checks: OrderedDict[str, Checked] = OrderedDict()
        self._checking = asyncio.Lock()  # measuring twice at once would measure the other
        self._drafts: OrderedDict[str, list[Any]] = OrderedDict()  # by the viewer's key

    # --- files ---

    def offered(self, chosen: str | None) -> gr.Dropdown:
        """Uploaded files, newest first. Reads the disk."""
        files = self.tuning.files.all("fine-tune")[:_LISTED_FILES]
        choices = [(f"{file.filename} · {_size(file.bytes)} · {_when(file.created_at)}", file.id) for file in files]
        known = {file.id for file in files}
        return gr.Dropdown(choices=choices, value=chosen if chosen in known else None)

    def take(self, received: str) -> str:
        """Keep an uploaded file among the server's; its id. What Gradio kept of it goes."""
        source = Path(received)
        with self.tuning.files.workspace() as workspace:
            target = workspace / "received"
            shutil.copyfile(source, target)
            stored = self.tuning.files.add(target, source.name, "fine-tune")
        source.unlink(missing_ok=True)  # who knows its address could fetch it
        return stored.id

    def named(self, file_id: str | None, name: str) -> str:
        """The name to begin with: of the file, unless somebody typed another."""
        known = {file.id: suggested_name(file.filename) for file in self.tuning.files.all("fine-tune")}
        if file_id in known and (not name.strip() or name in known.values()):
            return known[file_id]
        return name

    # --- drafts ---

    def keep_draft(self, viewer: str, values: list[Any]) -> None:
        self._drafts[viewer] = values
        self._drafts.move_to_end(viewer)
        while len(self._drafts) > _KEPT_DRAFTS:
            self._drafts.popitem(last=False)

    def draft(self, viewer: str) -> list[Any] | None:
        return self._drafts.get(viewer)

    # --- checking and starting ---

    async def checked(self, choices: Choices) -> Checked:
        """What `check` finds. Raises what it raises."""
        looked_at = replace(choices, name="", questions="")  # which change nothing that is found
        asked = str(looked_at)
        async with self._checking:
            if asked not in self._checks:
                self._checks[asked] = await self.services.apart(
                    check, self.tuning, looked_at, device=self.services.device
                )
            self._checks.move_to_end(asked)
            while len(self._checks) > _KEPT_CHECKS:
                self._checks.popitem(last=False)
            return self._checks[asked]

    async def examine(self, request: gr.Request, *values: Any) -> AsyncIterator[list[Update]]:
        """What is found in the file with these settings, as NewRunWidgets.found."""
        language = language_of(request)
        try:
            choices = choices_of(values)
        except Invalid as error:
            yield _refused(error, language)
            return
        if not choices.file:
            empty = f'<div class="tr-panel tr-empty">{say(language, "no_data")}</div>'
            yield [empty, "", "", gr.Column(visible=False), "", "", gr.skip()]
            return
        name = await asyncio.to_thread(self._filename, choices.file)
        told = f'<div class="tr-empty" role="status">{escape(say(language, "checking", file=name))}</div>'
        yield [told, *[gr.skip()] * 5, gr.Button(interactive=False)]
        try:
            found = await self.checked(choices)
        except BianlianError as error:
            yield _refused(error, language)
            return
        ready = found.preflight.refused is None
        yield [
            "",
            html.report(found.preflight, language),
            html.preview(found.preflight.preview, language),
            gr.Column(visible=True),
            html.plan(found, language),
            html.estimate(found, choices.name or suggested_name(name), language),
            gr.Button(interactive=ready),
        ]

    async def start(self, choices: Choices, language: Language) -> Job:
        """A run in the queue. Raises Invalid, NotFound or Conflict, which say the way out."""
        if not choices.file:
            raise Invalid(say(language, "no_file"), param="file")
        if not choices.name.strip():
            raise Invalid(say(language, "name_missing"), param="name")
        found = await self.checked(choices)
        if found.preflight.refused:
            raise Invalid(found.preflight.refused, param="file")
        return await asyncio.to_thread(self.tuning.create, choices.request(found.objective))

    def _filename(self, file_id: str) -> str:
        try:
            return self.tuning.files.get(file_id).filename
        except BianlianError:  # deleted; the check says so
            return file_id


def _refused(error: BianlianError, language: Language) -> list[Update]:
    """Said above, and below beside the button: the fault may be in either place."""
    told = html.trouble(say(language, "refused_title"), error.message)
    return [told, "", "", gr.skip(), gr.skip(), told, gr.Button(interactive=False)]


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MB" if count >= 2**20 else f"{count / 1024:.0f} KB"


def _when(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds):%m-%d %H:%M}"
