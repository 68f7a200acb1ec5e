"""LoRALinear: linear layers of the base plus, for each row, the deltas of the adapters that row asked for.

Layers that read the same input (q, k and v; gate and up) can stand in one LoRALinear, side by side: one matrix
product for all of them, and one for all their A."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adapters.weights import LoRAWeights

if TYPE_CHECKING:
    from serving.engine.kernels import Kernels

SlotMix = tuple[tuple[int, float], ...]  # bank slots and strengths
Layout = tuple[tuple[int, int], ...]  # (slot, rank) of consecutive columns of A x

# Up to this many rows, one product over the joined A of all adapters in the step is cheaper than one a segment.
JOIN_ROWS = 64


@dataclass(frozen=True)
class RowSegment:
    """Rows `start` to `end` of a step use these slots of the bank, at these strengths."""

    start: int
    end: int
    slots: SlotMix


class StepRows:
    """Which rows of one step belong to which adapters. Made anew for every step, so no row can inherit an adapter
    from an earlier one."""

    def __init__(self, segments: Sequence[RowSegment] = (), rows: int = 0, *, settled: bool = False):
        self._segments = segments
        self.rows = rows
        # Joining copies A and B of the adapters in use; that pays once the same ones run for several steps.
        self.joins = settled and rows <= JOIN_ROWS
        self._masks: dict[tuple[Layout, torch.dtype], Tensor | None] = {}

    @property
    def segments(self) -> Sequence[RowSegment]:
        return self._segments

    @cached_property
    def slots(self) -> tuple[int, ...]:
        return tuple(sorted({slot for segment in self.segments for slot, _ in segment.slots}))

    def mask(self, layout: Layout, like: Tensor) -> Tensor | None:
        """(rows, columns of `layout`): each row's strength for each column, 0 for adapters of other rows. None when
        all are 1."""
        key = (layout, like.dtype)
        if key not in self._masks:
            self._masks[key] = self._build_mask(layout, like)
        return self._masks[key]

    def _build_mask(self, layout: Layout, like: Tensor) -> Tensor | None:
        whole = len(self.segments) == 1 and self.segments[0].end - self.segments[0].start == self.rows
        if whole and all(scale == 1 for _, scale in self.segments[0].slots):
            return None
        mask = torch.zeros(self.rows, sum(rank for _, rank in layout), dtype=like.dtype)
        for segment in self.segments:
            strengths = dict(segment.slots)
            column = 0
            for slot, rank in layout:
                if slot in strengths:
                    mask[segment.start : segment.end, column : column + rank] = strengths[slot]
                column += rank
        return mask.to(like.device)

    def concern(self, weights: Mapping[int, object]) -> bool:
        """Whether a layer with these slots loaded has anything to add."""
        return bool(weights and self.segments)


class DeviceRows(StepRows):
    """Rows whose adapters are read from device memory when the step runs, so that one recorded step serves any
    adapters, those loaded later too."""

    def __init__(self, slots: Tensor, strengths: Tensor):
        super().__init__(rows=len(slots))
        self.slots_by_row = slots  # (rows, adapters) int32; 0 is the base
        self.strengths = strengths  # (rows, adapters) float32

    @property
    def segments(self) -> Sequence[RowSegment]:
        """The same, row by row. Waits for the device, so it is for kernels that cannot be captured."""
        rows = zip(self.slots_by_row.tolist(), self.strengths.tolist(), strict=True)
        mixes = [tuple((slot, scale) for slot, scale in zip(*row, strict=True) if slot) for row in rows]
        return [RowSegment(row, row + 1, mix) for row, mix in enumerate(mixes) if mix]

    def concern(self, weights: Mapping[int, object]) -> bool:
        return True


class StepAdapters:
    """The running step's rows, shared by all layers; the runner sets them before and clears them after each step."""

    def __init__(self) -> None:
        self.rows = StepRows()
        self._last_slots: tuple[int, ...] = ()

    def begin(self, segments: Sequence[RowSegment], rows: int) -> None:
        step = StepRows(segments, rows)
        self.rows = StepRows(segments, rows, settled=step.slots == self._last_slots)
        self._last_slots = step.slots

    def end(self) -> None:
        self.rows = StepRows()


@dataclass(frozen=True)
class Joined:
    """A and B of several slots, laid side by side for one product each."""

    a: Tensor  # (columns, in_features)
    layout: Layout
    members: tuple[tuple[slice, slice, Tensor], ...]  # columns of A x, columns of the output, b (columns, out)


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
        self.version = 0  # grows with every change of what is loaded
        self._weights: dict[int, dict[str, LoRAWeights]] = {}  # slot → member → weights
        self._joined: tuple[tuple[int, ...], Joined | None] = ((), None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        if self.step.rows.concern(self._weights):
            self.kernels.add_lora(out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1]), self, self.step.rows)
        return out

    def load(self, slot: int, member: str, weights: LoRAWeights) -> None:
        self._weights.setdefault(slot, {})[member] = weights
        self.version += 1
        self._joined = ((), None)

    def unload(self, slot: int) -> None:
        self._weights.pop(slot, None)
        self.version += 1
        self._joined = ((), None)

    def parts(self, slot: int) -> Iterable[tuple[slice, LoRAWeights]]:
        """(columns of the output, weights) of each member that the adapter in `slot` targets: it need not target
        every layer."""
        return ((self.columns[name], weights) for name, weights in self._weights.get(slot, {}).items())

    def joined(self, slots: tuple[int, ...]) -> Joined | None:
        """The slots' weights side by side; None when none of them has any here. Kept until another set is asked for."""
        if self._joined[0] != slots:
            self._joined = (slots, self._join(slots))
        return self._joined[1]

    def _join(self, slots: tuple[int, ...]) -> Joined | None:
        a: list[Tensor] = []
        layout: list[tuple[int, int]] = []
        members: list[tuple[slice, slice, Tensor]] = []
        column = 0
        for name, columns in self.columns.items():
            present = [(slot, self._weights[slot][name]) for slot in slots if name in self._weights.get(slot, {})]
            if not present:
                continue
            a += [weights.a for _, weights in present]
            layout += [(slot, weights.a.shape[0]) for slot, weights in present]
            b = torch.cat([weights.b.T for _, weights in present])
            members.append((slice(column, column + len(b)), columns, b))
            column += len(b)
        return Joined(torch.cat(a), tuple(layout), tuple(members)) if a else None
