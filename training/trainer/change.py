"""How far training has moved a model: what it thinks of a few rows it learned from, before and after. A run may end
without a fault and have changed nothing."""

import math
from collections.abc import Sequence
from typing import Any

from training.data.dataset import TrainingRow
from training.trainer.scoring import Row, log_likelihoods

_ROWS = 8


class Change:
    """`model` must be untrained still. Takes a forward pass of a few rows, here and in `measure`; raises Cancelled
    between its batches."""

    def __init__(self, model: Any, rows: Sequence[Row], **options: Any):
        """`options` as `log_likelihoods` has them."""
        self._rows = [plain for row in rows[:_ROWS] for plain in _plain(row)]
        self._options = options
        self._before = log_likelihoods(model, self._rows, **options)

    @property
    def learned_tokens(self) -> float:
        """Of a row, on average."""
        return sum(row.learned_tokens for row in self._rows) / max(1, len(self._rows))

    def measure(self, model: Any) -> float:
        """Nats a learned token by which the rows' likelihoods have moved, up or down; the mean over the rows."""
        after = log_likelihoods(model, self._rows, **self._options)
        moved = [
            abs(now - then) / max(1, row.learned_tokens)
            for row, now, then in zip(self._rows, after, self._before, strict=True)
        ]
        return math.fsum(moved) / max(1, len(moved))


def _plain(row: Row) -> list[TrainingRow]:
    return [row] if isinstance(row, TrainingRow) else [answer.as_row(row.place) for answer in row.answers]
