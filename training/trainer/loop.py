"""A run from the first step to the last: progress and evaluations go out through callbacks, a wish to stop ends in a
checkpoint, and from a checkpoint it goes on exactly as if it had never stopped."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from adapters.base_model import BaseModel
from training.config import Plan, TrainConfig
from training.data.preferences import PreferenceRow
from training.trainer.adapter import load_weights
from training.trainer.objectives import KEPT_CHECKPOINTS, build
from training.trainer.quiet import quiet
from training.trainer.scoring import Cancel, Evaluation, Row, Validation

__all__ = ["KEPT_CHECKPOINTS", "Progress", "Trained", "last_checkpoint", "train"]

_SHORT_ROW = 384  # tokens


@dataclass(frozen=True)
class Progress:
    """One optimizer step, done."""

    step: int
    steps: int
    epoch: float
    loss: float  # nats a learned token, in this step; of preferences their objective's loss
    learning_rate: float  # with LoRA+, of A
    grad_norm: float
    tokens_per_s: float  # tokens read, padding left out
    remaining_s: float
    reward_margin: float | None = None  # of preferences, in this step
    reward_accuracy: float | None = None


@dataclass(frozen=True)
class Trained:
    steps: int
    epochs: float
    train_loss: float  # mean over the steps of this process
    finished: bool  # False: cancelled, with a checkpoint at `steps`
    stopped_early: bool = False  # the validation loss had got no better for long enough
    best_step: int | None = None  # whose weights the model has now, when not the last step's


def train(
    base: BaseModel,
    model: Any,
    rows: Sequence[Row],
    config: TrainConfig,
    plan: Plan,
    checkpoints: Path,
    *,
    validation: Validation | None = None,
    resume_from: Path | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None,
    cancelled: Cancel = lambda: False,
    step_back: Callable[[], None] = lambda: None,
) -> Trained:
    """Train `model` in place, which must be as `trainable` gave it. Blocks. Leaves the last checkpoints under
    `checkpoints`, and with `validation` and `config.publishes_best` the best one too, whose weights the model has at
    the end. When `cancelled` becomes true, saves one more and returns; before the first step there is nothing to save,
    and it raises Cancelled. An evaluation between steps is finished first: a resumed run would not make up for it."""
    reporter = _Reporter(config, on_step, on_evaluation, cancelled, step_back, evaluates=validation is not None)
    with quiet(), _attention_for(base, rows, plan):
        trainer = build(
            base, model, rows, config, plan, checkpoints, validation=validation, callback=reporter, cancelled=cancelled
        )
        reporter.tokens_seen = lambda: trainer.tokens_seen
        reporter.last_evaluation = lambda: trainer.last_evaluation
        if resume_from and _ended_early(resume_from, config):
            return _already_ended(model, resume_from, config)
        output = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        finished = reporter.stopped_early or output.global_step >= trainer.state.max_steps
        best = trainer.state.best_global_step if finished and config.publishes_best and validation else None
        if best and best != output.global_step:
            load_weights(model, checkpoints / f"checkpoint-{best}")
    return Trained(
        steps=output.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        train_loss=reporter.mean_loss,
        finished=finished,
        stopped_early=reporter.stopped_early,
        best_step=best if best != output.global_step else None,
    )


def last_checkpoint(checkpoints: Path) -> tuple[Path, int] | None:
    """The newest checkpoint and its step. One that was cut off while being written does not count."""
    found = [
        (path, int(path.name.removeprefix("checkpoint-")))
        for path in checkpoints.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()  # written last but for the callbacks
    ]
    return max(found, key=lambda item: item[1], default=None)


def _ended_early(checkpoint: Path, config: TrainConfig) -> bool:
    """Whether the checkpoint is the end of a run that early stopping ended: there is nothing to go on with."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return _out_of_patience(state["log_history"], config.early_stopping)


def _already_ended(model: Any, checkpoint: Path, config: TrainConfig) -> Trained:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    best = state["best_global_step"] if config.publishes_best else None
    load_weights(model, checkpoint.with_name(f"checkpoint-{best}") if best else checkpoint)
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return Trained(
        steps=state["global_step"],
        epochs=float(state["epoch"]),
        train_loss=sum(losses) / len(losses),
        finished=True,
        stopped_early=True,
        best_step=best if best != state["global_step"] else None,
    )


def _out_of_patience(history: Sequence[dict[str, Any]], patience: int | None) -> bool:
    """Whether the last `patience` evaluations were all no better than one before them."""
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return bool(losses) and patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience


class _Reporter(TrainerCallback):
    """Turns log lines into Progress, says when to evaluate and when that was in vain for long enough, and turns a wish
    to stop into a checkpoint and a stop."""

    def __init__(
        self,
        config: TrainConfig,
        on_step: Callable[[Progress], None],
        on_evaluation: Callable[[int, Evaluation], None],
        cancelled: Cancel,
        step_back: Callable[[], None],
        *,
        evaluates: bool,
    ):
        self.config = config
        self.on_step = on_step
        self.on_evaluation = on_evaluation
        self.cancelled = cancelled
        self.step_back = step_back
        self.evaluates = evaluates
        self.stopped_early = False
        self.tokens_seen: Callable[[], int] = lambda: 0
        self.last_evaluation: Callable[[], Evaluation | None] = lambda: None
        self._broken_off = False
        self._losses: list[float] = []
        self._first_step = 0
        self._started = self._last = time.perf_counter()
        self._last_tokens = 0

    @property
    def mean_loss(self) -> float:
        return sum(self._losses) / len(self._losses) if self._losses else float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        self._started = self._last = time.perf_counter()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_back()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_back()
        every = self.config.eval_steps
        control.should_evaluate = bool(
            self.evaluates and every and (state.global_step % every == 0 or state.global_step >= state.max_steps)
        )
        if self.cancelled():
            self._broken_off = True
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Broken off in the middle, this is not the end of an epoch, and a run that was not would not evaluate here."""
        in_the_middle = self._broken_off and abs(state.epoch - round(state.epoch)) > 1e-6
        at_the_end = state.global_step >= state.max_steps
        control.should_evaluate = self.evaluates and not self.config.eval_steps and (at_the_end or not in_the_middle)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        measured = self.last_evaluation()
        assert measured is not None
        self.on_evaluation(state.global_step, measured)
        if self.config.publishes_best and (state.best_metric is None or measured.loss < state.best_metric):
            control.should_save = True
        if _out_of_patience(state.log_history, self.config.early_stopping):
            self.stopped_early = True
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now, tokens = time.perf_counter(), self.tokens_seen()
        per_step = (now - self._started) / max(1, state.global_step - self._first_step)
        self._losses.append(float(logs["loss"]))
        self.on_step(
            Progress(
                step=state.global_step,
                steps=state.max_steps,
                epoch=float(state.epoch),
                loss=float(logs["loss"]),
                learning_rate=float(logs["learning_rate"]),
                grad_norm=float(logs["grad_norm"]),
                tokens_per_s=(tokens - self._last_tokens) / max(1e-9, now - self._last),
                remaining_s=per_step * (state.max_steps - state.global_step),
                reward_margin=logs.get("rewards/margins"),
                reward_accuracy=logs.get("rewards/accuracies"),
            )
        )
        self._last, self._last_tokens = now, tokens


@contextmanager
def _attention_for(base: BaseModel, rows: Sequence[Row], plan: Plan) -> Iterator[None]:
    """On a CPU, plain attention while rows are short: the backward pass of torch's fused one takes a fifth of a step
    at 60 tokens a row (29 ms a layer; the whole step is 8 to 50 % faster without). Its memory grows with the square
    of the length, so long rows keep the fused one."""
    chosen = base.model.config._attn_implementation
    longest = plan.max_length if plan.packing else max(_length(row) for row in rows)
    plain = base.device.type == "cpu" and chosen == "sdpa" and longest <= _SHORT_ROW
    if plain:
        base.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if plain:
            base.model.set_attn_implementation(chosen)


def _length(row: Row) -> int:
    return row.length if isinstance(row, PreferenceRow) else len(row.input_ids)
