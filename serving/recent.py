"""What the server has done lately: one sample a second, kept for 15 minutes, however many people look.

A sample reads the counts that /metrics reads, and keeps what changes with time; rates and percentiles of a while are
differences between two samples."""

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from serving.chat import ChatService
from serving.engine.histogram import Histogram

SAMPLE_S = 1.0
KEPT_S = 15 * 60

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counted:
    """A histogram as it stood: how often values fell into which range."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, histogram: Histogram) -> "Counted":
        return cls(histogram.bounds, tuple(histogram.counts))

    def since(self, earlier: "Counted") -> "Counted":
        return Counted(self.bounds, tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True)))

    @property
    def total(self) -> int:
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """As Prometheus' histogram_quantile: linear within the range that holds it, the last bound beyond all of them;
        None without values."""
        if not self.total:
            return None
        rank, below, lower = q * self.total, 0, 0.0
        for upper, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below, lower = below + count, upper
        return self.bounds[-1]


@dataclass(frozen=True)
class Sample:
    """The server at one moment. Counts are since its start, memory is in bytes."""

    at_s: float  # time.monotonic
    running: int
    waiting: int
    kv_used: int  # blocks
    admitted: int  # prompt tokens of admitted requests
    cached: int  # those of them in the prefix cache
    active: int  # adapters in slots
    host_bytes: int  # of adapters
    device_bytes: int
    resident_bytes: int | None  # of the process; None where the system does not tell
    gpu_bytes: int | None  # allocated on the device; None without one
    prompt: Mapping[str, int]  # tokens by adapter
    generated: Mapping[str, int]
    first_token_s: Counted
    between_tokens_s: Counted

    @property
    def prompt_tokens(self) -> int:
        return sum(self.prompt.values())

    @property
    def generated_tokens(self) -> int:
        return sum(self.generated.values())


@dataclass(frozen=True)
class Totals:
    """Since the start, and what there is of everything."""

    answers: int
    errors: int  # answers that failed
    failed_steps: int
    preemptions: int
    refused: int  # HTTP requests refused with 429
    kv_blocks: int
    slots: int
    host_budget: int
    device_budget: int | None


class Recent:
    """`refused` counts what was refused so far. Written by one task, read by anyone on the event loop."""

    def __init__(self, chat: ChatService, refused: Callable[[], int] = lambda: 0):
        self._chat = chat
        self._refused = refused
        self._samples: deque[Sample] = deque(maxlen=int(KEPT_S / SAMPLE_S) + 1)
        self.take()

    async def watch(self) -> None:
        """A sample a second, until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            try:
                self.take()
            except Exception:  # a chart with a gap is better than none from now on
                log.exception("the server's figures cannot be sampled")

    def take(self) -> Sample:
        """Add a sample of this moment."""
        engine, figures = self._chat.engine.engine, self._chat.engine.figures
        bank = engine.bank.figures()
        cuda = self._chat.base.device.type == "cuda"
        tokens = dict(figures.tokens)  # a copy, which is made at once
        sample = Sample(
            at_s=time.monotonic(),
            running=engine.num_running,
            waiting=self._chat.engine.num_waiting,
            kv_used=engine.pool.num_used,
            admitted=engine.scheduler.prompt_tokens,
            cached=engine.scheduler.cached_tokens,
            active=bank.active,
            host_bytes=bank.host_bytes,
            device_bytes=bank.device_bytes,
            resident_bytes=_resident_bytes(),
            gpu_bytes=torch.cuda.memory_allocated(self._chat.base.device) if cuda else None,
            prompt=self._kept("prompt", {name: served.prompt for name, served in tokens.items()}),
            generated=self._kept("generated", {name: served.generated for name, served in tokens.items()}),
            first_token_s=Counted.of(figures.first_token_s),
            between_tokens_s=Counted.of(figures.between_tokens_s),
        )
        self._samples.append(sample)
        return sample

    def _kept(self, name: str, counts: Mapping[str, int]) -> Mapping[str, int]:
        """`counts`, or the last sample's when they are the same: a quiet server keeps one, not 900."""
        last: Mapping[str, int] = getattr(self._samples[-1], name) if self._samples else {}
        return last if last == counts else counts

    @property
    def now(self) -> Sample:
        return self._samples[-1]

    @property
    def totals(self) -> Totals:
        engine, figures = self._chat.engine.engine, self._chat.engine.figures
        ended = {str(reason): number for reason, number in dict(figures.ended).items()}
        bank = engine.bank
        return Totals(
            answers=sum(ended.values()),
            errors=ended.get("error", 0),
            failed_steps=engine.failed_steps,
            preemptions=engine.scheduler.preemptions,
            refused=self._refused(),
            kv_blocks=engine.pool.num_blocks,
            slots=bank.num_slots,
            host_budget=bank.host_budget,
            device_budget=bank.device_budget,
        )

    def window(self, seconds: float) -> "Window":
        """The samples of the last `seconds`, and the one before them."""
        since = self.now.at_s - seconds
        samples = list(self._samples)
        first = next(index for index, sample in enumerate(samples) if sample.at_s >= since)
        return Window(samples[max(0, first - 1) :], seconds)


@dataclass(frozen=True)
class Window:
    """Some samples in a row, at least one."""

    samples: Sequence[Sample]
    seconds: float  # how long it was asked for; the server may be younger

    @property
    def first(self) -> Sample:
        return self.samples[0]

    @property
    def last(self) -> Sample:
        return self.samples[-1]

    def rate(self, count: Callable[[Sample], int]) -> float:
        """A second, of what is counted since the start."""
        seconds = self.last.at_s - self.first.at_s
        return (count(self.last) - count(self.first)) / seconds if seconds > 0 else 0.0

    def cached_share(self) -> float | None:
        """Of the admitted prompt tokens, those found in the prefix cache; None without any."""
        admitted = self.last.admitted - self.first.admitted
        return (self.last.cached - self.first.cached) / admitted if admitted else None

    def spread(self, histogram: Callable[[Sample], Counted]) -> Counted:
        """What fell into the window."""
        return histogram(self.last).since(histogram(self.first))

    def tokens_by_adapter(self) -> list[tuple[str, int, int]]:
        """(adapter, prompt tokens, generated tokens) of those asked in the window, most tokens first."""
        prompt = Counter(self.last.prompt)
        prompt.subtract(self.first.prompt)
        generated = Counter(self.last.generated)
        generated.subtract(self.first.generated)
        rows = [(name, prompt[name], generated[name]) for name in generated.keys() | prompt.keys()]
        busy = [row for row in rows if row[1] or row[2]]
        return sorted(busy, key=lambda row: (-row[1] - row[2], row[0]))

    def steps(self, points: int) -> list["Window"]:
        """At most about `points` windows, one after another, each beginning with the sample that ends the one before:
        a point of a chart each."""
        stride = max(1, -(-(len(self.samples) - 1) // points))
        # Cut at moments that are the same at the next look: else a chart would tremble.
        cuts = [at for at in range(1, len(self.samples) - 1) if int(self.samples[at].at_s / SAMPLE_S) % stride == 0]
        edges = [0, *cuts, len(self.samples) - 1]
        return [
            Window(self.samples[start : end + 1], self.samples[end].at_s - self.samples[start].at_s)
            for start, end in pairwise(edges)
            if end > start
        ]

    def highest(self, value: Callable[[Sample], float]) -> float:
        """Of the samples after the first, which belongs to the window before."""
        return max(value(sample) for sample in self.samples[1:] or self.samples)


def _resident_bytes() -> int | None:
    """Of this process, from Linux's /proc, as /metrics has it."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
