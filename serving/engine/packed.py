"""PackedAdapter: an adapter's tensors in one buffer of host memory, so that one copy brings all of it to the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from serving.engine.lora import Delta

_ALIGNMENT = 64  # bytes; oneDNN and vector loads want it, and any element type fits


@dataclass(frozen=True)
class PackedAdapter:
    buffer: Tensor  # (bytes,) uint8
    deltas: dict[str, Delta]  # by module path; their tensors lie in `buffer`

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    def on(self, device: torch.device) -> dict[str, Delta]:
        """The deltas on `device`: themselves where they lie already, else views of one copy. From page-locked memory
        the copy runs beside the host; the device's later work waits for it."""
        if device == self.buffer.device:
            return self.deltas
        copy, start = self.buffer.to(device, non_blocking=True), self.buffer.data_ptr()

        def there(tensor: Tensor) -> Tensor:
            return _view(copy, tensor.data_ptr() - start, tensor)

        return {name: delta.map(there) for name, delta in self.deltas.items()}


def pack(deltas: dict[str, Delta], *, page_locked: bool) -> PackedAdapter:
    """A copy of the deltas in one buffer; tensors that appear twice (a tied output layer's) are kept once."""
    starts: dict[int, int] = {}
    size = 0
    for tensor in (tensor for delta in deltas.values() for tensor in delta.tensors()):
        if tensor.data_ptr() not in starts:
            starts[tensor.data_ptr()] = size
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=page_locked)

    def packed(tensor: Tensor) -> Tensor:
        return _view(buffer, starts[tensor.data_ptr()], tensor).copy_(tensor)

    return PackedAdapter(buffer, {name: delta.map(packed) for name, delta in deltas.items()})


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    return buffer.view(like.dtype).as_strided(like.shape, like.stride(), start // like.itemsize)
