"""AdapterBank: which adapters are in host memory and which on the device, in slots the layers read from.

Three tiers: disk, host, device. Reading from disk (`warm`) happens on any thread and never inside a step; activating
copies host → device and is the engine thread's alone. Both memories have a budget in bytes and no limit of rank; the
least recently used adapters make room. From host memory those are never dropped that sit in a slot, are pinned, or are
held for a request: these may exceed the budget. Slot 0 is the base and is never used. Weights are known by digest
only: names and versions are the registry's business."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from adapters.errors import Invalid, Unavailable
from adapters.manifest import AdapterVersion
from adapters.settings import Settings
from adapters.weights import LinearShapes
from serving.engine.fit import Layers, read_deltas
from serving.engine.packed import PackedAdapter, pack

GIB = 2**30
CUDA_ADAPTER_MEMORY = 2.0  # GiB, when the setting leaves it open


@dataclass(frozen=True)
class BankFigures:
    """What the bank holds now, in adapters and bytes, and what it has done since the start. A device budget of None:
    the slots alone are the limit."""

    host: int
    host_bytes: int
    host_budget: int
    active: int
    device_bytes: int
    device_budget: int | None
    pinned: int
    held: int
    activations: int
    evictions: int
    host_evictions: int
    disk_reads: int


def adapter_budgets(settings: Settings, device: torch.device) -> tuple[int, int | None]:
    """Bytes for adapters in host memory and on the device."""
    on_device = settings.adapter_memory
    if on_device is None and device.type == "cuda":
        on_device = CUDA_ADAPTER_MEMORY
    return int(settings.adapter_host_memory * GIB), None if on_device is None else int(on_device * GIB)


class AdapterBank:
    def __init__(
        self,
        layers: Layers,
        shapes: LinearShapes,
        *,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
        host_budget: int = 4 * GIB,
        device_budget: int | None = None,
    ):
        self.num_slots = num_slots
        self.host_budget = host_budget
        self.device_budget = device_budget
        self._layers = layers
        self._distinct = list({id(layer): layer for layer in layers.values()}.values())
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self._host: OrderedDict[str, PackedAdapter] = OrderedDict()  # by digest, least recently used first
        self._active: OrderedDict[str, int] = OrderedDict()  # digest → slot, least recently used first
        self._empty = list(range(num_slots, 0, -1))
        self._pinned: set[str] = set()
        self._held: Counter[str] = Counter()
        self._reading: dict[str, threading.Lock] = {}
        self._host_bytes = 0
        self._counts: Counter[Literal["activations", "evictions", "host_evictions", "disk_reads"]] = Counter()
        self._lock = threading.Lock()  # for all of the above

    # Host memory: any thread.

    def warm(self, version: AdapterVersion) -> None:
        """Bring the adapter's weights into host memory, from disk if need be; threads that ask for the same at once
        read it once. They may be dropped again unless the digest is held or pinned. Blocks.

        Raises Invalid or NotFound when the files do not fit the base, Invalid when they are larger than the memory set
        aside."""
        with self._lock:
            reading = self._reading.setdefault(version.digest, threading.Lock())
        with reading:
            if not self._touch(version.digest):
                adapter = self._read(version.directory)
                with self._lock:
                    self._host[version.digest] = adapter
                    self._host_bytes += adapter.nbytes
                    self._counts["disk_reads"] += 1
                    self._trim(keep={version.digest})
            with self._lock:
                self._reading.pop(version.digest, None)

    def check(self, directory: Path) -> None:
        """Read an adapter only to see whether it fits. Raises Invalid or NotFound. Blocks."""
        self._read(directory)

    def hold(self, digest: str) -> None:
        """Keep the adapter in host memory, once it is there, until as many `release`: a request needs it."""
        with self._lock:
            self._held[digest] += 1

    def release(self, digest: str) -> None:
        with self._lock:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]
                self._trim()

    def pin(self, digest: str) -> None:
        """Never drop the adapter from host memory, once it is there, and leave it in its slot as long as evicting
        others is enough."""
        with self._lock:
            self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        with self._lock:
            self._pinned.discard(digest)
            self._trim()

    def is_pinned(self, digest: str) -> bool:
        return digest in self._pinned

    def status(self, digest: str) -> str:
        """ "active" (on the device), "warm" (in host memory) or "cold" (on disk)."""
        return "active" if digest in self._active else "warm" if digest in self._host else "cold"

    def nbytes(self, digest: str) -> int:
        """Bytes held in memory for the adapter, host and device together."""
        adapter = self._host.get(digest)
        if adapter is None:
            return 0
        on_device = digest in self._active and self._device.type != "cpu"
        return adapter.nbytes * (2 if on_device else 1)

    def figures(self) -> BankFigures:
        with self._lock:
            return BankFigures(
                host=len(self._host),
                host_bytes=self._host_bytes,
                host_budget=self.host_budget,
                active=len(self._active),
                device_bytes=self._size(self._active),
                device_budget=self.device_budget,
                pinned=len(self._pinned),
                held=len(self._held),
                activations=self._counts["activations"],
                evictions=self._counts["evictions"],
                host_evictions=self._counts["host_evictions"],
                disk_reads=self._counts["disk_reads"],
            )

    def require_room(self, digests: Collection[str]) -> None:
        """Invalid when these adapters, all warm, could never be on the device together, whatever else is evicted."""
        wanted = set(digests)
        if len(wanted) > self.num_slots:
            raise Invalid(
                f"the request combines {len(wanted)} adapters, the server holds {self.num_slots} at once; name fewer, "
                "or raise --adapter-slots",
                param="lora",
            )
        needed = self._size(wanted)
        if self.device_budget is not None and needed > self.device_budget:
            with self._lock:
                free = self.device_budget - self._size(self._active)
            raise Invalid(
                f"the request's adapters need {_mib(needed)} on the device, adapter_memory is "
                f"{_mib(self.device_budget)} ({_mib(max(free, 0))} free now); raise --adapter-memory, or choose a "
                "smaller rank",
                param="lora",
            )

    # Slots: the engine's thread.

    @property
    def active(self) -> Set[str]:
        """Digests of the adapters in slots."""
        return self._active.keys()

    @property
    def num_active(self) -> int:
        return len(self._active)

    def can_activate(self, digests: Collection[str], in_use: Collection[str]) -> bool:
        """Whether all of `digests` fit beside the adapters that running sequences use. Its cost grows with the slots
        alone."""
        together = {*digests, *in_use}
        return len(together) <= self.num_slots and (
            self.device_budget is None or self._size(together) <= self.device_budget
        )

    def activate(self, digests: Collection[str], in_use: Collection[str]) -> None:
        """Bring adapters into slots, evicting as many of those used longest ago, and by no running sequence, as their
        number and bytes need; pinned ones last.

        Callers check `can_activate`. Raises Unavailable when an adapter was freed before its request ran."""
        keep = {*digests, *in_use}
        for digest in digests:
            if digest not in self._active:
                self._load(digest, keep)
            with self._lock:
                self._active.move_to_end(digest)
                self._host.move_to_end(digest)

    def slot(self, digest: str) -> int:
        return self._active[digest]

    def free(self, digest: str) -> int:
        """Drop the adapter from device and host, pinned or not; returns the bytes freed. Only when no running sequence
        uses it."""
        freed = self.nbytes(digest)
        if digest in self._active:
            self._unload(digest)
        with self._lock:
            self._pinned.discard(digest)
            self._drop(digest)
        return freed

    def _load(self, digest: str, keep: set[str]) -> None:
        adapter = self._host.get(digest)
        if adapter is None:
            raise Unavailable("the adapter was unloaded before the request could run; send the request again")
        while not self._empty or self._lacks(adapter.nbytes):
            self._evict(keep)
        slot = self._empty.pop()
        for name, delta in adapter.on(self._device).items():
            self._layers[name].load(slot, name, delta)
        with self._lock:
            self._active[digest] = slot
            self._counts["activations"] += 1

    def _lacks(self, nbytes: int) -> bool:
        return self.device_budget is not None and self._size(self._active) + nbytes > self.device_budget

    def _evict(self, keep: set[str]) -> None:
        idle = [digest for digest in self._active if digest not in keep]
        self._unload(next((digest for digest in idle if digest not in self._pinned), idle[0]))
        with self._lock:
            self._counts["evictions"] += 1
            self._trim(keep)

    def _unload(self, digest: str) -> None:
        with self._lock:
            slot = self._active.pop(digest)
        for layer in self._distinct:
            layer.unload(slot)
        self._empty.append(slot)

    # Below, `_lock` is the caller's where the name does not say otherwise.

    def _read(self, directory: Path) -> PackedAdapter:
        """Without the lock."""
        adapter = pack(
            read_deltas(directory, self._layers, self._shapes, self._dtype), page_locked=self._device.type == "cuda"
        )
        if adapter.nbytes > self.host_budget:
            raise Invalid(
                f"{directory}: the adapter needs {_mib(adapter.nbytes)} of host memory, adapter_host_memory is "
                f"{_mib(self.host_budget)}; raise --adapter-host-memory, or choose a smaller rank"
            )
        return adapter

    def _touch(self, digest: str) -> bool:
        """Mark the adapter as just used; False when it is not in host memory. Takes the lock."""
        with self._lock:
            if digest in self._host:
                self._host.move_to_end(digest)
            return digest in self._host

    def _trim(self, keep: Collection[str] = ()) -> None:
        """Drop adapters from host memory until it is within budget or all that is left is needed."""
        if self._host_bytes <= self.host_budget:
            return
        for digest in list(self._host):
            if digest in self._active or digest in self._pinned or digest in self._held or digest in keep:
                continue
            self._drop(digest)
            self._counts["host_evictions"] += 1
            if self._host_bytes <= self.host_budget:
                return

    def _drop(self, digest: str) -> None:
        adapter = self._host.pop(digest, None)
        if adapter is not None:
            self._host_bytes -= adapter.nbytes

    def _size(self, digests: Iterable[str]) -> int:
        """Bytes of those that are in host memory, as all active and held ones are. Needs no lock."""
        return sum(adapter.nbytes for digest in digests if (adapter := self._host.get(digest)))


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"
