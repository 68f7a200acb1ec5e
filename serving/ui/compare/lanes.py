"""A lane on the page: which model, how strong, under which system prompt, and where its answer appears.

All lanes that there may be are laid out at once; those in use are shown. A lane keeps its place, and with it its letter
and colour, while others come and go. The first stays, because the others are compared with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from adapters.errors import BianlianError
from adapters.ui.words import Language
from serving.chat import MAX_SCALE, ChatService
from serving.compare import MAX_LANES, Lane
from serving.comparison_store import SavedLane
from serving.ui.compare.panels import view_panel
from serving.ui.compare.words import say, t
from serving.ui.models import choices, first_adapter, picker
from serving.ui.stats import NO_STATS
from serving.ui.texts import t as common

MIN_LANES = 2
VALUES_A_LANE = 4  # what `LaneWidgets.inputs` sends

Updates = dict[Any, Any]  # a component → its value, or gr.update(...)


@dataclass(frozen=True)
class LaneWidgets:
    column: gr.Column
    model: gr.Dropdown
    strength: gr.Slider
    remove: gr.Button
    system: gr.Textbox
    bare: gr.Checkbox
    log: gr.Chatbot
    panel: gr.HTML
    stats: gr.HTML

    @property
    def inputs(self) -> list[gr.Component]:
        return [self.model, self.strength, self.system, self.bare]


def lane_column(chat: ChatService, slot: int) -> LaneWidgets:
    """Lane A starts with the base, the others with the first adapter; two are on screen at first. The panel takes the
    log's place in the other views."""
    name = f"lane-{slot}"
    with gr.Column(visible=slot < MIN_LANES, min_width=300, elem_id=name, elem_classes=["lane", name]) as column:
        with gr.Row():
            model = picker(chat, chat.base.name if slot == 0 else first_adapter(chat), f"{name}-model")
            strength = gr.Slider(
                -MAX_SCALE,
                MAX_SCALE,
                1,
                step=0.05,
                label=common("strength"),
                min_width=190,
                scale=2,
                elem_id=f"{name}-strength",
            )
        with gr.Row():
            with gr.Accordion(common("system"), open=False):
                system = gr.Textbox(
                    show_label=False,
                    label=common("system"),
                    placeholder=common("system_default"),
                    lines=2,
                    max_lines=6,
                    container=False,
                )
                bare = gr.Checkbox(False, label=t("bare"), container=False, elem_id=f"{name}-bare")
            remove = gr.Button(
                t("remove_lane"),
                size="sm",
                scale=0,
                min_width=64,
                visible=slot > 0,
                interactive=slot >= MIN_LANES,
                elem_id=f"{name}-remove",
                elem_classes="lane-remove",
            )
        log = gr.Chatbot(
            label=t(f"lane_{slot}"),
            placeholder=t("empty"),
            height="42vh",
            min_height=300,
            buttons=["copy", "copy_all"],
            layout="bubble",
            elem_id=f"{name}-log",
        )
        panel = view_panel(name)
        stats = gr.HTML(NO_STATS, elem_id=f"{name}-stats", padding=False)
    bare.change(
        lambda none: gr.Textbox(interactive=not none),
        bare,
        system,
        queue=False,
        api_visibility="private",
        show_progress="hidden",
    )
    return LaneWidgets(column, model, strength, remove, system, bare, log, panel, stats)


def lane_from(model: str | None, strength: float, system: str | None, bare: bool) -> Lane:
    """What the lane's widgets say."""
    return Lane(model or "", float(strength), "" if bare else (system or "").strip() or None)


def lanes_from(slots: Sequence[int], values: Sequence[Any]) -> dict[int, Lane]:
    """By slot, of all lanes' inputs one after another."""
    return {slot: lane_from(*values[slot * VALUES_A_LANE : (slot + 1) * VALUES_A_LANE]) for slot in sorted(slots)}


def shown(widgets: Sequence[LaneWidgets], slots: Sequence[int]) -> Updates:
    """These lanes on screen and no others. None can be removed when there are only as few as there must be."""
    removable = len(slots) > MIN_LANES
    updates: Updates = {}
    for slot, lane in enumerate(widgets):
        updates[lane.column] = gr.Column(visible=slot in slots)
        updates[lane.remove] = gr.Button(visible=slot > 0, interactive=removable)
    return updates


def set_up(widgets: Sequence[LaneWidgets], lanes: Mapping[int, Lane], chat: ChatService, language: Language) -> Updates:
    """These lanes on screen with these settings."""
    updates = shown(widgets, list(lanes))
    for slot, lane in lanes.items():
        own = widgets[slot]
        updates[own.model] = choosing(chat, lane.model, language)
        updates[own.strength] = lane.scale
        updates[own.system] = gr.Textbox(value=lane.system or "", interactive=lane.system != "")
        updates[own.bare] = lane.system == ""
    return updates


def choosing(chat: ChatService, model: str | None, language: Language) -> gr.Dropdown:
    """The picker with what is offered now and `model` chosen. A version that no name means now is added; so is one that
    is gone, as such, and asking it says why."""
    model = chat.base.name if not model or chat.is_base(model) else model
    offered = choices(chat, language)
    if model not in [each for _, each in offered]:
        try:
            offered = [*offered, (str(chat.registry.resolve(model)), model)]
        except BianlianError:
            offered = [*offered, (say(language, "gone", model=model), model)]
    return gr.Dropdown(choices=offered, value=model)


def with_another(slots: Sequence[int]) -> list[int]:
    """The slots with the first free one; as they are when all are taken."""
    free = [slot for slot in range(MAX_LANES) if slot not in slots]
    return sorted([*slots, *free[:1]])


def lanes_of(saved: Sequence[SavedLane]) -> dict[int, Lane]:
    """The lanes as they were asked."""
    return {lane.slot: lane.lane(lane.model) for lane in saved}
