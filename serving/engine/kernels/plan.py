"""What a step tells the kernels, prepared once and used by every layer."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from serving.engine.kv_cache import LayerCache


@dataclass(frozen=True)
class Span:
    """One sequence's rows in the step: `count` queries at `row`, the last of which sees `length` tokens."""

    row: int
    count: int
    length: int
    slots: Tensor  # (length,) int64: where the sequence's keys and values are, in order


class AttentionPlan:
    def __init__(self, spans: list[Span]):
        self._spans = spans

    @property
    def spans(self) -> list[Span]:
        return self._spans

    @cached_property
    def prefills(self) -> list[Span]:
        return [span for span in self.spans if span.count > 1]

    @cached_property
    def decodes(self) -> "DecodeGroup | None":
        spans = [span for span in self.spans if span.count == 1]
        return DecodeGroup(spans) if spans else None

    @cached_property
    def prefill_group(self) -> "PrefillGroup":
        return PrefillGroup.of(self.prefills)


@dataclass(frozen=True)
class PrefillGroup:
    """All sequences with several queries in the step, one after the other, as FlashAttention takes them."""

    rows: Tensor  # (queries,) int64
    slots: Tensor  # (keys,) int64
    query_ends: Tensor  # (n + 1,) int32, the first is 0
    key_ends: Tensor  # (n + 1,) int32
    most_queries: int
    most_keys: int

    @staticmethod
    def of(spans: list[Span]) -> "PrefillGroup":
        device = spans[0].slots.device
        counts, lengths = [span.count for span in spans], [span.length for span in spans]
        rows = torch.cat([torch.arange(span.row, span.row + span.count) for span in spans])
        ends = torch.tensor([[0, *accumulate(counts)], [0, *accumulate(lengths)]], dtype=torch.int32).to(device)
        slots = torch.cat([span.slots for span in spans])
        return PrefillGroup(rows.to(device), slots, ends[0], ends[1], max(counts), max(lengths))


@dataclass
class DecodeGroup:
    """All sequences with one query in the step."""

    spans: list[Span]
    _buffers: dict[tuple[str, torch.Size], Tensor] = field(default_factory=dict)
    _rows_of: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @cached_property
    def rows(self) -> Tensor:
        """(n,) int64: where they are in the step."""
        return torch.tensor([span.row for span in self.spans], device=self.spans[0].slots.device)

    @cached_property
    def lengths(self) -> Tensor:
        """(n,) int32"""
        lengths = [span.length for span in self.spans]
        return torch.tensor(lengths, dtype=torch.int32, device=self.spans[0].slots.device)

    @cached_property
    def addresses(self) -> Tensor:
        """(n,) int64: where each span's slots are in memory; they are contiguous."""
        return torch.tensor([span.slots.data_ptr() for span in self.spans])

    @cached_property
    def slots(self) -> Tensor:
        """(n, longest) int64; padding points at slot 0."""
        return torch.nn.utils.rnn.pad_sequence([span.slots for span in self.spans], batch_first=True)

    @cached_property
    def hidden(self) -> Tensor:
        """(n, longest) bool: True where there is only padding."""
        return torch.arange(self.slots.shape[1], device=self.slots.device) >= self.lengths[:, None]

    def gather(self, cache: LayerCache) -> tuple[Tensor, Tensor]:
        """Keys and values of the group, (kv_heads, n, longest, dim) each. The memory is used again by the next
        layer: fresh pages for each would cost more than the copy."""
        return self._take("keys", cache.keys), self._take("values", cache.values)

    def _take(self, name: str, kept: Tensor) -> Tensor:
        heads, tokens, dim = kept.shape
        rows = self._rows_of.get((heads, tokens))
        if rows is None:
            starts = torch.arange(heads, device=kept.device)[:, None] * tokens
            rows = self._rows_of[(heads, tokens)] = (starts + self.slots.flatten()).flatten()
        buffer = self._buffers.get((name, kept.shape))
        if buffer is None:
            buffer = self._buffers[(name, kept.shape)] = kept.new_empty(len(rows), dim)
        torch.index_select(kept.view(-1, dim), 0, rows, out=buffer)
        return buffer.view(heads, *self.slots.shape, dim)


class PagedDecodes(AttentionPlan):
    """One query in every row, the pasts described by device memory alone: what a captured step attends with."""

    def __init__(self, blocks: Tensor, lengths: Tensor, block_size: int):
        self.blocks = blocks  # (rows, most blocks) int32
        self.lengths = lengths  # (rows,) int32
        self.block_size = block_size

    @property
    def spans(self) -> list[Span]:
        """The same, row by row. Waits for the device, so it is for kernels that cannot be captured."""
        within = torch.arange(self.block_size, device=self.blocks.device)
        spans = []
        for row, length in enumerate(self.lengths.tolist()):
            slots = (self.blocks[row, :, None].long() * self.block_size + within).flatten()[:length]
            spans.append(Span(row, 1, length, slots))
        return spans


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
