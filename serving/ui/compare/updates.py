"""Pieces of updates, by widget, that several handlers need."""

from collections.abc import Collection, Mapping, Sequence

import gradio as gr

from adapters.errors import BianlianError
from adapters.ui.tab import Viewer
from adapters.ui.words import Language
from serving.compare import MAX_LANES, Lane
from serving.comparison_store import SavedComparison
from serving.comparisons import Comparisons
from serving.ui.compare import drawing
from serving.ui.compare.lanes import Updates, set_up, shown
from serving.ui.compare.widgets import CompareWidgets
from serving.ui.stats import NO_STATS


class PageUpdates:
    def __init__(self, comparisons: Comparisons, widgets: CompareWidgets):
        self.comparisons = comparisons
        self.widgets = widgets

    def nothing(self) -> Updates:
        """A sign of life; an empty dictionary would be no answer."""
        return {self.widgets.asking.question: gr.skip()}

    def busy(self, running: bool = True) -> Updates:
        """What can be clicked while answers are on their way."""
        asking, toolbar, kept = self.widgets.asking, self.widgets.toolbar, self.widgets.kept
        waits = (asking.new, toolbar.sweep, toolbar.ablation, kept.replay, kept.delete)
        return {
            asking.send: gr.Button(visible=not running),
            asking.stop: gr.Button(visible=running),
            **{button: gr.Button(interactive=not running) for button in waits},
        }

    def idle(self) -> Updates:
        return self.busy(False)

    def notice(self, html: str = "") -> Updates:
        """What is said under the lanes; without it there is no gap either."""
        return {self.widgets.notice: gr.HTML(html, visible=bool(html))}

    def lanes_on_screen(self, slots: Sequence[int]) -> Updates:
        return {
            **shown(self.widgets.lanes, slots),
            self.widgets.slots: list(slots),
            self.widgets.toolbar.add: gr.Button(interactive=len(slots) < MAX_LANES),
        }

    def lanes_set_up(self, lanes: Mapping[int, Lane], language: Language) -> Updates:
        return {
            **self.lanes_on_screen(sorted(lanes)),
            **set_up(self.widgets.lanes, lanes, self.comparisons.chat, language),
        }

    def drawn(self, saved: SavedComparison, slots: Collection[int], language: Language, *, running: bool) -> Updates:
        """Logs and figures of these lanes, as answers."""
        updates: Updates = {}
        for slot in slots:
            lane = self.widgets.lanes[slot]
            updates[lane.log] = gr.Chatbot(drawing.bubbles(saved, slot, language), visible=True)
            updates[lane.stats] = drawing.stats(saved.turns[-1], slot, saved.base_name, language, running=running)
        return updates

    def emptied(self) -> Updates:
        """Lanes that have said nothing."""
        lanes = self.widgets.lanes
        logs = {lane.log: gr.Chatbot([], visible=True) for lane in lanes}
        return {**logs, **{lane.stats: NO_STATS for lane in lanes}}

    def as_answers(self) -> Updates:
        lanes = self.widgets.lanes
        return {
            **{lane.log: gr.Chatbot(visible=True) for lane in lanes},
            **{lane.panel: gr.HTML("", visible=False) for lane in lanes},
        }

    def as_panels(self, html_by_slot: Mapping[int, str]) -> Updates:
        updates: Updates = {}
        for slot, text in html_by_slot.items():
            updates[self.widgets.lanes[slot].log] = gr.Chatbot(visible=False)
            updates[self.widgets.lanes[slot].panel] = gr.HTML(text, visible=True)
        return updates

    def kept(self, viewer: Viewer, saved: SavedComparison) -> Updates:
        """What can be done with a comparison by who looks at it."""
        mine = viewer.admin or viewer.key == saved.key
        return {
            self.widgets.kept.row: gr.Row(visible=True),
            self.widgets.kept.delete: gr.Button(visible=mine),
        }

    async def recent(self, viewer: Viewer, language: Language) -> Updates:
        store = self.comparisons.store
        try:
            found = await store.database.call(store.recent, None if viewer.admin else viewer.key)
        except BianlianError as error:
            return {self.widgets.kept.recent: drawing.notice(error.message, "bad")}
        return {self.widgets.kept.recent: drawing.recent_list(found, viewer.key, language)}
