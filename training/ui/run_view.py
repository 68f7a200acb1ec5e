"""A run on screen: where it stands, its curves, its timeline of snapshots, and what can be done with it.

Everything is read from the run's directory whenever it is drawn, so that any page, whenever and wherever it is opened,
shows the same. `stamp` goes to the page and back: nothing is drawn again that has not changed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from adapters.errors import BianlianError
from adapters.snapshots import RunSnapshots
from adapters.ui.words import Language
from training.jobs.progress import RunProgress, read_progress, stamp_of
from training.jobs.queue import RESUMABLE, STOPPABLE, Job, JobQueue, is_supervised
from training.ui import run_html
from training.ui.services import ProbeRow, Probes, TrainServices
from training.ui.words import t

Update = Any  # what a handler gives a component: its value, or gr.update(...)
DRAWN = 11  # widgets that are drawn


@dataclass(frozen=True)
class RunWidgets:
    column: gr.Column
    head: gr.HTML
    pause: gr.Button
    resume: gr.Button
    cancel: gr.Button
    charts: gr.HTML
    snapshot: gr.Slider
    answers: gr.HTML
    ask: gr.Button
    publishing: gr.Row
    publish_name: gr.Textbox
    publish: gr.Button
    published: gr.HTML
    details: gr.HTML
    stamp: gr.Textbox

    @property
    def drawn(self) -> list[Any]:
        """In the order of `RunView.draw`."""
        buttons = [self.pause, self.resume, self.cancel]
        timeline = [self.snapshot, self.answers, self.ask, self.publishing]
        return [self.head, *buttons, self.charts, *timeline, self.details, self.stamp]


def lay_out() -> RunWidgets:
    with gr.Column(visible=False, elem_id="train-run") as column:
        head = gr.HTML("", elem_id="train-head", padding=False)
        with gr.Row():
            pause = gr.Button(t("pause"), size="sm", min_width=90, scale=0, elem_id="train-pause")
            resume = gr.Button(t("resume"), size="sm", min_width=90, scale=0, elem_id="train-resume")
            cancel = gr.Button(t("cancel"), size="sm", min_width=90, scale=0, elem_id="train-cancel")
        charts = gr.HTML("", elem_id="train-charts", padding=False)
        with gr.Column(elem_classes=["tr-panel"], elem_id="train-timeline"):
            gr.HTML(f'<div class="tr-h">{t("watch")}</div>', padding=False)
            snapshot = gr.Slider(
                0,
                1,
                0,
                step=1,
                precision=0,
                label=t("snapshot"),
                info=t("snapshot_info"),
                buttons=[],
                visible=False,
                elem_id="train-snapshot",
            )
            answers = gr.HTML("", elem_id="train-answers", padding=False)
            ask = gr.Button(t("ask"), size="sm", visible=False, elem_id="train-ask")
            with gr.Row(visible=False, equal_height=True) as publishing:
                name = gr.Textbox(
                    label=t("publish_name"),
                    placeholder=t("publish_hint"),
                    max_lines=1,
                    min_width=200,
                    elem_id="train-publish-name",
                )
                publish = gr.Button(t("publish"), min_width=110, scale=0, elem_id="train-publish")
            published = gr.HTML("", elem_id="train-published", padding=False)
        with gr.Accordion(t("details"), open=False, elem_id="train-details"):
            details = gr.HTML("", padding=False)
    stamp = gr.Textbox("", label=t("chosen_run"), visible="hidden", elem_id="train-stamp")
    widgets = RunWidgets(
        column,
        head,
        pause,
        resume,
        cancel,
        charts,
        snapshot,
        answers,
        ask,
        publishing,
        name,
        publish,
        published,
        details,
        stamp,
    )
    assert len(widgets.drawn) == DRAWN
    return widgets


class RunView:
    def __init__(self, services: TrainServices):
        self.services = services
        self.queue: JobQueue = services.tuning.queue
        self.probes: Probes = services.probes
        self.base = next(iter(services.tuning.bases))

    def jobs(self) -> list[Job]:
        """Newest first. Reads the disk."""
        return list(reversed(self.queue.all()))

    async def draw(self, job_id: str, chosen: int, stamp: str, language: Language) -> list[Update]:
        """The run, as RunWidgets.drawn. `chosen` and `stamp` are what the page has: a timeline that stood at its end
        stays there as it grows. Raises NotFound for a run that was deleted."""
        return await asyncio.to_thread(self._draw, job_id, chosen, stamp, language)

    def _draw(self, job_id: str, chosen: int, stamp: str, language: Language) -> list[Update]:
        job = self.queue.get(job_id)
        waiting = [other.id for other in self.queue.all() if other.status.state in ("validating", "queued")]
        place = waiting.index(job_id) + 1 if job_id in waiting else None
        run = read_progress(job)
        count = len(run.snapshots)
        now = f"{count} {job_id} {language} {place} {stamp_of(job)}"
        if now == stamp:
            return [gr.skip()] * DRAWN
        chosen = _follow(chosen, stamp, job_id, count)
        answers, overdue = self._timeline(run, chosen, language)
        state = job.status.state
        resumable = state in RESUMABLE and not (job.status.code or "").startswith("invalid_")
        return [
            run_html.head(run, self.base, place, place is None or is_supervised(self.queue.root), language),
            gr.Button(visible=state in STOPPABLE and state != "paused"),
            gr.Button(visible=resumable),
            gr.Button(visible=state in STOPPABLE),
            run_html.charts(run, language),
            gr.Slider(maximum=max(1, count), value=chosen, visible=count > 0),
            answers,
            gr.Button(visible=overdue),
            gr.Row(visible=chosen > 0),
            run_html.details(run, language),
            now,
        ]

    async def answers(self, job_id: str, chosen: int, language: Language) -> list[Update]:
        """[answers, publishing] at another place of the timeline."""

        def read() -> list[Update]:
            run = read_progress(self.queue.get(job_id))
            number = min(chosen, len(run.snapshots))
            return [self._timeline(run, number, language)[0], gr.Row(visible=number > 0)]

        return await asyncio.to_thread(read)

    def step_at(self, job_id: str, chosen: int) -> int | None:
        """The step of snapshot number `chosen`, from 1; None for the base. Reads the disk."""
        steps = RunSnapshots(self.queue.get(job_id).journal.directory).steps()
        return steps[min(chosen, len(steps)) - 1] if chosen and steps else None

    def _timeline(self, run: RunProgress, chosen: int, language: Language) -> tuple[str, bool]:
        """What is answered at `chosen`, and whether an answer is missing that nobody is about to give: the server asks
        each snapshot as it appears, and none from before it was started."""
        rows: Sequence[ProbeRow] = ()
        if run.snapshots:
            try:
                rows = self.probes.kept(run.job.id).rows
            except BianlianError as error:
                return f'<div class="tr-trouble" role="alert">{escape(error.message)}</div>', False
        wanted = set(run.snapshots[:-1] if run_html.is_live(run.job) else run.snapshots)
        answered = [{cell.step for cell in row.cells} for row in rows] or [set[int]()]
        overdue = any(not wanted <= steps for steps in answered)
        return run_html.answers(run, self.base, rows, chosen, language), overdue


def _follow(chosen: int, stamp: str, job_id: str, count: int) -> int:
    """Where the timeline stands now: at its end, if it is another run's or stood there."""
    before, _, rest = stamp.partition(" ")
    if not rest.startswith(f"{job_id} ") or not before.isdecimal():
        return count
    return count if chosen >= int(before) else min(chosen, count)
