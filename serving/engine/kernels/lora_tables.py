"""What the grouped LoRA kernels read: where every slot's A and B lie, and which slots each row or run of rows uses.

All of it is device memory of fixed shape, so that one launch, or one captured graph, serves whatever adapters are
loaded later. Slot 0 is the base: rank 0, nothing to do."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.engine.lora import Delta, DeviceRows, LoRALinear, RowSegment

BLOCK_OUT = 128  # output columns of one program
_ALIGNMENT = 16  # bytes; what the kernels promise the compiler about every matrix


class LayerTable:
    """One LoRALinear's matrices by member and slot. `refresh` after a load or unload, and before the kernels run."""

    def __init__(self, layer: LoRALinear, num_slots: int, device: torch.device):
        self.members = len(layer.columns)
        self.num_slots = num_slots
        self.places = torch.zeros(3, self.members, num_slots + 1, dtype=torch.int64, device=device)  # of A, of B; ranks
        self.blocks = torch.tensor(_blocks(layer), dtype=torch.int32, device=device)
        self.max_rank = 0
        starts = [columns.start for columns in layer.columns.values()]
        # The largest power of two, up to 16, that all columns and widths are multiples of: wide loads need to know it.
        self.aligned = next(
            size for size in (16, 8, 4, 2, 1) if all(edge % size == 0 for edge in [*starts, _end(layer)])
        )
        self._member_at = {start: member for member, start in enumerate(starts)}
        self._version = -1
        self._on_host = self.places.cpu().numpy().copy()
        # By member and slot: what is loaded there, and the matrices that `places` points to.
        self._kept: dict[tuple[int, int], tuple[Delta, Tensor, Tensor]] = {}

    def refresh(self, layer: LoRALinear) -> None:
        if layer.version == self._version:
            return
        loaded = {
            (self._member_at[columns.start], slot): delta
            for slot in layer.slots
            for columns, delta in layer.parts(slot)
        }
        for member, slot in self._kept.keys() - loaded.keys():
            del self._kept[member, slot]
            self._on_host[:, member, slot] = 0
        for (member, slot), delta in loaded.items():
            known = self._kept.get((member, slot))
            if known is None or known[0] is not delta:
                a, b = _matrices(delta)
                self._kept[member, slot] = (delta, a, b)
                self._on_host[:, member, slot] = (a.data_ptr(), b.data_ptr(), a.shape[0])
        self.places.copy_(torch.from_numpy(self._on_host))
        self.max_rank = int(self._on_host[2].max())
        self._version = layer.version


def _matrices(delta: Delta) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (rank, out), contiguous and aligned, copied only where they are not."""
    assert delta.a is not None and delta.b is not None
    return _readable(delta.a), _readable(delta.b)


def _readable(matrix: Tensor) -> Tensor:
    matrix = matrix.contiguous()
    return matrix if matrix.data_ptr() % _ALIGNMENT == 0 else matrix.clone()


def _end(layer: LoRALinear) -> int:
    return int(max(columns.stop for columns in layer.columns.values()))


def _blocks(layer: LoRALinear) -> list[tuple[int, int, int, int]]:
    """(member, first column, the member's first column, the column after its last) of every program's columns: no
    program crosses from one member into the next."""
    return [
        (member, first, columns.start, columns.stop)
        for member, columns in enumerate(layer.columns.values())
        for first in range(columns.start, columns.stop, BLOCK_OUT)
    ]


@dataclass(frozen=True)
class Tiles:
    """Rows of a step in runs of at most `height` that use the same slots."""

    height: int
    spans: Tensor  # (tiles, 2) int32: first row, rows
    slots: Tensor  # (tiles, adapters) int32; 0 fills up
    strengths: Tensor  # (tiles, adapters) float32


def rows_of(segments: Sequence[RowSegment], rows: int, device: torch.device) -> DeviceRows:
    """Slots and strengths row by row."""
    width = max(len(segment.slots) for segment in segments)
    slots = torch.zeros(rows, width, dtype=torch.int32)
    strengths = torch.zeros(rows, width)
    for segment in segments:
        for place, (slot, strength) in enumerate(segment.slots):
            slots[segment.start : segment.end, place] = slot
            strengths[segment.start : segment.end, place] = strength
    return DeviceRows(slots.to(device, non_blocking=True), strengths.to(device, non_blocking=True))


def tiles_of(segments: Sequence[RowSegment], height: int, device: torch.device) -> Tiles:
    width = max(len(segment.slots) for segment in segments)
    spans: list[tuple[int, int]] = []
    mixes: list[list[tuple[int, float]]] = []
    for segment in segments:
        for first in range(segment.start, segment.end, height):
            spans.append((first, min(height, segment.end - first)))
            mixes.append([*segment.slots, *[(0, 0.0)] * (width - len(segment.slots))])
    slots = torch.tensor([[slot for slot, _ in mix] for mix in mixes], dtype=torch.int32)
    strengths = torch.tensor([[strength for _, strength in mix] for mix in mixes], dtype=torch.float32)
    on_device = [t.to(device, non_blocking=True) for t in (torch.tensor(spans, dtype=torch.int32), slots, strengths)]
    return Tiles(height, *on_device)
