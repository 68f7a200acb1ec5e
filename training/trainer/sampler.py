"""The order in which rows are seen."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class LengthGroupedRows(Sampler[int]):
    """All rows once an epoch, rows of about the same length in one batch, batches in random order.

    transformers' own `group_by_length` draws from the global random state, so a resumed run could not repeat it,
    and walks from long to short within each group of fifty batches. Here the order follows from (seed, epoch)."""

    POOL = 50  # batches drawn at random that are then sorted by length

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = self.POOL * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            grouped = sorted(order[start : start + pool], key=lambda row: self.lengths[row])
            batches += [grouped[i : i + self.batch_size] for i in range(0, len(grouped), self.batch_size)]
        # A batch that is not full must stay last, or every batch after it would straddle two groups.
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        for index in torch.randperm(len(full), generator=generator).tolist():
            yield from full[index]
        for batch in rest:
            yield from batch
