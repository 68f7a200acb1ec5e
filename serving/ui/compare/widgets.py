"""Where everything is in the Compare tab."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from serving.chat import ChatService, random_seed
from serving.compare import MAX_LANES
from serving.ui.compare.lanes import MIN_LANES, LaneWidgets, lane_column
from serving.ui.compare.words import t
from serving.ui.question import question_row
from serving.ui.sampling import sampling_drawer
from serving.ui.texts import t as common


@dataclass(frozen=True)
class Toolbar:
    add: gr.Button
    sweep: gr.Button
    ablation: gr.Button
    view: gr.Radio
    base_prompt: gr.Radio


@dataclass(frozen=True)
class Asking:
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    new: gr.Button
    samples: gr.Dataset
    seed: gr.Number
    dice: gr.Button
    drawer: list[gr.Component]


@dataclass(frozen=True)
class Kept:
    """What can be done with a comparison that the server keeps."""

    row: gr.Row
    link: gr.Textbox
    replay: gr.Button
    delete: gr.Button
    recent: gr.HTML


@dataclass(frozen=True)
class CompareWidgets:
    comparison: gr.Textbox  # the id of the comparison on screen, "" for none yet; never seen
    slots: gr.CheckboxGroup  # the lanes on screen; never seen
    toolbar: Toolbar
    lanes: list[LaneWidgets]
    notice: gr.HTML
    asking: Asking
    kept: Kept

    @property
    def settings(self) -> list[gr.Component]:
        """What `Chosen.read` reads."""
        lanes = [each for lane in self.lanes for each in lane.inputs]
        return [self.comparison, self.slots, self.asking.seed, *self.asking.drawer, *lanes]

    @property
    def outputs(self) -> list[Any]:
        """Everything that an update may change."""
        toolbar, asking, kept = self.toolbar, self.asking, self.kept
        return [
            self.comparison,
            self.slots,
            self.notice,
            *(getattr(toolbar, name) for name in ("add", "sweep", "ablation", "view", "base_prompt")),
            *(getattr(asking, name) for name in ("question", "send", "stop", "new", "samples")),
            *(getattr(kept, name) for name in ("row", "replay", "delete", "recent")),
            *(widget for lane in self.lanes for widget in vars(lane).values()),
        ]


def lay_out(chat: ChatService) -> CompareWidgets:
    comparison = gr.Textbox("", visible="hidden", label=t("comparison"), elem_id="compare-id")
    slots = gr.CheckboxGroup(
        list(range(MAX_LANES)),
        value=list(range(MIN_LANES)),
        visible="hidden",
        label=t("slots"),
        elem_id="compare-slots",
    )
    toolbar = _toolbar()
    with gr.Row(elem_id="compare-lanes"):
        lanes = [lane_column(chat, slot) for slot in range(MAX_LANES)]
    notice = gr.HTML("", visible=False, elem_id="compare-notice", padding=False)
    asking = _asking(chat)
    return CompareWidgets(comparison, slots, toolbar, lanes, notice, asking, _kept())


def _toolbar() -> Toolbar:
    with gr.Row(elem_id="compare-toolbar"):
        add = gr.Button(t("add_lane"), size="sm", scale=0, min_width=110, elem_id="compare-add")
        sweep = gr.Button(t("sweep"), size="sm", scale=0, min_width=230, elem_id="compare-sweep")
        ablation = gr.Button(t("ablation"), size="sm", scale=0, min_width=150, elem_id="compare-ablation")
        view = gr.Radio(
            [(t(f"view_{name}"), name) for name in ("answers", "diff", "tokens")],
            value="answers",
            label=t("view"),
            show_label=False,
            container=False,
            min_width=320,
            elem_id="compare-view",
        )
    base_prompt = gr.Radio(
        [(t("base_same"), "same"), (t("base_own"), "own")],
        value="same",
        label=t("base_prompt"),
        show_label=False,
        visible=False,
        container=False,
        elem_id="compare-base-prompt",
    )
    return Toolbar(add, sweep, ablation, view, base_prompt)


def _asking(chat: ChatService) -> Asking:
    with gr.Row(equal_height=True):
        question, send, stop = question_row("compare", "compare_hint")
        new = gr.Button(t("new"), scale=1, min_width=90, elem_id="compare-clear")
    with gr.Row():
        samples = gr.Dataset(
            components=[gr.Textbox(visible=False)],
            samples=[],
            label=common("examples"),
            elem_id="compare-samples",
            scale=5,
            min_width=300,
        )
        seed = gr.Number(random_seed, label=t("seed_shared"), precision=0, scale=2, min_width=180, elem_id="seed")
        dice = gr.Button(t("dice"), scale=1, min_width=90, elem_id="dice")
    with gr.Accordion(common("sampling"), open=False):
        drawer = sampling_drawer(chat)
    return Asking(question, send, stop, new, samples, seed, dice, drawer)


def _kept() -> Kept:
    with gr.Row(visible=False, elem_id="compare-kept") as row:
        link = gr.Textbox(
            "",
            label=t("link"),
            interactive=False,
            buttons=["copy"],
            max_lines=1,
            scale=6,
            min_width=240,
            elem_id="compare-link",
        )
        replay = gr.Button(t("replay"), scale=1, min_width=180, elem_id="compare-replay")
        delete = gr.Button(t("delete"), scale=0, min_width=80, elem_id="compare-delete")
    with gr.Accordion(t("recent"), open=False, elem_id="compare-recent"):
        recent = gr.HTML("", padding=False)
    return Kept(row, link, replay, delete, recent)
