"""Where the compiled CPU kernels find the adapters' weights."""

from weakref import WeakKeyDictionary

import torch

from serving.engine.kernels.native import NativeKernels
from serving.engine.lora import LoRALinear, StepRows


class SlotTable:
    """Where the adapters' weights of one layer lie, by slot, as the compiled kernel reads it."""

    def __init__(self, layer: LoRALinear, num_slots: int):
        self.version = layer.version
        self.num_slots = num_slots
        widths = [columns.stop - columns.start for columns in layer.columns.values()]
        parts = [delta for slot in layer.slots for _, delta in layer.parts(slot)]
        self.fits = all(
            delta.a is not None and NativeKernels.fits(delta.a, delta.a.shape[1], *widths) for delta in parts
        )
        kept = torch.zeros(len(layer.columns), 3, num_slots, dtype=torch.int64)  # a, b, rank
        numbers = {columns.start: number for number, columns in enumerate(layer.columns.values())}
        for slot in layer.slots:
            for columns, delta in layer.parts(slot):
                assert delta.a is not None and delta.b is not None
                row = kept[numbers[columns.start]]
                row[0, slot], row[1, slot], row[2, slot] = delta.a.data_ptr(), delta.b.data_ptr(), len(delta.a)
        self._kept = kept
        self.members = torch.tensor(
            [
                [columns.start, columns.stop - columns.start, *(part.data_ptr() for part in kept[number])]
                for number, columns in enumerate(layer.columns.values())
            ]
        )


_tables: WeakKeyDictionary[LoRALinear, SlotTable] = WeakKeyDictionary()


def slot_table(layer: LoRALinear, rows: StepRows) -> SlotTable:
    table = _tables.get(layer)
    needed = rows.slots[-1] + 1
    if table is None or table.version != layer.version or table.num_slots < needed:
        table = _tables[layer] = SlotTable(layer, max(needed, max(layer.slots, default=0) + 1))
    return table
