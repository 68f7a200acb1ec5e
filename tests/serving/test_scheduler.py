"""The scheduler, its queue and the block pool under any order of arrivals, steps and departures: the books always
balance, and everyone gets to the end."""

from collections import Counter

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.engine.bank import AdapterBank
from serving.engine.kv_cache import BlockPool
from serving.engine.packed import pack
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Request, SamplingParams, Sequence

BLOCKS, BLOCK_SIZE, BUDGET, RUNNING, SLOTS = 12, 4, 10, 4, 2
LONGEST = BLOCKS * BLOCK_SIZE
# What is left when nothing more arrives ends within so many steps for each request: its tokens one by one, as often
# as others may send it back, and the patience before it gets a slot.
STEPS_PER_REQUEST = 4 * LONGEST
DIGESTS = "abcd"

mixes = st.lists(st.sampled_from(DIGESTS), max_size=2, unique=True).map(
    lambda names: tuple((name, 1.0) for name in sorted(names))
)


class Books(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, BLOCK_SIZE)
        self.bank = AdapterBank({}, {}, num_slots=SLOTS, dtype=torch.float32, device=torch.device("cpu"))
        self.bank._host.update((digest, pack({}, page_locked=False)) for digest in DIGESTS)
        self.scheduler = Scheduler(self.pool, self.bank, max_batch_tokens=BUDGET, max_running=RUNNING)
        self.alive: list[Sequence] = []
        self.length: dict[str, int] = {}
        self.made = 0

    # Few distinct tokens and short prompts, so that prefixes are often shared.
    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=30),
        output=st.integers(1, LONGEST),
        mix=mixes,
        key=st.sampled_from("xyz"),
        priority=st.sampled_from([0, 0, 0, -1, 1]),
    )
    def arrive(
        self, prompt: list[int], output: int, mix: tuple[tuple[str, float], ...], key: str, priority: int
    ) -> None:
        self.made += 1
        sequence = Sequence(Request(f"{self.made}", tuple(prompt), SamplingParams(), mix, key, priority))
        self.alive.append(sequence)
        self.length[sequence.request.id] = min(len(prompt) + output, LONGEST)
        self.scheduler.add(sequence)

    @rule(token=st.integers(0, 1))
    def step(self, token: int) -> None:
        before = {sequence: sequence.remaining for sequence in self.scheduler.running}
        batch = self.scheduler.schedule()
        assert bool(batch) == bool(self.alive), "as long as anyone is here, somebody advances"
        assert sum(chunk.count for chunk in batch) <= BUDGET
        scheduled = {chunk.sequence for chunk in batch}
        assert len(scheduled) == len(batch)
        for chunk in batch:
            assert chunk.count > 0 and chunk.start == chunk.sequence.num_computed
            assert len(chunk.sequence.blocks) * BLOCK_SIZE >= chunk.end
            assert chunk.sequence in self.scheduler.running
            assert chunk.sequence.request.adapters <= self.bank.active
        for sequence, remaining in before.items():
            if remaining == 1 and sequence in self.scheduler.running:
                assert sequence in scheduled, "an answer that runs gets its token in every step"
        by_precedence = sorted(before, key=lambda sequence: sequence.request.priority)  # then by admission
        stayed = [sequence in self.scheduler.running for sequence in by_precedence]
        assert stayed == sorted(stayed, reverse=True), "the last admitted of the lowest priority stepped back"
        self.scheduler.settle(batch)
        for chunk in batch:
            if chunk.sequence.remaining == 0:
                chunk.sequence.tokens.append(token)
                if len(chunk.sequence.tokens) >= self.length[chunk.sequence.request.id]:
                    self.leave(chunk.sequence)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.alive:
            self.leave(data.draw(st.sampled_from(self.alive)))

    @rule(digest=st.sampled_from(DIGESTS))
    def forget(self, digest: str) -> None:
        """As the engine does: an adapter is dropped when no request needs it, its blocks at any time."""
        self.pool.forget_adapter(digest)
        if not any(digest in sequence.request.adapters for sequence in self.alive):
            self.bank.free(digest)
            self.bank._host[digest] = pack({}, page_locked=False)

    @precondition(lambda self: len(self.alive) > 2)
    @rule()
    def nobody_waits_for_ever(self) -> None:
        for _ in range(STEPS_PER_REQUEST * len(self.alive)):
            if not self.alive:
                return
            self.step(0)
        raise AssertionError(f"{len(self.alive)} requests never ended")

    def leave(self, sequence: Sequence) -> None:
        self.alive.remove(sequence)
        self.scheduler.remove(sequence)
        assert sequence.blocks == []

    @invariant()
    def every_block_has_exactly_its_users(self) -> None:
        users = Counter(block for sequence in self.alive for block in sequence.blocks)
        assert {block: count for block, count in enumerate(self.pool._users) if count} == dict(users)
        assert set(self.pool._free) == set(range(BLOCKS)) - set(users)
        assert self.pool.num_free + self.pool.num_used == BLOCKS
        assert self.pool.num_used == len(users)

    @invariant()
    def everyone_is_in_one_queue_and_only_runners_hold_blocks(self) -> None:
        queued = [*self.scheduler.running, *self.scheduler.waiting]
        assert Counter(map(id, queued)) == Counter(map(id, self.alive))
        assert len(self.scheduler.waiting) == len(list(self.scheduler.waiting))
        assert all(not sequence.blocks and sequence in self.scheduler.waiting for sequence in self.scheduler.waiting)
        assert len(self.scheduler.running) <= RUNNING and self.bank.num_active <= SLOTS

    @invariant()
    def adapters_in_use_are_those_of_runners(self) -> None:
        users = Counter(digest for sequence in self.scheduler.running for digest in sequence.request.adapters)
        assert self.scheduler.slots._users == users and min(users.values(), default=1) > 0

    @invariant()
    def the_queue_counts_who_is_here_and_forgets_who_is_not(self) -> None:
        lines = {
            (priority, name, adapters): line
            for priority, keys in self.scheduler.waiting._levels.items()
            for name, key in keys.items()
            for adapters, line in key.lines.items()
        }
        here = Counter((s.request.priority, s.request.key, s.request.adapters) for s in self.alive)
        assert {where: len(line.waiting) + line.running for where, line in lines.items()} == dict(here)
        assert all(line.served >= 0 and line.running >= 0 for line in lines.values())

    @invariant()
    def a_slot_is_claimed_only_for_somebody_who_waits(self) -> None:
        waiting = {sequence.request.adapters for sequence in self.scheduler.waiting}
        slots = self.scheduler.slots
        assert slots.claimed is None or slots.claimed in waiting
        assert slots.claimed is not None or not slots._closing

    @invariant()
    def a_shared_block_belongs_to_equal_beginnings_and_equal_mixes(self) -> None:
        holders: dict[int, tuple[object, ...]] = {}
        for sequence in self.alive:
            for number, block in enumerate(sequence.blocks):
                end = (number + 1) * BLOCK_SIZE
                if self.pool._users[block] > 1:
                    content = (sequence.request.mix, tuple(sequence.tokens[:end]))
                    assert holders.setdefault(block, content) == content

    def teardown(self) -> None:
        for sequence in list(self.alive):
            self.leave(sequence)
        assert self.pool.num_used == 0 and len(self.scheduler.waiting) == 0
        assert not self.scheduler.waiting._levels and not self.scheduler.slots.in_use


Books.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None, derandomize=True)
TestBooks = Books.TestCase
