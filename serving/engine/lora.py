"""LoRALinear: linear layers of the base plus, for each row, the deltas of the adapters that row asked for.

Layers that read the same input (q, k and v; gate and up) can stand in one LoRALinear, side by side, as one matrix
product."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base_model import dense_weight

if TYPE_CHECKING:
    from serving.engine.kernels import Kernels

SlotMix = tuple[tuple[int, float], ...]  # bank slots and strengths


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one layer of the base, y = Wx + bias. At strength t a row gets t times

        (gain − 1) ⊙ Wx  +  low-rank x aᵀ b  +  bias,

    or, with a weight W' in place of W, t (W'x − Wx): the base at 0, exactly the adapter at 1, linear between and in
    blends. For DoRA (Liu et al. 2024) gain is m / ‖W + sBA‖ by rows, and multiplied into b as well; the base's own
    bias is not scaled."""

    a: Tensor | None = None  # (rank, in_features)
    b: Tensor | None = None  # (rank, out_features), contiguous; scale and gain folded in
    gain: Tensor | None = None  # (out_features,) float32
    bias: Tensor | None = None  # (out_features,) float32
    weight: Tensor | None = None  # (out_features, in_features), or only the rows of `tokens`; embeddings likewise
    tokens: Tensor | None = None  # (rows,) int64: the outputs that `weight` replaces; None: all

    @property
    def low_rank(self) -> bool:
        """Whether there is a low-rank part, which the kernels add."""
        return self.a is not None

    @property
    def dense(self) -> bool:
        """Whether there is more than a low-rank part."""
        return self.gain is not None or self.bias is not None or self.weight is not None

    def tensors(self) -> list[Tensor]:
        return [tensor for tensor in self._all() if tensor is not None]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Delta":
        """The same delta with every tensor replaced by what `function` makes of it."""
        return Delta(*(None if tensor is None else function(tensor) for tensor in self._all()))

    def _all(self) -> tuple[Tensor | None, ...]:
        return self.a, self.b, self.gain, self.bias, self.weight, self.tokens


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
        self._segments = segments

    @property
    def segments(self) -> Sequence[RowSegment]:
        return self._segments

    @cached_property
    def slots(self) -> tuple[int, ...]:
        return tuple(sorted({slot for segment in self.segments for slot, _ in segment.slots}))

    @cached_property
    def entries(self) -> Tensor:
        """(count, 4) int64: start, end, slot and the bits of the strength (float64) of each adapter on each segment."""
        found = [
            (segment.start, segment.end, slot, scale) for segment in self.segments for slot, scale in segment.slots
        ]
        table = torch.tensor([entry[:3] + (0,) for entry in found], dtype=torch.int64).view(-1, 4)
        table[:, 3] = torch.tensor([scale for *_, scale in found], dtype=torch.float64).view(torch.int64)
        return table

    def concern(self, weights: Mapping[int, object]) -> bool:
        """Whether a layer with these slots loaded has anything to add."""
        return bool(weights and self.segments)


class DeviceRows(StepRows):
    """Rows whose adapters are read from device memory when the step runs, so that one recorded step serves any
    adapters, those loaded later too."""

    def __init__(self, slots: Tensor, strengths: Tensor):
        super().__init__()
        self.slots_by_row = slots  # (rows, adapters) int32; 0 is the base
        self.strengths = strengths  # (rows, adapters) float32

    @property
    def segments(self) -> Sequence[RowSegment]:
        """The same, row by row. Waits for the device, so it is for kernels that cannot be captured."""
        rows = zip(self.slots_by_row.tolist(), self.strengths.tolist(), strict=True)
        mixes = [tuple((slot, scale) for slot, scale in zip(*row, strict=True) if slot) for row in rows]
        return [RowSegment(row, row + 1, mix) for row, mix in enumerate(mixes) if mix]

    @property
    def slots(self) -> tuple[int, ...]:
        """None that layers would have to look at: rows are only recorded with low-rank adapters."""
        return ()

    def concern(self, weights: Mapping[int, object]) -> bool:
        return True


class StepAdapters:
    """The running step's rows, shared by all layers; the runner sets them before and clears them after each step. The
    output layer sees only the rows whose logits are wanted: it has its own."""

    def __init__(self) -> None:
        self.rows = StepRows()
        self.head = StepRows()

    def begin(self, segments: Sequence[RowSegment], head: Sequence[RowSegment] = ()) -> None:
        self.rows, self.head = StepRows(segments), StepRows(head)

    def end(self) -> None:
        self.rows = self.head = StepRows()


class LoRALinear(nn.Module):
    """`base` computes all members side by side; `widths` are their output features, by name. `version` grows with
    every change of what the slots hold."""

    def __init__(
        self,
        base: nn.Module,
        widths: dict[str, int],
        step: StepAdapters,
        kernels: "Kernels",
        *,
        is_head: bool = False,
    ):
        super().__init__()
        self.base = base
        self.step = step
        self.kernels = kernels
        self.is_head = is_head
        self.version = 0
        self.columns: dict[str, slice] = {}
        start = 0
        for name, width in widths.items():
            self.columns[name] = slice(start, start + width)
            start += width
        self._low_rank: dict[int, dict[str, Delta]] = {}  # slot → member → delta
        self._dense: dict[int, dict[str, Delta]] = {}  # those with more than a low-rank part

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        rows = self.step.head if self.is_head else self.step.rows
        if self._dense and not self._dense.keys().isdisjoint(rows.slots):
            self._add_dense(out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1]), rows)
        if rows.concern(self._low_rank):
            self.kernels.add_lora(out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1]), self, rows)
        return out

    def load(self, slot: int, member: str, delta: Delta) -> None:
        if delta.low_rank:
            self._low_rank[slot] = {**self._low_rank.get(slot, {}), member: delta}
        if delta.dense:
            self._dense.setdefault(slot, {})[member] = delta
        self.version += 1

    def unload(self, slot: int) -> None:
        if slot in self._low_rank or slot in self._dense:
            self._low_rank.pop(slot, None)
            self._dense.pop(slot, None)
            self.version += 1

    @property
    def slots(self) -> Iterable[int]:
        """Those whose adapter has a low-rank part here."""
        return self._low_rank.keys()

    def low_rank(self, slot: int) -> Mapping[str, Delta] | None:
        """By member; another object whenever anything in it is another."""
        return self._low_rank.get(slot)

    @property
    def dense_slots(self) -> Set[int]:
        """Those whose adapter has more than a low-rank part here."""
        return self._dense.keys()

    def parts(self, slot: int) -> Iterable[tuple[slice, Delta]]:
        """(columns of the output, delta) of each member on which the adapter in `slot` has a low-rank part: it need not
        target every layer."""
        return ((self.columns[name], delta) for name, delta in self._low_rank.get(slot, {}).items())

    @property
    def quantised(self) -> bool:
        """Whether the engine rounded the base's weights itself."""
        return hasattr(self.base, "bits")

    def base_weight(self, member: str) -> Tensor:
        """The member's weight in the base, dense float32 (out_features, in_features); quantised ones dequantised."""
        return dense_weight(self.base)[self.columns[member]].float()

    def base_bias(self, member: str) -> Tensor | None:
        """(out_features,), None without one."""
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        return None if bias is None else bias.detach()[self.columns[member]]

    def _add_dense(self, out: Tensor, x: Tensor, rows: StepRows) -> None:
        """Add gains, biases and replaced weights to `out`, which holds what the base says, in float32."""
        for segment in rows.segments:
            here = slice(segment.start, segment.end)
            base = out[here].to(torch.float32, copy=True)
            change = None
            for slot, scale in segment.slots:
                for member, delta in self._dense.get(slot, {}).items():
                    if change is None:
                        change = torch.zeros_like(base)
                    columns, bias = self.columns[member], self.base_bias(member)
                    plain = base[:, columns] if bias is None else base[:, columns] - bias
                    _add_change(change[:, columns], plain, x[here], delta, scale)
            if change is not None:
                out[here] = base + change


def _add_change(change: Tensor, plain: Tensor, x: Tensor, delta: Delta, scale: float) -> None:
    """What of `delta` is not low-rank, on change (rows, out_features) in place; plain is Wx, x (rows, in_features)."""
    if delta.gain is not None:
        change += scale * (delta.gain - 1) * plain
    if delta.bias is not None:
        change += scale * delta.bias
    if delta.weight is not None:
        said = F.linear(x, delta.weight).float()
        if delta.tokens is None:
            change += scale * (said - plain)
        else:
            change[:, delta.tokens] += scale * (said - plain[:, delta.tokens])
