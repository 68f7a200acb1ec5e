"""Training steps back while a server of the same home has answers to give, and comes forward again when it has none.

Three things, the first two for as long as the server is in use: fewer threads, pauses between the pieces of a step, and
a nice level, which cannot be taken back. It never starves: of the time it could have computed it gets SHARE."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from adapters.presence import awaited
from training.runs.nice import be_nice

SHARE = 0.2  # of the time, at least, that training gets while answers are awaited all the time
PAUSE_S = 0.02  # between two looks at the server
QUIET_S = 5.0  # without an answer awaited, after which all threads compute again


class Yielding:
    """One training run's manners. `step_back` belongs between any two pieces of work."""

    def __init__(
        self,
        home: Path,
        stopping: Callable[[], bool] = lambda: False,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.home = home
        self.pauses = 0
        self.paused_s = 0.0
        self._stopping = stopping
        self._clock = clock
        self._sleep = sleep
        self._resumed: float | None = None  # None: nothing has been computed yet
        self._all_threads: int | None = None  # while there are fewer
        self._last_answer = float("-inf")

    def step_back(self) -> None:
        """Wait as long as answers are awaited, at most as long as is owed for the work since the last call, and not
        when the run is to stop."""
        now = self._clock()
        owed = 0.0 if self._resumed is None else (now - self._resumed) * (1 / SHARE - 1)
        while self._in_use() and owed > 0 and not self._stopping():
            self.pauses += 1
            self._sleep(min(PAUSE_S, owed))
            later = self._clock()
            owed -= later - now
            self.paused_s += later - now
            now = later
        self._resumed = self._clock()

    def end(self) -> None:
        """Give this process its threads back."""
        self._use_all_threads()

    def _in_use(self) -> bool:
        """Whether answers are awaited now; adapts the threads on the way."""
        busy = awaited(self.home).answers > 0
        now = self._clock()
        if busy:
            self._last_answer = now
            self._use_half_the_threads()
        elif now - self._last_answer > QUIET_S:
            self._use_all_threads()
        return busy

    def _use_half_the_threads(self) -> None:
        if self._all_threads is None:
            self._all_threads = torch.get_num_threads()
            torch.set_num_threads(max(1, self._all_threads // 2))
            be_nice(os.getpid())

    def _use_all_threads(self) -> None:
        if self._all_threads is not None:
            torch.set_num_threads(self._all_threads)
            self._all_threads = None
