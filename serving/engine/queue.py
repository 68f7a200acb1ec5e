"""WaitingQueue: who is served next. By priority, then fairly between keys, then fairly between the adapters of a
key, then by arrival.

Fair means: whoever has been served the fewest tokens comes first (virtual token counter, Sheng et al. 2024). A
newcomer starts level with those who wait, so that idling earns no credit; who has nothing here any more is
forgotten. The price of a choice grows with the keys and adapters that wait, never with the requests."""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from serving.engine.sequence import Request, Sequence
from serving.engine.slots import SlotBook

# A request whose adapters are in no slot lets others of its key, whose adapters are, pass for this many steps.
SLOT_PATIENCE_STEPS = 32
# When several lines need a slot, so many are asked in turn whether theirs would fit.
LOOK_AHEAD = 16

_by_service = attrgetter("served")


@dataclass(eq=False)
class _Line:
    """One key's requests on the same adapters, in order of arrival."""

    adapters: frozenset[str]
    served: int = 0  # tokens
    running: int = 0
    waiting: OrderedDict[Sequence, None] = field(default_factory=OrderedDict)
    passed_since: int | None = None  # step at which it was first, but had no slot


@dataclass(eq=False)
class _Key:
    """One caller's lines at one priority."""

    served: int = 0  # tokens
    lines: dict[frozenset[str], _Line] = field(default_factory=dict)

    @property
    def waiting(self) -> bool:
        return any(line.waiting for line in self.lines.values())

    def choose(self, slots: SlotBook, step: int) -> _Line | None:
        """The line whose first request may start now."""
        lines = [line for line in self.lines.values() if line.waiting]
        if not lines:
            return None
        claimant = self.lines.get(slots.claimed) if slots.claimed is not None else None
        if claimant and claimant.waiting and slots.has_room(claimant.adapters):
            return claimant
        first = min(lines, key=_by_service)
        ready = slots.ready()
        if first.adapters <= ready:
            return first
        if first.passed_since is None:
            first.passed_since = step
        if step - first.passed_since > SLOT_PATIENCE_STEPS:
            if slots.has_room(first.adapters):
                return first
            slots.claim(first.adapters)
            ready = slots.ready()
        at_hand = [line for line in lines if line.adapters <= ready]
        if at_hand:
            return min(at_hand, key=_by_service)
        nearest = heapq.nsmallest(LOOK_AHEAD, lines, key=_by_service)
        return next((line for line in nearest if slots.has_room(line.adapters)), None)


class WaitingQueue:
    """Requests that wait, and the counters of those that run."""

    def __init__(self) -> None:
        self._levels: dict[int, dict[str, _Key]] = {}  # priority → keys by name
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, sequence: Sequence) -> bool:
        key = self._levels.get(sequence.request.priority, {}).get(sequence.request.key)
        line = key.lines.get(sequence.request.adapters) if key else None
        return line is not None and sequence in line.waiting

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait, priority by priority; takes as long as there are many."""
        for priority in sorted(self._levels):
            for key in self._levels[priority].values():
                for line in key.lines.values():
                    yield from line.waiting

    def next(self, slots: SlotBook, step: int) -> Sequence | None:
        """The request to start now; it stays in the queue until `start`. None when no adapter that is asked for can
        have a slot. `step` counts the scheduler's steps."""
        for priority in sorted(self._levels):
            for key in sorted(self._levels[priority].values(), key=_by_service):
                line = key.choose(slots, step)
                if line is not None:
                    return next(iter(line.waiting))
        return None

    def add(self, sequence: Sequence) -> None:
        self._enqueue(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """A running request that had to stop: it is the first of its line again."""
        line = self._enqueue(sequence)
        line.waiting.move_to_end(sequence, last=False)
        line.running -= 1

    def start(self, sequence: Sequence) -> None:
        """The request runs from now on; `finish` or `put_back` ends that."""
        line = self._line(sequence.request)
        del line.waiting[sequence]
        line.running += 1
        line.passed_since = None
        self._size -= 1

    def finish(self, sequence: Sequence) -> None:
        self._line(sequence.request).running -= 1
        self._tidy(sequence.request)

    def remove(self, sequence: Sequence) -> None:
        """A waiting request leaves without having run."""
        del self._line(sequence.request).waiting[sequence]
        self._size -= 1
        self._tidy(sequence.request)

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """Count `tokens` as served to the request's key and adapters."""
        request = sequence.request
        self._levels[request.priority][request.key].served += tokens
        self._line(request).served += tokens

    def _enqueue(self, sequence: Sequence) -> _Line:
        request = sequence.request
        keys = self._levels.setdefault(request.priority, {})
        if (key := keys.get(request.key)) is None or not key.waiting:
            start = _level_with(keys.values())
            key = keys.setdefault(request.key, _Key())
            key.served = max(key.served, start)
        line = key.lines.get(request.adapters)
        if line is None or not line.waiting:
            start = _level_with(key.lines.values())
            line = key.lines.setdefault(request.adapters, _Line(request.adapters))
            line.served = max(line.served, start)
        line.waiting[sequence] = None
        self._size += 1
        return line

    def _line(self, request: Request) -> _Line:
        return self._levels[request.priority][request.key].lines[request.adapters]

    def _tidy(self, request: Request) -> None:
        """Forget what has nothing here any more."""
        keys = self._levels[request.priority]
        lines = keys[request.key].lines
        if not lines[request.adapters].waiting and not lines[request.adapters].running:
            del lines[request.adapters]
        if not lines:
            del keys[request.key]
        if not keys:
            del self._levels[request.priority]


def _level_with(others: Collection[_Key] | Collection[_Line]) -> int:
    """Tokens a newcomer counts as served: the fewest of those who wait, else the most of those who run."""
    waiting = [other.served for other in others if other.waiting]
    return min(waiting) if waiting else max((other.served for other in others), default=0)
