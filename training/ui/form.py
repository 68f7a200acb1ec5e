"""The form of a new run: the few plain questions, and behind them every knob there is. What it holds, as `Choices`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import gradio as gr

from adapters.errors import Invalid
from training.choices import EPOCHS, STRENGTHS, Choices
from training.config import Initialisation, Method, Objective, Schedule, TrainConfig
from training.ui.words import LABELS, t


@dataclass(frozen=True)
class Knob:
    """A field of TrainConfig behind the drawer. Numbers and texts are empty for `auto`."""

    name: str
    kind: Literal["whole", "number", "text", "choice", "flag"]
    choices: tuple[str, ...] = ()


_KNOBS: tuple[tuple[Knob, ...], ...] = (
    (Knob("method", "choice", get_args(Method)), Knob("epochs", "whole"), Knob("max_steps", "whole")),
    (
        Knob("lora_r", "whole"),
        Knob("lora_alpha", "whole"),
        Knob("lora_dropout", "number"),
        Knob("targets", "text"),
        Knob("init", "choice", get_args(Initialisation)),
    ),
    (
        Knob("learning_rate", "number"),
        Knob("schedule", "choice", get_args(Schedule)),
        Knob("warmup", "number"),
        Knob("weight_decay", "number"),
        Knob("neftune_alpha", "number"),
    ),
    (
        Knob("batch_size", "whole"),
        Knob("micro_batch_size", "whole"),
        Knob("max_length", "whole"),
        Knob("beta", "number"),
        Knob("seed", "whole"),
    ),
    (
        Knob("val_split", "number"),
        Knob("eval_steps", "whole"),
        Knob("early_stopping", "whole"),
        Knob("snapshot_steps", "whole"),
    ),
    (Knob("mask_history", "flag"), Knob("use_rslora", "flag"), Knob("use_dora", "flag")),
)
KNOBS = tuple(knob for row in _KNOBS for knob in row)


@dataclass(frozen=True)
class Form:
    """Widgets of a new run, in the order of their values."""

    file: gr.Dropdown
    name: gr.Textbox
    length: gr.Radio
    strength: gr.Radio
    system: gr.Textbox
    questions: gr.Textbox
    model: gr.Dropdown
    objective: gr.Dropdown
    advanced: tuple[Any, ...]  # one for each of KNOBS

    @property
    def widgets(self) -> list[Any]:
        return [*(getattr(self, field.name) for field in fields(self) if field.name != "advanced"), *self.advanced]

    @property
    def settings(self) -> list[Any]:
        """Those that change what a check finds."""
        return [widget for widget in self.widgets if widget not in (self.file, self.name, self.questions)]


def choices_of(values: Sequence[Any]) -> Choices:
    """What the widgets hold. Raises Invalid for a number that is none."""
    file, name, length, strength, system, questions, model, objective, *advanced = values
    return Choices(
        file=file or "",
        model=model or "",
        name=name or "",
        length=length,
        strength=strength,
        system=system or "",
        questions=questions or "",
        objective=objective,
        advanced={knob.name: _value(knob, value) for knob, value in zip(KNOBS, advanced, strict=True)},
    )


# Of the other numbers, 0 is no value and means auto, as an empty box does.
_MAY_BE_ZERO = ("lora_dropout", "warmup", "weight_decay", "val_split", "snapshot_steps", "seed")


def _value(knob: Knob, value: Any) -> Any:
    if knob.kind in ("whole", "number") and value == 0 and knob.name not in _MAY_BE_ZERO:
        return None
    if knob.kind == "whole" and isinstance(value, float):
        if not value.is_integer():
            raise Invalid(f"{knob.name} is a whole number, not {value:g}", param=knob.name)
        return int(value)
    if knob.kind == "text":
        return tuple(part.strip() for part in (value or "").split(",") if part.strip())
    return value


def settings_form(models: Sequence[str], file: gr.Dropdown) -> Form:
    """Lays out everything but the file, which stands above."""
    with gr.Row():
        name = gr.Textbox(label=t("name"), info=t("name_info"), max_lines=1, min_width=220, elem_id="train-name")
        length = gr.Radio(
            [(t(f"length_{value}"), value) for value in EPOCHS],
            value="normal",
            label=t("length"),
            info=t("length_info"),
            min_width=260,
            scale=2,
            elem_id="train-length",
        )
        strength = gr.Radio(
            [(t(f"strength_{value}"), value) for value in STRENGTHS],
            value="normal",
            label=t("strength"),
            info=t("strength_info"),
            min_width=260,
            scale=2,
            elem_id="train-strength",
        )
    with gr.Row():
        system = gr.Textbox(
            label=t("system"),
            info=t("system_info"),
            placeholder=t("system_hint"),
            lines=2,
            max_lines=6,
            min_width=280,
            elem_id="train-system",
        )
        questions = gr.Textbox(
            label=t("questions"),
            info=t("questions_info"),
            placeholder=t("questions_hint"),
            lines=2,
            max_lines=8,
            min_width=280,
            elem_id="train-questions",
        )
    with gr.Accordion(t("advanced"), open=False, elem_id="train-advanced"):
        with gr.Row():
            model = gr.Dropdown(list(models), value=models[0], label=t("model"), min_width=160, elem_id="train-base")
            objective = gr.Dropdown(
                [(t("auto"), "auto"), *((value, value) for value in get_args(Objective))],
                value="auto",
                label=t("objective"),
                min_width=160,
                elem_id="train-objective",
            )
        advanced = []
        for row in _KNOBS:
            with gr.Row():
                advanced += [_widget(knob) for knob in row]
    return Form(file, name, length, strength, system, questions, model, objective, tuple(advanced))


def _widget(knob: Knob) -> Any:
    default = TrainConfig.model_fields[knob.name].default
    common: dict[str, Any] = {"label": t(knob.name), "min_width": 140, "elem_id": f"train-{knob.name}"}
    match knob.kind:
        case "choice":
            return gr.Dropdown(list(knob.choices), value=default, **common)
        case "flag":
            return gr.Checkbox(bool(default), **common)
        case "text":
            return gr.Textbox(placeholder=t(f"{knob.name}_hint"), max_lines=1, **common)
    if f"{knob.name}_hint" in LABELS:
        common["info"] = t(f"{knob.name}_hint")
    automatic = default is None or knob.name in ("lora_r", "epochs")
    return gr.Number(None, placeholder="auto" if automatic else f"{default:g}", **common)
