"""What somebody chose on a form, in plain words: the request it makes, and what is known of that run before it starts.

What is left empty is `auto`. The objective is what the rows are for, unless one was chosen."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from adapters.errors import BianlianError, Invalid
from adapters.settings import Device
from training.combinations import check_combinations
from training.config import PREFERENCES, Objective, TrainConfig
from training.jobs.fine_tuning import FineTuning, FineTuningRequest

if TYPE_CHECKING:
    from training.data.preflight import Preflight

Length = Literal["short", "normal", "long"]
Strength = Literal["gentle", "normal", "strong"]

EPOCHS: dict[Length, int] = {"short": 1, "normal": 3, "long": 8}
# Rank, and what the learning rate that would be chosen is multiplied with.
STRENGTHS: dict[Strength, tuple[int, float]] = {"gentle": (8, 0.5), "normal": (16, 1.0), "strong": (32, 1.5)}
MAX_QUESTIONS = 16  # as many as a probe puts
_PREVIEW_ROWS = 3


@dataclass(frozen=True)
class Choices:
    """A form as it was filled in. `advanced` has fields of TrainConfig; None, "" and () among them are `auto`."""

    file: str
    model: str
    name: str = ""
    length: Length = "normal"
    strength: Strength = "normal"
    system: str = ""
    questions: str = ""  # one a line
    objective: Objective | Literal["auto"] = "auto"
    advanced: Mapping[str, Any] = field(default_factory=dict)

    def request(self, objective: Objective) -> FineTuningRequest:
        """The fine-tuning job that this asks for. Raises Invalid, naming the field, for what no job may say."""
        given = {name: value for name, value in self.advanced.items() if value not in (None, "", (), [])}
        preferences = objective in PREFERENCES
        hyperparameters: dict[str, Any] = {
            "n_epochs": given.pop("epochs", EPOCHS[self.length]),
            "batch_size": given.pop("batch_size", "auto"),
        }
        if preferences:
            hyperparameters["beta"] = given.pop("beta", "auto")
        elif "beta" in given:
            raise Invalid(
                f"beta {given['beta']} weighs preferences; these rows are for {objective}, leave it empty", param="beta"
            )
        rank, times = STRENGTHS[self.strength]
        ours: dict[str, Any] = {"objective": objective}
        if given.get("method") != "full":
            ours["lora_r"] = rank
        if "learning_rate" not in given:
            hyperparameters["learning_rate_multiplier"] = times
        if self.system.strip():
            ours["system"] = self.system.strip()
        if questions := [line.strip() for line in self.questions.splitlines() if line.strip()]:
            if len(questions) > MAX_QUESTIONS:
                raise Invalid(
                    f"{len(questions)} questions to watch; {MAX_QUESTIONS} are put to every snapshot at most",
                    param="demo_prompts",
                )
            ours["demo_prompts"] = questions
        kind = "dpo" if preferences else "supervised"
        try:
            return FineTuningRequest.model_validate(
                {
                    "model": self.model,
                    "training_file": self.file,
                    "suffix": self.name.strip() or None,
                    "seed": given.pop("seed", None),
                    "method": {"type": kind, kind: {"hyperparameters": hyperparameters}},
                    "bianlian": ours | given,
                }
            )
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][-1])
            raise Invalid(f"{name}: {first['msg']} (got {first['input']!r})", param=name) from error


@dataclass(frozen=True)
class Checked:
    """What is known of a run that has not begun. Findings name the file as it was uploaded."""

    objective: Objective
    preflight: "Preflight"


def check(tuning: FineTuning, choices: Choices, *, device: Device = "auto") -> Checked:
    """Look at the rows that `choices` would train on. Blocks for as long as reading takes, and a few seconds of
    measuring. Raises Invalid or NotFound for what a run would be refused for before its rows are seen."""
    if choices.objective != "auto":
        return Checked(choices.objective, _look(tuning, choices.request(choices.objective), device, chosen=True))
    found = _look(tuning, choices.request("sft"), device, chosen=False)
    objective = found.objectives[0]
    if objective == "sft" or not found.good:
        return Checked("sft", found)
    return Checked(objective, _look(tuning, choices.request(objective), device, chosen=True))


def suggested_name(filename: str) -> str:
    """A name for what is trained on a file: its own, as far as adapters can be called so."""
    stem = PurePath(filename.lower()).name.partition(".")[0]
    kept = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")
    return re.sub(r"(-\d+|-(train|data|dataset|sft|dpo))+$", "", kept)[:40].strip("-") or "persona"


def _look(tuning: FineTuning, request: FineTuningRequest, device: Device, *, chosen: bool) -> "Preflight":
    from training.data.preflight import Preflight, preflight

    with tuning.draft(request) as config:
        check_combinations(config)
        if not chosen:  # whatever the rows are for will do
            config = TrainConfig.model_validate(config.model_dump(exclude={"objective"}, exclude_unset=True))
        places = {f"{path.parent}/": "" for path in (*config.data, *config.validation_data)}
        try:
            found = preflight(config, device=device, preview_rows=_PREVIEW_ROWS)
        except BianlianError as error:
            error.message = _renamed(error.message, places)
            raise
        # Where uploads lie is nobody's business; a path is spelled in JSON as it is in the JSON of a text.
        spelled = {json.dumps(place, ensure_ascii=False)[1:-1]: name for place, name in places.items()}
        return Preflight.model_validate_json(_renamed(found.model_dump_json(), spelled))


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for place, name in names.items():
        text = text.replace(place, name)
    return text
