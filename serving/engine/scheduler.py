"""The scheduler: which sequences run in the next step, and how many tokens of each.

Running sequences go first, one token each while they decode; what is left of the token budget goes to prompts,
in chunks. When blocks run out, the sequence admitted last of the lowest priority gives its own back and starts
over later (its beginning usually still sits in the prefix cache). Who is admitted next is the queue's business,
which adapters may have slots the slot book's."""

import time
from collections.abc import Iterator

from serving.engine.bank import AdapterBank
from serving.engine.histogram import Histogram
from serving.engine.kv_cache import BlockPool
from serving.engine.queue import WaitingQueue
from serving.engine.sequence import Batch, Chunk, Sequence
from serving.engine.slots import SlotBook

# So many prompts may be in progress although the first of them fills the step: a short one need not wait for a long
# one to end. Not more, because prompts begun in the same step find nothing of each other in the prefix cache.
PROMPTS_AT_ONCE = 4
_QUEUE_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class CannotStart(Exception):
    """`sequence` cannot be given what it needs to start; the cause says why. Nothing else is affected."""

    def __init__(self, sequence: Sequence):
        super().__init__(sequence.request.id)
        self.sequence = sequence


class Scheduler:
    def __init__(self, pool: BlockPool, bank: AdapterBank, *, max_batch_tokens: int, max_running: int):
        self.pool = pool
        self.slots = SlotBook(bank)
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.waiting = WaitingQueue()
        self.running: dict[Sequence, None] = {}  # in order of admission
        self._steps = 0
        self.queue_s = Histogram(_QUEUE_S)  # from arrival to first admission
        self.preemptions = 0
        self.prompt_tokens = 0  # of admitted requests, and how many of them the prefix cache had
        self.cached_tokens = 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and free its blocks at once."""
        if sequence in self.running:
            self._stop(sequence)
            self.waiting.finish(sequence)
        else:
            self.waiting.remove(sequence)
            self.slots.drop_claim(sequence.request.adapters)

    def schedule(self) -> Batch:
        """The next step's work; empty when there is none. Raises CannotStart; the next call then goes on without that
        sequence, once it is removed."""
        self._steps += 1
        decoding = self._decoding()
        budget = self.max_batch_tokens - len(decoding)
        self._admit(decoding, budget)
        prompts = [sequence for sequence in self.running if sequence not in decoding]
        return [
            *(Chunk(sequence, sequence.num_computed, 1) for sequence in decoding),
            *(Chunk(sequence, sequence.num_computed, count) for sequence, count in _share_out(prompts, budget)),
        ]

    def settle(self, batch: Batch) -> None:
        """Note that a step's keys and values are in the cache, and whom it served."""
        for chunk in batch:
            chunk.sequence.num_computed = chunk.end
            self.pool.share(chunk.sequence)
            if chunk.samples:
                self.waiting.charge(chunk.sequence, 1)

    def digests_in_use(self) -> set[str]:
        return set(self.slots.in_use)

    def _decoding(self) -> dict[Sequence, None]:
        """Running sequences that only need their next token, with a block for it."""
        decoding: dict[Sequence, None] = {}
        # The most important first, so that whoever has to step back has not been scheduled yet.
        for sequence in sorted(self.running, key=_priority):
            if len(decoding) == self.max_batch_tokens:
                break
            if sequence in self.running and sequence.remaining == 1 and self._make_room(sequence):
                decoding[sequence] = None
        return decoding

    def _admit(self, decoding: dict[Sequence, None], budget: int) -> None:
        """Start waiting sequences until the step is full, or the places, the blocks or the slots."""
        prompts = [sequence.remaining for sequence in self.running if sequence not in decoding]
        while budget > 0 and len(self.running) < self.max_running:
            if sum(prompts) >= budget and len(prompts) >= PROMPTS_AT_ONCE:
                return
            sequence = self.waiting.next(self.slots, self._steps)
            if sequence is None or not self._start(sequence):
                return
            prompts.append(sequence.remaining)

    def _start(self, sequence: Sequence) -> bool:
        """Give a waiting sequence blocks for all its tokens, and its adapters slots. False when the pool is short: all
        others wait with it, else small requests would keep a large one out for ever."""
        # A block for each running sequence is left over, or one of them would soon send the newcomer back.
        reserve = len(self.running)
        if self.running and self.pool.num_free <= reserve:
            return False
        reused = self.pool.reuse_prefix(sequence)
        missing = self.pool.blocks_for(len(sequence.tokens)) - len(sequence.blocks)
        if self.running and missing + reserve > self.pool.num_free:
            self.pool.release(sequence)
            return False
        try:
            self.slots.take(sequence.request.adapters)
        except Exception as error:
            self.pool.release(sequence)
            raise CannotStart(sequence) from error
        grown = self.pool.grow(sequence, len(sequence.tokens))
        assert grown, "Engine.check admits only what fits alone"
        sequence.num_computed = reused
        self.waiting.start(sequence)
        self.running[sequence] = None
        if not sequence.started:
            sequence.started = True
            sequence.num_cached = reused
            self.queue_s.observe(time.perf_counter() - sequence.request.arrived_s)
            self.prompt_tokens += sequence.num_prompt
            self.cached_tokens += reused
            # At once, not as they are computed: the next choice in this step is made by the new count.
            self.waiting.charge(sequence, sequence.remaining)
        return True

    def _make_room(self, sequence: Sequence) -> bool:
        """Blocks for all the sequence's tokens, taken from less important sequences if need be. False when the
        sequence itself had to step back."""
        while not self.pool.grow(sequence, len(sequence.tokens)):
            victim = max(reversed(self.running), key=_priority)
            self._stop(victim)
            self.preemptions += 1
            self.waiting.put_back(victim)
            if victim is sequence:
                return False
        return True

    def _stop(self, sequence: Sequence) -> None:
        """Take everything back that a running sequence holds."""
        del self.running[sequence]
        self.pool.release(sequence)
        self.slots.give_back(sequence.request.adapters)
        sequence.num_computed = 0


def _priority(sequence: Sequence) -> int:
    return sequence.request.priority


def _share_out(prompts: list[Sequence], budget: int) -> Iterator[tuple[Sequence, int]]:
    """Tokens of each prompt in this step: half of them to the first in order, so that a long one takes at most twice
    its time, the rest to the shortest first, so that short ones answer soon."""
    if not prompts or budget <= 0:
        return
    first, *others = sorted(prompts, key=_priority)
    wanted = sum(sequence.remaining for sequence in others)
    count = min(first.remaining, max(budget - wanted, (budget + 1) // 2))
    yield first, count
    for sequence in sorted(others, key=lambda sequence: (_priority(sequence), sequence.remaining)):
        budget -= count
        count = min(sequence.remaining, budget)
        if not count:
            return
        yield sequence, count
