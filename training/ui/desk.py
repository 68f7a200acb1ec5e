"""What happens on the Train tab when somebody opens it, chooses a run, starts one or stops it. Only those with the
admin key get anything, as over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable
from html import escape
from typing import Any
from zlib import crc32

import gradio as gr

from adapters.errors import BianlianError
from adapters.snapshots import snapshot_id
from adapters.ui.tab import link_to
from adapters.ui.words import Language, language_of
from training.jobs.queue import Job
from training.ui import run_html
from training.ui.checked import trouble
from training.ui.form import choices_of
from training.ui.new_run import NewRun
from training.ui.run_view import DRAWN, RunView
from training.ui.services import TrainServices
from training.ui.words import say

LIVE_S = 1.0  # between two looks while something runs or waits
IDLE_S = 5.0
_LISTED_RUNS = 50

Update = Any  # what a handler gives a component: its value, or gr.update(...)


class Desk:
    def __init__(self, services: TrainServices, blank: list[Any]):
        """`blank` is what the form's widgets hold before anything is filled in."""
        self.services = services
        self.new = NewRun(services)
        self.view = RunView(services)
        self._blank = blank
        self._in_form = len(blank)

    async def _viewer(self, request: gr.Request) -> str | None:
        """The viewer's key; None for one who may not train."""
        viewer = await self.services.viewer_of(request)
        return viewer.key if viewer.admin else None

    # --- opening, looking ---

    async def arrive(self, request: gr.Request) -> list[Update]:
        """The tab as its address asks for: [notice, body, *lists, form, run, *form widgets, *drawn]. A run that goes on
        is shown to whoever comes without asking for anything else."""
        language, wanted = language_of(request), request.query_params
        viewer = await self._viewer(request)
        if viewer is None:
            notice = f'<div class="tr-panel tr-empty" role="status">{say(language, "admin_only")}</div>'
            return [notice, gr.Row(visible=False), *self._nothing(4 + 2 + self._in_form + DRAWN)]
        if wanted.get("tab") != "train":  # looked at when it is opened
            return self._nothing(2 + 4 + 2 + self._in_form + DRAWN)
        jobs = await asyncio.to_thread(self.view.jobs)
        live = [job.id for job in jobs if job.status.state == "running"]
        job_id = wanted.get("job") or (live[0] if live and not wanted.get("file") else "")
        shown = job_id if job_id in {job.id for job in jobs} else ""
        drawn = await self.view.draw(shown, 0, "", language) if shown else self._nothing(DRAWN)
        form = await asyncio.to_thread(self._form, viewer, wanted.get("file"), shown)
        return [
            *self._nothing(2),
            *self._lists(jobs, shown or None, "", language),
            gr.Column(visible=not shown),
            gr.Column(visible=bool(shown)),
            *form,
            *drawn,
        ]

    async def open(self, request: gr.Request, job_id: str | None, file: str | None) -> list[Update]:
        """As `arrive`, when the visitor comes from another tab: [*lists, *form widgets]. What is on the page stays, and
        a page that opens on this tab leaves the form to `arrive`."""
        viewer = await self._viewer(request)
        if viewer is None:
            return self._nothing(4 + self._in_form)
        jobs = await asyncio.to_thread(self.view.jobs)
        lists = self._lists(jobs, None, "", language_of(request))
        present = job_id or file or request.query_params.get("tab") == "train"
        return [*lists, *await asyncio.to_thread(self._form, viewer, None, present)]

    async def begin(self, request: gr.Request, file: str | None) -> list[Update]:
        """The form in place of a run: [runs, form, run, *form widgets]."""
        viewer = await self._viewer(request)
        if viewer is None:
            return self._nothing(3 + self._in_form)
        form = await asyncio.to_thread(self._form, viewer, None, file)
        return [None, gr.Column(visible=True), gr.Column(visible=False), *form]

    async def refresh(
        self, request: gr.Request, job_id: str | None, listed: str, chosen: int, stamp: str
    ) -> list[Update]:
        """What has changed: [*lists, *drawn]."""
        if await self._viewer(request) is None:
            return self._nothing(4 + DRAWN)
        language = language_of(request)
        jobs = await asyncio.to_thread(self.view.jobs)
        lists = self._lists(jobs, None, listed, language)
        if not job_id or job_id not in {job.id for job in jobs}:
            return [*lists, *self._nothing(DRAWN)]
        try:
            return [*lists, *await self.view.draw(job_id, int(chosen), stamp, language)]
        except BianlianError:  # deleted a moment ago; the list will say so at the next look
            return [*lists, *self._nothing(DRAWN)]

    async def show(self, request: gr.Request, job_id: str | None) -> list[Update]:
        """Another run: [form, run, published, *drawn]."""
        if await self._viewer(request) is None or not job_id:
            return self._nothing(3 + DRAWN)
        try:
            drawn = await self.view.draw(job_id, 0, "", language_of(request))
        except BianlianError as error:
            gr.Warning(error.message)
            return self._nothing(3 + DRAWN)
        return [gr.Column(visible=False), gr.Column(visible=True), "", *drawn]

    async def turn(self, request: gr.Request, job_id: str | None, chosen: int) -> list[Update]:
        """Another place of the timeline: [answers, publishing, published]."""
        if await self._viewer(request) is None or not job_id:
            return self._nothing(3)
        return [*await self.view.answers(job_id, int(chosen), language_of(request)), ""]

    def _lists(self, jobs: list[Job], shown: str | None, listed: str, language: Language) -> list[Update]:
        """[runs, empty, timer, listed]; skipped where the page has them already. `shown` is chosen, if any."""
        choices = [(run_html.label(job, language), job.id) for job in jobs[:_LISTED_RUNS]]
        live = any(run_html.is_live(job) for job in jobs)
        now = f"{crc32(repr(choices).encode()):x} {live}"
        if now == listed:
            return self._nothing(4)
        runs: dict[str, Any] = {"choices": choices, "visible": bool(choices)}
        if shown:
            runs["value"] = shown
        empty = "" if choices else f'<div class="tr-empty">{say(language, "no_runs")}</div>'
        return [gr.Radio(**runs), empty, gr.Timer(LIVE_S if live else IDLE_S, active=True), now]

    def _form(self, viewer: str, file: str | None, present: object) -> list[Update]:
        """Values of the form's widgets: what this viewer had filled in last, on `file` if that is named. With something
        `present` on the page already, only what can be chosen is brought up to date."""
        if present:
            return [gr.Dropdown(choices=self.new.offered(None).choices), *self._nothing(self._in_form - 1)]
        draft = self.new.draft(viewer)
        if draft is None or (file and draft[0] != file):
            # Said, though they are that already: Gradio shows a number that was never told to be empty as 0.
            return [self.new.offered(file), *self._blank[1:]]
        return [self.new.offered(draft[0]), *draft[1:]]

    @staticmethod
    def _nothing(count: int) -> list[Update]:
        return [gr.skip()] * count

    # --- a new run ---

    async def uploaded(self, request: gr.Request, received: str | None) -> list[Update]:
        """[upload, file]: kept on the server, and chosen."""
        if not received or await self._viewer(request) is None:
            return [None, gr.skip()]
        try:
            file_id = await asyncio.to_thread(self.new.take, received)
        except (BianlianError, OSError) as error:
            gr.Warning(str(error))
            return [None, gr.skip()]
        return [None, await asyncio.to_thread(self.new.offered, file_id)]

    async def name_it(self, request: gr.Request, file: str | None, name: str) -> str:
        """The name that goes with a file, unless another was typed."""
        if await self._viewer(request) is None:
            return name
        return await asyncio.to_thread(self.new.named, file, name or "")

    async def keep(self, request: gr.Request, *values: Any) -> None:
        """Remember what is filled in."""
        viewer = await self._viewer(request)
        if viewer is not None:
            self.new.keep_draft(viewer, list(values))

    async def examine(self, request: gr.Request, *values: Any) -> AsyncIterator[list[Update]]:
        viewer = await self._viewer(request)
        if viewer is None:
            yield self._nothing(7)
            return
        self.new.keep_draft(viewer, list(values))
        async for update in self.new.examine(request, *values):
            yield update

    async def start(self, request: gr.Request, *values: Any) -> AsyncIterator[list[Update]]:
        """[start, estimate, *lists, form, run, published, *drawn]"""
        rest = 4 + 3 + DRAWN
        if await self._viewer(request) is None:
            yield self._nothing(2 + rest)
            return
        language = language_of(request)
        yield [gr.Button(interactive=False), *self._nothing(1 + rest)]
        try:
            job = await self.new.start(choices_of(values), language)
        except BianlianError as error:
            gr.Warning(error.message)
            told = trouble(say(language, "refused_title"), error.message)
            yield [gr.Button(interactive=True), told, *self._nothing(rest)]
            return
        jobs = await asyncio.to_thread(self.view.jobs)
        lists = self._lists(jobs, job.id, "", language)
        yield [gr.Button(interactive=True), gr.skip(), *lists, *await self.show(request, job.id)]

    # --- a run that is there ---

    async def pause(self, request: gr.Request, job_id: str | None, chosen: int) -> list[Update]:
        return await self._change(request, job_id, chosen, self.view.queue.pause, "stopping")

    async def resume(self, request: gr.Request, job_id: str | None, chosen: int) -> list[Update]:
        return await self._change(request, job_id, chosen, self.view.queue.resume, "resumed")

    async def cancel(self, request: gr.Request, job_id: str | None, chosen: int) -> list[Update]:
        return await self._change(request, job_id, chosen, self.view.queue.cancel, "stopping")

    async def _change(
        self, request: gr.Request, job_id: str | None, chosen: int, change: Callable[[str], Job], told: str
    ) -> list[Update]:
        """The run after `change`: [timer, *drawn]."""
        if await self._viewer(request) is None or not job_id:
            return self._nothing(1 + DRAWN)
        language = language_of(request)
        try:
            job = await asyncio.to_thread(change, job_id)
        except BianlianError as error:
            gr.Warning(error.message)
            return self._nothing(1 + DRAWN)
        if run_html.is_live(job):
            gr.Info(say(language, told))
        return [gr.Timer(LIVE_S, active=True), *await self.view.draw(job_id, int(chosen), "", language)]

    async def ask(self, request: gr.Request, job_id: str | None, chosen: int) -> AsyncIterator[list[Update]]:
        """Every snapshot answers what it has not answered: [ask, answers, publishing]."""
        viewer = await self._viewer(request)
        if viewer is None or not job_id:
            yield self._nothing(3)
            return
        yield [gr.Button(interactive=False), *self._nothing(2)]
        try:
            await self.services.probes.probe(job_id, key=viewer)
        except BianlianError as error:
            gr.Warning(error.message)
            yield [gr.Button(interactive=True), *self._nothing(2)]
            return
        answered = await self.view.answers(job_id, int(chosen), language_of(request))
        yield [gr.Button(interactive=True, visible=False), *answered]

    async def publish(self, request: gr.Request, job_id: str | None, chosen: int, name: str) -> str:
        """The snapshot that is shown becomes a version of `name`; what came of it, as HTML."""
        if await self._viewer(request) is None or not job_id:
            return ""
        language = language_of(request)
        try:
            step = await asyncio.to_thread(self.view.step_at, job_id, int(chosen))
            if step is None:
                return f'<div class="tr-trouble" role="alert">{say(language, "choose_snapshot")}</div>'
            published = await self.services.publish_snapshot(snapshot_id(job_id, step), (name or "").strip())
        except BianlianError as error:
            return f'<div class="tr-trouble" role="alert">{escape(error.message)}</div>'
        version = str(published.version)
        line = say(language, "published" if published.new else "published_same", version=version)
        chat = say(language, "chat_result", name=version)
        return (
            f'<div class="tr-verdict good" role="status">✓ {escape(line)}</div><div class="tr-links">'
            f'<a class="first" href="{escape(link_to("chat", model=version))}">{escape(chat)}</a></div>'
        )
