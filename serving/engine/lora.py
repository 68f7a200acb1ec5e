"""LoRALinear: linear layers of the base plus, for each row, the deltas of the adapters that row asked for.

Layers that read the same input (q, k and v; gate and up) can stand in one LoRALinear, side by side, as one matrix
product."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adapters.weights import LoRAWeights

if TYPE_CHECKING:
    from serving.engine.kernels import Kernels

SlotMix = tuple[tuple[int, float], ...]  # bank slots and strengths


@dataclass(frozen=True)
class RowSegment:
    """Rows `start` to `end` of a step use these slots of the bank, at these strengths."""

    start: int
    end: int
    slots: SlotMix


class StepRows:
    """Which rows of one step belong to which adapters. Made anew for every step, so no row can inherit an adapter
    from an earlier one."""

    def __init__(self, segments: Sequence[RowSegment] = ()):
        self.segments = segments
        self._entries: dict[int, Tensor] = {}

    @cached_property
    def slots(self) -> tuple[int, ...]:
        return tuple(sorted({slot for segment in self.segments for slot, _ in segment.slots}))

    def longer_than(self, rows: int) -> list[RowSegment]:
        return [segment for segment in self.segments if segment.end - segment.start > rows]

    def entries(self, most_rows: int) -> Tensor:
        """(count, 4) int64: start, end, slot and the bits of the strength (float64) of each adapter on each segment of
        up to `most_rows` rows."""
        if most_rows not in self._entries:
            short = [segment for segment in self.segments if segment.end - segment.start <= most_rows]
            found = [(segment.start, segment.end, slot, scale) for segment in short for slot, scale in segment.slots]
            table = torch.tensor([entry[:3] + (0,) for entry in found], dtype=torch.int64).view(-1, 4)
            table[:, 3] = torch.tensor([scale for *_, scale in found], dtype=torch.float64).view(torch.int64)
            self._entries[most_rows] = table
        return self._entries[most_rows]


class StepAdapters:
    """The running step's rows, shared by all layers; the runner sets them before and clears them after each step."""

    def __init__(self) -> None:
        self.rows = StepRows()

    def begin(self, segments: Sequence[RowSegment]) -> None:
        self.rows = StepRows(segments)

    def end(self) -> None:
        self.rows = StepRows()


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one linear layer's output: x Aᵀ B."""

    a: Tensor  # (rank, in_features)
    b: Tensor  # (rank, out_features), scale folded in


class LoRALinear(nn.Module):
    """`base` computes all members side by side; `widths` are their output features, by name."""

    def __init__(self, base: nn.Module, widths: dict[str, int], step: StepAdapters, kernels: "Kernels"):
        super().__init__()
        self.base = base
        self.step = step
        self.kernels = kernels
        self.columns: dict[str, slice] = {}
        start = 0
        for name, width in widths.items():
            self.columns[name] = slice(start, start + width)
            start += width
        self.version = 0  # grows with every load and unload: what kernels remember of the slots is then out of date
        self._deltas: dict[int, dict[str, Delta]] = {}  # slot → member → delta

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        if self._deltas and self.step.rows.segments:
            self.kernels.add_lora(out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1]), self, self.step.rows)
        return out

    def load(self, slot: int, member: str, weights: LoRAWeights) -> None:
        self._deltas.setdefault(slot, {})[member] = Delta(weights.a, weights.b.T.contiguous())
        self.version += 1

    def unload(self, slot: int) -> None:
        if self._deltas.pop(slot, None):
            self.version += 1

    @property
    def slots(self) -> Iterable[int]:
        """Those whose adapter targets this layer."""
        return self._deltas.keys()

    def parts(self, slot: int) -> Iterable[tuple[slice, Delta]]:
        """(columns of the output, delta) of each member that the adapter in `slot` targets: it need not target every
        layer."""
        return ((self.columns[name], delta) for name, delta in self._deltas.get(slot, {}).items())
