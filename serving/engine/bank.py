"""AdapterBank: which adapters are in host memory and which on the device, in slots the layers read from.

Reading from disk (`warm`) happens on any thread and never inside a step; activating copies host → device and
is the engine thread's alone. Slot 0 is the base and is never used. Weights are known by digest only: names and
versions are the registry's business."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Set
from pathlib import Path

import torch

from adapters.errors import Unavailable
from adapters.manifest import AdapterVersion
from adapters.weights import AdapterWeights, LinearShapes, LoRAWeights, read_adapter
from serving.engine.lora import LoRALinear

_HOST = torch.device("cpu")


class AdapterBank:
    def __init__(
        self,
        layers: dict[str, LoRALinear],
        shapes: LinearShapes,
        *,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.num_slots = num_slots
        self._layers = layers
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self._host: dict[str, AdapterWeights] = {}
        self._active: OrderedDict[str, int] = OrderedDict()  # digest → slot, least recently used first
        self._empty = list(range(num_slots, 0, -1))
        self._lock = threading.Lock()

    def warm(self, version: AdapterVersion) -> AdapterWeights:
        """The adapter's weights in host memory, read from disk if need be. Blocks; any thread.

        Raises Invalid or NotFound when the files do not fit the base."""
        weights = self._host.get(version.digest)
        if weights is None:
            weights = read_adapter(version.directory, self._shapes, self._dtype, _HOST)
            with self._lock:
                weights = self._host.setdefault(version.digest, weights)
        return weights

    def check(self, directory: Path) -> None:
        """Read an adapter only to see whether it fits. Raises Invalid or NotFound. Blocks; any thread."""
        read_adapter(directory, self._shapes, self._dtype, _HOST)

    def status(self, digest: str) -> str:
        """ "active" (on the device), "warm" (in host memory) or "cold" (on disk)."""
        return "active" if digest in self._active else "warm" if digest in self._host else "cold"

    def nbytes(self, digest: str) -> int:
        """Bytes held in memory for the adapter, host and device together."""
        weights = self._host.get(digest)
        if weights is None:
            return 0
        on_device = digest in self._active and self._device != _HOST
        return weights.nbytes * (2 if on_device else 1)

    @property
    def active(self) -> Set[str]:
        """Digests of the adapters in slots."""
        return self._active.keys()

    @property
    def num_active(self) -> int:
        return len(self._active)

    def can_activate(self, digests: Collection[str], in_use: Collection[str]) -> bool:
        """Whether all of `digests` fit beside the adapters that running sequences use."""
        return len(set(digests) | set(in_use)) <= self.num_slots

    def activate(self, digests: Collection[str], in_use: Collection[str]) -> None:
        """Bring adapters into slots, evicting those used longest ago that no running sequence uses.

        Callers check `can_activate`. Raises Unavailable when an adapter was freed before its request ran."""
        wanted = set(digests)
        for digest in digests:
            if digest not in self._active:
                self._load(digest, keep=wanted | set(in_use))
            self._active.move_to_end(digest)

    def slot(self, digest: str) -> int:
        return self._active[digest]

    def free(self, digest: str) -> int:
        """Drop the adapter from device and host; returns the bytes freed. Engine thread, and only when no running
        sequence uses it."""
        freed = self.nbytes(digest)
        if digest in self._active:
            self._unload(digest)
        with self._lock:
            self._host.pop(digest, None)
        return freed

    def _load(self, digest: str, keep: set[str]) -> None:
        weights = self._host.get(digest)
        if weights is None:
            raise Unavailable("the adapter was unloaded before the request could run; send the request again")
        if not self._empty:
            self._unload(next(old for old in self._active if old not in keep))
        slot = self._empty.pop()
        for name, module in weights.modules.items():
            on_device = LoRAWeights(
                module.a.to(self._device, non_blocking=True), module.b.to(self._device, non_blocking=True)
            )
            self._layers[name].load(slot, name, on_device)
        self._active[digest] = slot

    def _unload(self, digest: str) -> None:
        slot = self._active.pop(digest)
        for layer in self._layers.values():
            layer.unload(slot)
        self._empty.append(slot)
