"""What a step tells the kernels, prepared once and used by every layer."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """One sequence's rows in the step: `count` queries at `row`, the last of which sees `length` tokens."""

    row: int
    count: int
    length: int
    slots: Tensor  # (length,) int64: where the sequence's keys and values are, in order


@dataclass(frozen=True)
class AttentionPlan:
    spans: list[Span]

    @cached_property
    def prefills(self) -> list[Span]:
        return [span for span in self.spans if span.count > 1]

    @cached_property
    def decodes(self) -> "DecodeGroup | None":
        spans = [span for span in self.spans if span.count == 1]
        return DecodeGroup.of(spans) if spans else None


@dataclass(frozen=True)
class DecodeGroup:
    """All sequences with one query in the step, padded to the longest."""

    rows: Tensor  # (n,) int64
    slots: Tensor  # (n, longest) int64; padding points at slot 0
    hidden: Tensor  # (n, longest) bool: True where there is only padding

    @staticmethod
    def of(spans: list[Span]) -> "DecodeGroup":
        device = spans[0].slots.device
        lengths = torch.tensor([span.length for span in spans], device=device)
        slots = torch.nn.utils.rnn.pad_sequence([span.slots for span in spans], batch_first=True)
        hidden = torch.arange(slots.shape[1], device=device) >= lengths[:, None]
        return DecodeGroup(torch.tensor([span.row for span in spans], device=device), slots, hidden)


@dataclass(frozen=True)
class AttentionSpec:
    """The layer's own rules: scale of the scores, sliding window (tokens), soft cap, sink logits (heads,)."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        return self.window is None and self.softcap is None and self.sinks is None


@dataclass(frozen=True)
class LoRASegment:
    """Rows `start` to `end` of the step get `scale` · B (A x)."""

    start: int
    end: int
    a: Tensor  # (rank, in_features)
    b: Tensor  # (out_features, rank)
    scale: float
