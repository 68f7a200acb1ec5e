"""How often values fell into which range. Plain numbers with one writer, so that a step can afford it; whoever
publishes them reads them from any thread."""

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    def __init__(self, bounds: Sequence[float]):
        """`bounds` ascend; the last range is open."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # a range each, its upper bound included
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times
