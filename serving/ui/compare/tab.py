"""The Compare tab: lays the widgets out and says which event runs which handler.

All lanes come from one generator: Gradio runs listeners of one click one after another, so a listener a lane would
show the second answer after the first."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from adapters.ui.tab import ViewerOf
from adapters.ui.words import language_of
from serving.chat import random_seed
from serving.comparisons import Comparisons
from serving.ui.compare.asking import Asking
from serving.ui.compare.lanes import MIN_LANES, Updates, choosing, with_another
from serving.ui.compare.reading import Reading
from serving.ui.compare.updates import PageUpdates
from serving.ui.compare.widgets import CompareWidgets, lay_out
from serving.ui.compare.words import say

_QUIET = {"api_visibility": "private", "show_progress": "hidden"}

# The address names the comparison on screen, so that a reload finds it; it is also what is given away.
_ADDRESS = """(id) => {
  const address = new URL(location.href);
  const named = address.searchParams.get('comparison') || '';
  address.searchParams.delete('comparison');
  address.searchParams.delete('models');
  if (id) { address.searchParams.set('tab', 'compare'); address.searchParams.set('comparison', id); }
  if (id || named) history.replaceState(history.state, '', address);
  return id ? location.origin + location.pathname + '?tab=compare&comparison=' + id : '';
}"""


def compare_tab(comparisons: Comparisons, viewer_of: ViewerOf, page: gr.Blocks) -> None:
    widgets = lay_out(comparisons.chat)
    updates = PageUpdates(comparisons, widgets)
    _wire_questions(widgets, Asking(updates, viewer_of), Reading(updates, viewer_of), page)
    _wire_lanes(widgets, updates)


def _wire_questions(widgets: CompareWidgets, asking: Asking, reading: Reading, page: gr.Blocks) -> None:
    bar, row, kept = widgets.toolbar, widgets.asking, widgets.kept
    question, settings, out = row.question, widgets.settings, widgets.outputs
    models = [lane.model for lane in widgets.lanes]

    def suggest(request: gr.Request, slots: list[int], *models: str) -> gr.Dataset:
        on_screen = [models[slot] for slot in slots]
        return gr.Dataset(samples=[[text] for text in asking.samples(on_screen, language_of(request))])

    viewed = [widgets.comparison, bar.view, bar.base_prompt]
    for asked in (
        gr.on([row.send.click, question.submit], asking.ask, [question, *settings], out, **_QUIET),
        row.samples.click(asking.ask, [row.samples, *settings], out, **_QUIET),
        bar.sweep.click(asking.sweep, [question, *settings], out, **_QUIET),
        bar.ablation.click(asking.ablation, [question, *settings], out, **_QUIET),
        page.load(reading.open, models, out, **_QUIET),
    ):
        asked.success(reading.change_view, viewed, out, **_QUIET)  # the one that is chosen when the answers are there
        asked.failure(asking.page.idle, None, out, **_QUIET)
    replayed = kept.replay.click(reading.replay, widgets.comparison, out, **_QUIET)
    replayed.failure(asking.page.idle, None, out, **_QUIET)
    row.stop.click(asking.stop, widgets.comparison, None, queue=False, **_QUIET)
    row.stop.click(reading.stop_replay, None, None, queue=False, **_QUIET)
    gr.on(
        [bar.view.input, bar.base_prompt.input],
        reading.change_view,
        viewed,
        out,
        trigger_mode="always_last",  # who changes the view again while it is being drawn means the last one
        **_QUIET,
    )
    row.new.click(reading.new, None, out, queue=False, **_QUIET)
    kept.delete.click(reading.delete, widgets.comparison, out, queue=False, **_QUIET)
    widgets.comparison.change(None, widgets.comparison, kept.link, js=_ADDRESS, **_QUIET)
    row.dice.click(random_seed, None, row.seed, queue=False, **_QUIET)
    changes = [widgets.slots.change, *(model.change for model in models)]
    gr.on([page.load, *changes], suggest, [widgets.slots, *models], row.samples, **_QUIET)


def _wire_lanes(widgets: CompareWidgets, updates: PageUpdates) -> None:
    chat = updates.comparisons.chat

    def add(slots: list[int]) -> Updates:
        return updates.lanes_on_screen(with_another(slots))

    def remove(slot: int) -> Callable[[gr.Request, list[int]], Updates]:
        def remove_it(request: gr.Request, slots: list[int]) -> Updates:
            if len(slots) <= MIN_LANES or slot == 0:
                gr.Warning(say(language_of(request), "too_few"))
                return updates.nothing()
            return updates.lanes_on_screen([each for each in slots if each != slot])

        return remove_it

    def refresh(request: gr.Request, model: str) -> Any:
        return choosing(chat, model, language_of(request))

    widgets.toolbar.add.click(add, widgets.slots, widgets.outputs, queue=False, **_QUIET)
    for slot, lane in enumerate(widgets.lanes):
        lane.remove.click(remove(slot), widgets.slots, widgets.outputs, queue=False, **_QUIET)
        lane.model.focus(refresh, lane.model, lane.model, **_QUIET)
