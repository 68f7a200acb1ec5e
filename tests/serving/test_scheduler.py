"""The scheduler and the block pool under any order of arrivals, steps and departures: the books always balance."""

from collections import Counter

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serving.engine.bank import AdapterBank
from serving.engine.kv_cache import BlockPool
from serving.engine.packed import pack
from serving.engine.scheduler import Scheduler, digests_of
from serving.engine.sequence import Request, SamplingParams, Sequence

BLOCKS, BLOCK_SIZE, BUDGET, RUNNING, SLOTS = 12, 4, 10, 4, 2
LONGEST = BLOCKS * BLOCK_SIZE
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
        self.waited: Counter[str] = Counter()
        self.made = 0

    # Few distinct tokens and short prompts, so that prefixes are often shared.
    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=30), mix=mixes)
    def arrive(self, prompt: list[int], mix: tuple[tuple[str, float], ...]) -> None:
        self.made += 1
        sequence = Sequence(Request(f"{self.made}", tuple(prompt), SamplingParams(), mix))
        self.alive.append(sequence)
        self.scheduler.add(sequence)

    @rule(token=st.integers(0, 1))
    def step(self, token: int) -> None:
        batch = self.scheduler.schedule()
        assert bool(batch) == bool(self.alive), "as long as anyone is here, somebody advances"
        assert sum(chunk.count for chunk in batch) <= BUDGET
        assert len({id(chunk.sequence) for chunk in batch}) == len(batch)
        for chunk in batch:
            assert chunk.count > 0 and chunk.start == chunk.sequence.num_computed
            assert len(chunk.sequence.blocks) * BLOCK_SIZE >= chunk.end
            assert chunk.sequence in self.scheduler.running
            assert all(digest in self.bank._active for digest in digests_of(chunk.sequence.request.mix))
        self.scheduler.settle(batch)
        for chunk in batch:
            if chunk.samples or chunk.sequence.remaining == 0:
                chunk.sequence.tokens.append(token)
                if len(chunk.sequence.tokens) >= LONGEST:
                    self.leave(chunk.sequence)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.alive:
            self.leave(data.draw(st.sampled_from(self.alive)))

    @rule(digest=st.sampled_from(DIGESTS))
    def forget(self, digest: str) -> None:
        self.pool.forget_adapter(digest)

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

    @invariant()
    def everyone_is_in_one_queue_and_only_runners_hold_blocks(self) -> None:
        queued = [*self.scheduler.running, *self.scheduler.waiting]
        assert Counter(map(id, queued)) == Counter(map(id, self.alive))
        assert all(not sequence.blocks for sequence in self.scheduler.waiting)
        assert len(self.scheduler.running) <= RUNNING and self.bank.num_active <= SLOTS

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
        assert self.pool.num_used == 0


Books.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None, derandomize=True)
TestBooks = Books.TestCase
