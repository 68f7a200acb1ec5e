"""What a model thinks of rows it does not learn from: likelihoods, the validation loss, and by how much it likes the
wanted answers better than the unwanted ones."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import Objective
from training.data.dataset import NOT_LEARNED, TrainingRow
from training.data.preferences import PreferenceRow

_TOKENS = 4096  # padded tokens in one forward pass

Row = TrainingRow | PreferenceRow
Cancel = Callable[[], bool]


class Cancelled(Exception):
    """Someone asked for the run to stop."""


@dataclass(frozen=True)
class Evaluation:
    """Held-out rows at one step. The last three are of preferences only.

    `margin` is the log-likelihood of wanted answers less that of unwanted ones, in nats an answer (with ORPO, nats a
    token, as its loss has it). `reward_margin` is the same of rewards: beta times what the likelihood gained over the
    model before training (with ORPO, beta times the likelihood itself). `reward_accuracy` is the share of pairs whose
    wanted answer has the higher reward, of single answers (KTO) those whose reward has the right sign; a draw is half.
    """

    loss: float  # of the objective; for sft and pretrain in nats a learned token
    margin: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None


@dataclass(frozen=True)
class Likelihoods:
    """Of the answers in preference rows, in nats, row by row."""

    wanted: list[float]  # pairs: of the chosen; single answers: of all of them
    other: list[float]  # pairs: of the rejected; single answers: of a strange answer to the same prompt


class Validation:
    """Held-out rows, with what the model thought of them before training. `model` must be untrained still. Raises
    Cancelled between batches."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row],
        *,
        objective: Objective,
        beta: float,
        pad_token_id: int,
        compute_in: torch.dtype | None = None,
        cancelled: Cancel = lambda: False,
    ):
        self.rows = rows
        self.objective = objective
        self.beta = beta
        self.options: dict[str, Any] = {"pad_token_id": pad_token_id, "compute_in": compute_in}
        self.before = Likelihoods([], [])
        if objective in ("dpo", "kto"):
            self.before = preference_likelihoods(
                model, self._preferences, objective, cancelled=cancelled, **self.options
            )

    @property
    def _preferences(self) -> list[PreferenceRow]:
        return [row for row in self.rows if isinstance(row, PreferenceRow)]

    def measure(self, model: Any, cancelled: Cancel = lambda: False) -> Evaluation:
        """Blocks. Raises Cancelled between batches."""
        rows = self._preferences
        if not rows:
            plain = [row for row in self.rows if isinstance(row, TrainingRow)]
            return Evaluation(validation_loss(model, plain, cancelled=cancelled, **self.options))
        now = preference_likelihoods(model, rows, self.objective, cancelled=cancelled, **self.options)
        if self.objective == "kto":
            return self._single_answers(rows, now)
        if self.objective == "dpo":
            return self._pairs(now)
        return self._odds(model, rows, now)

    def _pairs(self, now: Likelihoods) -> Evaluation:
        """DPO, eq. 7 of arXiv:2305.18290."""
        wanted = [self.beta * (a - b) for a, b in zip(now.wanted, self.before.wanted, strict=True)]
        other = [self.beta * (a - b) for a, b in zip(now.other, self.before.other, strict=True)]
        margins = [a - b for a, b in zip(wanted, other, strict=True)]
        return Evaluation(
            loss=_mean(_log1p_exp(-margin) for margin in margins),
            margin=_mean(now.wanted) - _mean(now.other),
            reward_margin=_mean(margins),
            reward_accuracy=_mean(_won(margin) for margin in margins),
        )

    def _single_answers(self, rows: Sequence[PreferenceRow], now: Likelihoods) -> Evaluation:
        """KTO, eq. 8 of arXiv:2402.01306, its reference point from strange answers to the same prompts."""
        gains = [a - b for a, b in zip(now.wanted, self.before.wanted, strict=True)]
        point = max(0.0, _mean(a - b for a, b in zip(now.other, self.before.other, strict=True)))
        signs = [1 if row.wanted else -1 for row in rows]
        gained = _difference(gains, signs)
        return Evaluation(
            loss=_mean(
                1 - _sigmoid(sign * self.beta * (gain - point)) for sign, gain in zip(signs, gains, strict=True)
            ),
            margin=_difference(now.wanted, signs),
            reward_margin=None if gained is None else self.beta * gained,
            reward_accuracy=_mean(_won(sign * gain) for sign, gain in zip(signs, gains, strict=True)),
        )

    def _odds(self, model: Any, rows: Sequence[PreferenceRow], now: Likelihoods) -> Evaluation:
        """ORPO, eq. 6 of arXiv:2403.07691. Like TRL's, its likelihood loss counts prompt and answer."""
        wanted = [value / len(row.chosen.answer_ids) for value, row in zip(now.wanted, rows, strict=True)]
        other = [value / len(row.rejected.answer_ids) for value, row in zip(now.other, rows, strict=True)]
        odds = [(a - _log1m_exp(a)) - (b - _log1m_exp(b)) for a, b in zip(wanted, other, strict=True)]
        whole = [TrainingRow(row.chosen.input_ids, row.chosen.input_ids, row.place) for row in rows]
        margins = [a - b for a, b in zip(wanted, other, strict=True)]
        return Evaluation(
            loss=validation_loss(model, whole, **self.options) + self.beta * _mean(_log1p_exp(-one) for one in odds),
            margin=_mean(margins),
            reward_margin=self.beta * _mean(margins),
            reward_accuracy=_mean(_won(margin) for margin in margins),
        )


def preference_likelihoods(
    model: Any, rows: Sequence[PreferenceRow], objective: Objective, **options: Any
) -> Likelihoods:
    if not rows:
        return Likelihoods([], [])
    if objective == "kto":
        strange = [row.strange_answer(other) for row, other in zip(rows, strangers(rows), strict=True)]
        return Likelihoods(
            log_likelihoods(model, [row.answer.as_row(row.place) for row in rows], **options),
            log_likelihoods(model, [one.as_row(row.place) for one, row in zip(strange, rows, strict=True)], **options),
        )
    return Likelihoods(
        log_likelihoods(model, [row.chosen.as_row(row.place) for row in rows], **options),
        log_likelihoods(model, [row.rejected.as_row(row.place) for row in rows], **options),
    )


def strangers(rows: Sequence[PreferenceRow]) -> list[PreferenceRow]:
    """For each row one whose answer has nothing to do with it: half the table on, since neighbours in a file often
    answer the same prompt."""
    half = max(1, len(rows) // 2)
    return [rows[(index + half) % len(rows)] for index in range(len(rows))]


def validation_loss(model: nn.Module, rows: Sequence[TrainingRow], pad_token_id: int, **options: Any) -> float:
    """Mean negative log-likelihood of the learned tokens of `rows`, in nats a token. The same for a base and for a
    tuned model. Raises Cancelled between batches."""
    count = sum(label != NOT_LEARNED for row in rows for label in row.labels[1:])
    return -math.fsum(log_likelihoods(model, rows, pad_token_id, **options)) / count if count else float("nan")


def log_likelihoods(
    model: nn.Module,
    rows: Sequence[TrainingRow],
    pad_token_id: int,
    *,
    compute_in: torch.dtype | None = None,
    cancelled: Cancel = lambda: False,
) -> list[float]:
    """Of the learned tokens of each row, summed, in nats, without dropout or noise. Computed in `compute_in`, by
    default bfloat16 where the model has such weights. Raises Cancelled between batches."""
    device = next(model.parameters()).device
    dtype = compute_in or (torch.bfloat16 if _is_half(model) else torch.float32)
    was_training = model.training
    model.eval()
    found = [0.0] * len(rows)
    try:
        for batch in _batches_by_length(rows):
            if cancelled():
                raise Cancelled
            inputs = _pad([rows[index] for index in batch], pad_token_id, device)
            autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
            with torch.inference_mode(), autocast:
                losses, learned = token_losses(model, inputs)
            sums = torch.zeros(len(batch), dtype=torch.float64)
            sums.index_add_(0, learned.nonzero()[:, 0].cpu(), -losses.double().cpu())
            for index, value in zip(batch, sums.tolist(), strict=True):
                found[index] = value
    finally:
        model.train(was_training)
    return found


def token_losses(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(loss of each learned token, (rows, tokens) where the token after is learned). Logits exist for those tokens
    alone where the model can."""
    labels = inputs["labels"]
    learned = F.pad(labels[:, 1:] != NOT_LEARNED, (0, 1))  # token t predicts token t + 1
    wanted = F.pad(labels[:, 1:], (0, 1), value=NOT_LEARNED)[learned]
    options = {"logits_to_keep": learned} if keeps_chosen_logits() else {}
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    logits = model(**given, use_cache=False, **options).logits
    if logits.ndim == 3:
        logits = logits[learned]
    return F.cross_entropy(logits.float(), wanted, reduction="none"), learned


def keeps_chosen_logits() -> bool:
    """Whether this transformers takes a mask of positions as `logits_to_keep`."""
    import transformers.modeling_utils

    return hasattr(transformers.modeling_utils, "slice_logits_to_keep")


def _is_half(model: nn.Module) -> bool:
    return any(weight.dtype == torch.bfloat16 for weight in model.parameters())


def _batches_by_length(rows: Sequence[TrainingRow]) -> Iterator[list[int]]:
    """Indices of rows of about the same length."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids)):
        if batch and (len(batch) + 1) * len(rows[index].input_ids) > _TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _pad(rows: Sequence[TrainingRow], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    def padded(values: list[list[int]], filling: int) -> Tensor:
        longest = max(map(len, values))
        return torch.tensor([value + [filling] * (longest - len(value)) for value in values], device=device)

    return {
        "input_ids": padded([row.input_ids for row in rows], pad_token_id),
        "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], NOT_LEARNED),
    }


# --- arithmetic on rewards ---


def _mean(values: Any) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else float("nan")


def _difference(values: Sequence[float], signs: Sequence[int]) -> float | None:
    """Mean of the values with sign 1 less that of the others; None when there are none of one kind."""
    wanted, other = ([value for value, one in zip(values, signs, strict=True) if one == sign] for sign in (1, -1))
    return _mean(wanted) - _mean(other) if wanted and other else None


def _won(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _log1p_exp(value: float) -> float:
    """log(1 + e^value)"""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _log1m_exp(value: float) -> float:
    """log(1 - e^value) of a mean log-likelihood, which is at most 0."""
    return math.log(-math.expm1(min(value, -1e-12)))
