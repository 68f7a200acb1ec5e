"""The Train tab: drop a file, look at what is in it, start, and watch the run learn.

At its side the runs there are, beside them either the form of a new one or the run that was chosen. The address says
which, so that a reload shows the same; a clock on the page looks for what has changed, and stands while the page or the
tab is hidden."""

from typing import Any

import gradio as gr

from adapters.ui.tab import Tab
from training.ui import new_run, run_view
from training.ui.desk import LIVE_S, Desk
from training.ui.new_run import NewRunWidgets
from training.ui.run_view import RunWidgets
from training.ui.services import TrainServices
from training.ui.style import CSS
from training.ui.words import WORDS, t

_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# The address of what is shown, without leaving the page.
_ADDRESS = """(value) => {{ const url = new URL(location.href);
  if (value) {{ url.searchParams.set('tab', 'train'); url.searchParams.set('{name}', value);
    {forget} }} else url.searchParams.delete('{name}');
  history.replaceState(history.state, '', url); }}"""


def training_tab(services: TrainServices) -> Tab:
    return Tab("train", WORDS, lambda page: _build(services, page), CSS)


def _build(services: TrainServices, page: gr.Blocks) -> None:
    notice = gr.HTML("", elem_id="train-notice", padding=False)
    tab = notice.parent
    with gr.Row(elem_id="train-body") as body:
        with gr.Column(scale=1, min_width=230, elem_id="train-side"):
            new = gr.Button(t("new"), variant="secondary", elem_id="train-new")
            runs = gr.Radio([], label=t("runs"), visible=False, elem_id="train-runs")
            empty = gr.HTML("", padding=False)
        with gr.Column(scale=4, min_width=300):
            form = new_run.lay_out(services)
            run = run_view.lay_out()
    listed = gr.Textbox("", label=t("runs"), visible="hidden", elem_id="train-listed")
    timer = gr.Timer(LIVE_S, active=False)
    lists = [runs, empty, timer, listed]
    desk = Desk(services, [widget.value for widget in form.form.widgets])
    arrived = [notice, body, *lists, form.column, run.column, *form.form.widgets, *run.drawn]
    page.load(desk.arrive, None, arrived, **_QUIET)
    if isinstance(tab, gr.Tab):
        tab.select(desk.open, [runs, form.form.file], [*lists, *form.form.widgets], **_QUIET)
        _rest_while_hidden(tab, timer)
    shown = [form.column, run.column, run.published, *run.drawn]
    timer.tick(desk.refresh, [runs, listed, run.snapshot, run.stamp], [*lists, *run.drawn], **_QUIET)
    runs.input(desk.show, runs, shown, **_QUIET)
    runs.change(None, runs, None, js=_ADDRESS.format(name="job", forget="url.searchParams.delete('file');"))
    new.click(desk.begin, form.form.file, [runs, form.column, run.column, *form.form.widgets], **_QUIET)
    _wire_form(desk, form, [*lists, *shown])
    _wire_run(desk, run, runs, timer)


def _rest_while_hidden(tab: gr.Tab, timer: gr.Timer) -> None:
    """No looking for changes while another tab is shown."""
    tabs = tab.parent
    if isinstance(tabs, gr.Tabs):

        def rest(chosen: gr.SelectData) -> Any:
            here = tabs.children[chosen.index] is tab if isinstance(chosen.index, int) else False
            return gr.skip() if here else gr.Timer(active=False)

        tabs.select(rest, None, timer, queue=False, **_QUIET)


def _wire_form(desk: Desk, widgets: NewRunWidgets, started: list[Any]) -> None:
    form = widgets.form
    widgets.upload.upload(desk.uploaded, widgets.upload, [widgets.upload, form.file], **_QUIET)
    form.file.change(None, form.file, None, js=_ADDRESS.format(name="file", forget="url.searchParams.delete('job');"))
    form.file.change(desk.name_it, [form.file, form.name], form.name, queue=False, **_QUIET)
    # Boxes are looked at when they are left, not at every key.
    changes = [widget.blur if isinstance(widget, (gr.Textbox, gr.Number)) else widget.input for widget in form.settings]
    gr.on([form.file.change, *changes], desk.examine, form.widgets, widgets.found, trigger_mode="always_last", **_QUIET)
    gr.on([form.name.change, form.questions.blur], desk.keep, form.widgets, None, trigger_mode="always_last", **_QUIET)
    widgets.start.click(desk.start, form.widgets, [widgets.start, widgets.estimate, *started], **_QUIET).failure(
        lambda: gr.Button(interactive=True), None, widgets.start, **_QUIET
    )


def _wire_run(desk: Desk, run: RunWidgets, runs: gr.Radio, timer: gr.Timer) -> None:
    where = [runs, run.snapshot]
    for button, change in ((run.pause, desk.pause), (run.resume, desk.resume), (run.cancel, desk.cancel)):
        button.click(change, where, [timer, *run.drawn], **_QUIET)
    run.snapshot.input(
        desk.turn, where, [run.answers, run.publishing, run.published], trigger_mode="always_last", **_QUIET
    )
    run.ask.click(desk.ask, where, [run.ask, run.answers, run.publishing], **_QUIET)
    gr.on(
        [run.publish.click, run.publish_name.submit],
        desk.publish,
        [*where, run.publish_name],
        run.published,
        **_QUIET,
    )
