"""Where the compiled CPU kernels find the adapters' weights."""

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch

from serving.engine.kernels.native import NativeKernels
from serving.engine.lora import Delta, LoRALinear, StepRows


class SlotTable:
    """Where the adapters' weights of one layer lie, by slot, as the compiled kernel reads it."""

    def __init__(self, layer: LoRALinear, num_slots: int):
        self.num_slots = num_slots
        self.version = -1  # the layer's, when last looked at
        self._widths = [columns.stop - columns.start for columns in layer.columns.values()]
        self._numbers = {columns.start: number for number, columns in enumerate(layer.columns.values())}
        self._kept = torch.zeros(len(layer.columns), 3, num_slots, dtype=torch.int64)  # a, b, rank
        self._seen: list[Mapping[str, Delta] | None] = [None] * num_slots
        self._unfit: set[int] = set()  # slots
        self.members = torch.tensor(
            [
                [columns.start, columns.stop - columns.start, *(part.data_ptr() for part in kept)]
                for columns, kept in zip(layer.columns.values(), self._kept, strict=True)
            ]
        )
        self.update(layer)

    @property
    def fits(self) -> bool:
        """Whether the kernel takes what is in the slots."""
        return not self._unfit

    def update(self, layer: LoRALinear) -> None:
        """Note the slots whose adapter has changed: looking at all is what an activation costs."""
        self.version = layer.version
        for slot in range(self.num_slots):
            if (now := layer.low_rank(slot)) is not self._seen[slot]:
                self._seen[slot] = now
                self._note(layer, slot)

    def _note(self, layer: LoRALinear, slot: int) -> None:
        self._kept[:, :, slot] = 0
        self._unfit.discard(slot)
        for columns, delta in layer.parts(slot):
            assert delta.a is not None and delta.b is not None
            if not NativeKernels.fits(delta.a, delta.a.shape[1], *self._widths):
                self._unfit.add(slot)
            self._kept[self._numbers[columns.start], :, slot] = torch.tensor(
                [delta.a.data_ptr(), delta.b.data_ptr(), len(delta.a)]
            )


_tables: WeakKeyDictionary[LoRALinear, SlotTable] = WeakKeyDictionary()


def slot_table(layer: LoRALinear, rows: StepRows) -> SlotTable:
    table = _tables.get(layer)
    needed = rows.slots[-1] + 1
    if table is None or table.num_slots < needed:
        table = _tables[layer] = SlotTable(layer, 2 * needed)
    elif table.version != layer.version:
        table.update(layer)
    return table
