"""The scheduler: which sequences run in the next step, and how many tokens of each.

Running sequences go first, one token each while they decode; what is left of the token budget goes to
prompts, in chunks, in order of arrival. When blocks run out the sequence admitted last gives its own back and
starts over later (its beginning usually still sits in the prefix cache)."""

from collections import deque
from collections.abc import Iterable

from serving.engine.bank import AdapterBank
from serving.engine.kv_cache import BlockPool
from serving.engine.sequence import AdapterMix, Batch, Chunk, Sequence

# A request whose adapter finds no slot lets later ones pass for this many steps; then it is served next.
SLOT_PATIENCE_STEPS = 32


def digests_of(mix: AdapterMix) -> set[str]:
    return {digest for digest, _ in mix}


class Scheduler:
    def __init__(self, pool: BlockPool, bank: AdapterBank, *, max_batch_tokens: int, max_running: int):
        self.pool = pool
        self.bank = bank
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and free its blocks at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pool.release(sequence)

    def schedule(self) -> Batch:
        """The next step's work; empty when there is none."""
        budget = self.max_batch_tokens
        batch: Batch = []
        # Decoding rows first, so that a long prompt never makes a running answer wait.
        for sequence in sorted(self.running, key=lambda s: s.remaining > 1):
            if sequence not in self.running or budget == 0:
                continue  # preempted by one before it, or no tokens left in this step
            count = min(sequence.remaining, budget)
            if self._make_room(sequence, sequence.num_computed + count):
                batch.append(Chunk(sequence, sequence.num_computed, count))
                budget -= count
        batch = [chunk for chunk in batch if chunk.sequence in self.running]
        for sequence in self._admit(budget, nothing_else=not batch):
            count = min(sequence.remaining, budget, self._fitting(sequence))
            self.pool.grow(sequence, sequence.num_computed + count)
            batch.append(Chunk(sequence, sequence.num_computed, count))
            budget -= count
        return batch

    def settle(self, batch: Batch) -> None:
        """Note that a step's keys and values are in the cache."""
        for chunk in batch:
            chunk.sequence.num_computed = chunk.end
            self.pool.share(chunk.sequence)

    def digests_in_use(self) -> set[str]:
        return {digest for sequence in self.running for digest in digests_of(sequence.request.mix)}

    def _admit(self, budget: int, *, nothing_else: bool) -> Iterable[Sequence]:
        """Move waiting sequences to the running ones, yielding each; the caller spends the tokens between."""
        passed_over = 0
        while len(self.waiting) > passed_over and len(self.running) < self.max_running and budget > 0:
            sequence = self.waiting[passed_over]
            wanted = digests_of(sequence.request.mix)
            if not self.bank.can_activate(wanted, self.digests_in_use()):
                sequence.waited_steps += 1
                if sequence.waited_steps > SLOT_PATIENCE_STEPS:
                    return
                passed_over += 1
                continue
            reused = self.pool.reuse_prefix(sequence)
            if self._fitting(sequence) - reused < min(len(sequence.tokens) - reused, budget) and not (
                nothing_else and not self.running
            ):
                self.pool.release(sequence)
                return
            sequence.num_computed = reused
            if not sequence.num_output:
                sequence.num_cached = reused
            self.bank.activate(wanted, self.digests_in_use())
            del self.waiting[passed_over]
            self.running.append(sequence)
            budget -= min(sequence.remaining, budget, self._fitting(sequence))
            yield sequence

    def _fitting(self, sequence: Sequence) -> int:
        """Tokens beyond the computed ones for which blocks could be had now."""
        return (len(sequence.blocks) + self.pool.num_free) * self.pool.block_size - sequence.num_computed

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Blocks for the sequence's first `num_tokens`, taken from sequences admitted later if need be. False when
        the sequence itself had to step back."""
        while not self.pool.grow(sequence, num_tokens):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)
