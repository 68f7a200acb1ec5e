"""Several short rows in one long one, so that no place in a batch is padding. Positions begin anew with each row, and
transformers makes of that a mask that keeps rows from reading each other; whether a base's attention honours it is
tried out before anybody trains on it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset as TokenTable
from trl import pack_dataset

from adapters.base_model import BaseModel
from training.data.dataset import NOT_LEARNED, TrainingRow

_TRIAL_TOKENS = 24  # of each of two rows


def pack(rows: Sequence[TrainingRow], max_length: int) -> TokenTable:
    """Rows joined, best fit first, into rows of at most `max_length`: input_ids, labels, seq_lengths. The first token
    of each is not learned, since nothing of its own stands before it."""
    table = TokenTable.from_dict(
        {
            "input_ids": [row.input_ids for row in rows],
            "labels": [[NOT_LEARNED, *row.labels[1:]] for row in rows],
        }
    )
    return pack_dataset(table, max_length, strategy="bfd")


def packed_rows(rows: Sequence[TrainingRow], max_length: int) -> int:
    """About how many rows `pack` will make."""
    return max(1, -(-sum(len(row.input_ids) for row in rows) // max_length))


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows → one batch: input_ids, labels and position_ids, each (rows, longest).

    TRL's own collator would lay all rows end to end; without FlashAttention that is one square mask over the whole
    batch. There is no attention_mask, because a model that gets one does not look at positions. Padding is rows of one
    token each, which nothing reads and nothing learns from."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, filling: int) -> torch.Tensor:
            return torch.tensor([row[name] + [filling] * (longest - len(row[name])) for row in rows])

        positions = [[place for length in row["seq_lengths"] for place in range(length)] for row in rows]
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "labels": padded("labels", NOT_LEARNED),
            "position_ids": torch.tensor([row + [0] * (longest - len(row)) for row in positions]),
        }


def keeps_rows_apart(base: BaseModel) -> bool:
    """Whether two rows packed into one give the same logits as each alone. Not so where a model's attention has ways of
    its own, or remembers in a recurrent state."""
    dice = random.Random(0)
    vocabulary = base.model.config.get_text_config().vocab_size
    rows = [[dice.randrange(vocabulary) for _ in range(_TRIAL_TOKENS)] for _ in range(2)]
    positions = list(range(_TRIAL_TOKENS))

    def logits(ids: list[int], places: list[int]) -> Any:
        return base.model(
            input_ids=torch.tensor([ids], device=base.device),
            position_ids=torch.tensor([places], device=base.device),
            use_cache=False,
        ).logits[0, -_TRIAL_TOKENS:]

    with torch.inference_mode():
        packed, alone, misled = (
            logits(rows[0] + rows[1], positions * 2),
            logits(rows[1], positions),
            logits(rows[0] + rows[1], list(range(2 * _TRIAL_TOKENS))),  # as if it were one row
        )
    # Rounding differs with the shape of a product; reading the other row makes a difference of another size.
    return bool((packed - alone).abs().max() < 0.2 * (misled - alone).abs().max())
