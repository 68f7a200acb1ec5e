"""What the Train tab is given of the rest of the house. Serving's part comes as the few functions that are needed, so
that this floor does not know it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adapters.settings import Device
from adapters.ui.tab import ViewerOf
from training.jobs.fine_tuning import FineTuning


class ProbeCell(Protocol):
    """One answer; `step` 0 is the base's."""

    @property
    def step(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> str: ...


class ProbeRow(Protocol):
    @property
    def prompt(self) -> str: ...
    @property
    def system(self) -> str | None: ...
    @property
    def cells(self) -> Sequence[ProbeCell]: ...


class Probe(Protocol):
    @property
    def rows(self) -> Sequence[ProbeRow]: ...


class Probes(Protocol):
    """What snapshots answer to the questions of their run."""

    def kept(self, job_id: str) -> Probe:
        """What was answered so far. Reads the disk."""

    async def probe(self, job_id: str, *, key: str = "") -> Probe:
        """Have every snapshot answer what it has not answered yet."""


class Published(Protocol):
    @property
    def version(self) -> object: ...
    @property
    def new(self) -> bool: ...


@dataclass(frozen=True)
class TrainServices:
    tuning: FineTuning
    device: Device
    viewer_of: ViewerOf
    probes: Probes
    publish_snapshot: Callable[[str, str], Awaitable[Published]]  # (the snapshot's model id, the adapter's name)
    apart: Callable[..., Awaitable[Any]]  # runs a function that computes on a thread that ends with it
