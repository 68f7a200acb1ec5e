"""Who is served when not everyone can be: keys, adapters, priorities, slots and long prompts, in counted steps; and
what a request that waits costs."""

import asyncio
import gc
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from adapters.errors import Unavailable
from serving.async_engine import AsyncEngine, TokenStream
from serving.engine.bank import AdapterBank
from serving.engine.kv_cache import BlockPool
from serving.engine.packed import pack
from serving.engine.queue import SLOT_PATIENCE_STEPS
from serving.engine.scheduler import CannotStart, Scheduler
from serving.engine.sequence import Batch, FinishReason, Request, SamplingParams, Sequence, TokenDelta, merge
from tests.serving.test_engine import build_engine, request, tokens_of

OUTPUT = 5  # tokens of an answer here, so one turn in a place lasts about as many steps


class Run:
    """A scheduler over real pool and bank; every sampled token is made up, every answer has `OUTPUT` of them."""

    def __init__(
        self, *, running: int = 4, slots: int = 2, budget: int = 64, blocks: int = 1000, adapters: int = 0
    ) -> None:
        self.pool = BlockPool(blocks, 16)
        self.bank = AdapterBank({}, {}, num_slots=slots, dtype=torch.float32, device=torch.device("cpu"))
        self.digests = [f"adapter-{number}" for number in range(adapters)]
        for digest in self.digests:
            self.bank._host[digest] = pack({}, page_locked=False)
        self.scheduler = Scheduler(self.pool, self.bank, max_batch_tokens=budget, max_running=running)
        self.steps = 0
        self.started: dict[str, int] = {}  # request → step in which it was first computed
        self.ended: dict[str, int] = {}

    def add(
        self, name: str, *, key: str = "", adapter: str | None = None, priority: int = 0, prompt: int = 8
    ) -> Sequence:
        mix = ((adapter, 1.0),) if adapter else ()
        # Prompts differ from their first token on: nothing is found in the prefix cache.
        ids = (hash(name), *range(prompt - 1))
        sequence = Sequence(Request(name, ids, SamplingParams(max_tokens=OUTPUT), mix, key, priority))
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Batch:
        self.steps += 1
        batch = self.scheduler.schedule()
        self.scheduler.settle(batch)
        for chunk in batch:
            sequence = chunk.sequence
            self.started.setdefault(sequence.request.id, self.steps)
            if sequence.remaining == 0:
                sequence.tokens.append(0)
                if sequence.num_output == OUTPUT:
                    self.scheduler.remove(sequence)
                    self.ended[sequence.request.id] = self.steps
        return batch

    def step_until_ended(self, name: str, *, within: int) -> int:
        """Steps it took."""
        before = self.steps
        while name not in self.ended:
            assert self.steps - before < within, f"{name} did not end within {within} steps"
            self.step()
        return self.steps - before

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.running or len(self.scheduler.waiting))


def test_a_thousand_requests_of_one_key_delay_anothers_by_one_turn() -> None:
    run = Run()
    for number in range(1000):
        run.add(f"flood-{number}", key="flood")
    for _ in range(50):
        run.step()
    run.add("single", key="other")
    assert run.step_until_ended("single", within=3 * OUTPUT) <= 2 * OUTPUT + 1


def test_two_keys_share_by_tokens_not_by_requests() -> None:
    run = Run(running=2)
    for number in range(200):
        run.add(f"long-{number}", key="long", prompt=40)
        run.add(f"short-{number}", key="short", prompt=10)
    for _ in range(300):
        run.step()
    tokens = {"long": 40 + OUTPUT, "short": 10 + OUTPUT}
    served = {key: sum(count for name in run.ended if name.startswith(key)) for key, count in tokens.items()}
    assert served["long"] == pytest.approx(served["short"], rel=0.1)


def test_one_adapters_flood_does_not_starve_anothers_request_nor_the_bases() -> None:
    run = Run(adapters=2)
    for number in range(1000):
        run.add(f"flood-{number}", adapter="adapter-0")
    for _ in range(50):
        run.step()
    run.add("other", adapter="adapter-1")
    run.add("base")
    run.step_until_ended("base", within=3 * OUTPUT)
    run.step_until_ended("other", within=SLOT_PATIENCE_STEPS + 3 * OUTPUT)


def test_idling_earns_no_credit() -> None:
    """A key that comes late shares from now on; it is not first until it has caught up."""
    run = Run(running=1)
    for number in range(400):
        run.add(f"early-{number}", key="early")
    for _ in range(100 * OUTPUT):
        run.step()
    for number in range(100):
        run.add(f"late-{number}", key="late")
    before = len(run.ended)
    for _ in range(20 * OUTPUT):
        run.step()
    order = list(run.ended)[before:]
    assert abs(sum(name.startswith("late") for name in order) - len(order) / 2) <= 1


def test_a_lower_priority_runs_earlier_and_equal_ones_in_order_of_arrival() -> None:
    run = Run(running=1)
    for number, priority in enumerate([0, 5, 0, -1, 5, -1]):
        run.add(f"{number}", priority=priority)
    while run.busy:
        run.step()
    assert list(run.ended) == ["3", "5", "0", "2", "1", "4"]


def test_adapters_that_never_rest_give_up_a_slot_for_one_that_waits() -> None:
    """Two adapters keep both slots busy by ever new requests; a third is served, and the two go on meanwhile."""
    run = Run(running=8, adapters=3)
    names = iter(range(10**6))

    def keep_busy() -> None:
        while len(run.scheduler.waiting) < 8:
            number = next(names)
            run.add(f"busy-{number}", adapter=f"adapter-{number % 2}")

    for _ in range(20):
        keep_busy()
        run.step()
    run.add("third", adapter="adapter-2")
    served_meanwhile = 0
    before = run.steps
    while "third" not in run.ended:
        keep_busy()
        served_meanwhile += bool(run.step())
        assert run.steps - before < SLOT_PATIENCE_STEPS + 4 * OUTPUT
    assert served_meanwhile == run.steps - before
    assert run.scheduler.slots.claimed is None


def test_requests_whose_adapters_are_in_slots_go_first_but_not_for_ever() -> None:
    run = Run(running=1, slots=1, adapters=2)
    run.add("warm-up", adapter="adapter-0")
    run.step_until_ended("warm-up", within=2 * OUTPUT)
    run.add("cold", adapter="adapter-1")
    for number in range(100):
        run.add(f"warm-{number}", adapter="adapter-0")
    run.step_until_ended("cold", within=SLOT_PATIENCE_STEPS + 4 * OUTPUT)
    warm_before = sum(name.startswith("warm-") for name in run.ended)
    assert warm_before >= SLOT_PATIENCE_STEPS // OUTPUT


def test_a_claim_on_a_slot_ends_when_its_request_is_cancelled() -> None:
    run = Run(running=2, slots=1, adapters=2)
    for number in range(100):  # begun at different steps, so that the adapter is always in use
        run.add(f"busy-{number}", adapter="adapter-0")
        if number < 2:
            run.step()
    cancelled = run.add("cancelled", adapter="adapter-1")
    while run.scheduler.slots.claimed is None:
        run.step()
        assert run.steps < 2 * SLOT_PATIENCE_STEPS
    run.scheduler.remove(cancelled)
    done = len(run.ended)
    for _ in range(2 * OUTPUT):
        run.step()
    assert len(run.ended) >= done + 2, "the busy adapter goes on"


def test_a_thousand_adapters_over_sixteen_slots_are_all_served_without_a_cliff() -> None:
    """Popular adapters have many requests, most have one. Everyone's wait is near the least that slots allow."""
    run = Run(running=64, slots=16, budget=256, blocks=4000, adapters=1000)
    for number, digest in enumerate(run.digests):
        for copy in range(max(1, 200 // (number + 1))):
            run.add(f"{number}-{copy}", adapter=digest)
    total = len(run.scheduler.waiting)
    while run.busy:
        run.step()
        assert run.steps < 40 * 1000
    assert len(run.ended) == total
    # One request of each of 1,000 adapters, 16 at a time, OUTPUT steps each.
    assert run.steps < 2 * (1000 * OUTPUT / 16) + SLOT_PATIENCE_STEPS


def test_lanes_submitted_together_start_in_the_same_step_behind_whatever_waits() -> None:
    run = Run(running=8, slots=6, budget=64, adapters=6)
    run.add("earlier", prompt=20)
    run.step()
    for number, digest in enumerate(run.digests[:5]):
        run.add(f"lane-{number}", adapter=digest)
    run.add("lane-base")
    run.step()
    assert len({run.started[name] for name in run.started if name.startswith("lane")}) == 1
    assert len(run.started) == 7


def test_prompts_neither_stop_running_answers_nor_each_other() -> None:
    """While a long prompt is computed, answers get a token in every step and a short prompt ends at once; and however
    many short ones come, the long one gets half of every step."""
    run = Run(running=8, budget=32, blocks=4000)
    answer = run.add("answer")
    run.step()
    long = run.add("long", prompt=320)
    run.step()
    shorts = 0
    while long.remaining > 1:
        before = (answer.num_output, long.num_computed)
        run.add(f"short-{shorts}", prompt=10)
        shorts += 1
        run.step()
        assert answer.num_output == before[0] + 1 or answer.num_output == OUTPUT
        assert long.num_computed >= min(before[1] + 12, 320)
        assert run.started[f"short-{shorts - 1}"] == run.steps
        assert run.steps < 40


def test_equal_beginnings_of_a_burst_are_computed_once_for_most() -> None:
    run = Run(running=16, budget=64)
    for number in range(16):
        prompt = (*range(48), 1000 + number)
        run.scheduler.add(Sequence(Request(f"{number}", prompt, SamplingParams(max_tokens=OUTPUT))))
    cached = []
    while run.busy:
        cached += [chunk.sequence.num_cached for chunk in run.step() if chunk.sequence.num_output == 1]
    assert sum(count == 48 for count in cached) >= 12


def test_a_newcomer_that_would_be_sent_back_soon_is_not_admitted() -> None:
    """Memory for two and a half: nobody is preempted again and again, and the work done is little more than needed."""
    run = Run(running=8, blocks=20, budget=64)
    for number in range(20):
        run.add(f"{number}", prompt=100)
    computed = 0
    while run.busy:
        computed += sum(chunk.count for chunk in run.step())
    assert computed <= 1.1 * 20 * (100 + OUTPUT)


def test_only_the_request_that_cannot_start_is_refused() -> None:
    run = Run(adapters=1)
    run.add("fine")
    run.step()
    gone = run.add("gone", adapter="adapter-0")
    run.bank.free("adapter-0")
    with pytest.raises(CannotStart) as refused:
        run.step()
    assert refused.value.sequence is gone and isinstance(refused.value.__cause__, Unavailable)
    run.scheduler.remove(gone)
    run.step_until_ended("fine", within=2 * OUTPUT)
    assert run.pool.num_used == 0


def calls_of_a_step(run: Run) -> int:
    """Python and C functions called while a step is scheduled and settled."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run.scheduler.settle(run.scheduler.schedule())
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("blocked_by", ["places", "slots", "blocks"])
def test_a_step_costs_the_same_with_ten_thousand_waiting_as_with_a_hundred(blocked_by: str) -> None:
    costs = []
    for count in (100, 10_000):
        run = Run(
            running=4 if blocked_by == "places" else 100,
            slots=2,
            blocks=3 if blocked_by == "blocks" else 5000,
            adapters=8,
        )
        if blocked_by == "slots":
            run.add("a", adapter="adapter-0")
            run.add("b", adapter="adapter-1")
        first = 2 if blocked_by == "slots" else 0
        for number in range(count):
            run.add(f"{number}", key=f"key-{number % 4}", adapter=f"adapter-{first + number % 6}")
        run.step()
        costs.append(calls_of_a_step(run))
    assert costs[1] <= costs[0]


def test_cancelling_a_waiting_request_costs_the_same_wherever_it_is() -> None:
    run = Run()
    waiting = [run.add(f"{number}") for number in range(10_000)]
    middle = waiting[5000]
    steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        run.scheduler.remove(middle)
    finally:
        sys.setprofile(None)
    assert middle not in run.scheduler.waiting and len(run.scheduler.waiting) == 9999
    assert steps < 100


@pytest.fixture
def engine(tiny_base: Path) -> Iterator[AsyncEngine]:
    running = AsyncEngine(build_engine(tiny_base), max_waiting=10_000)
    running.start()
    yield running
    running.close()
    assert running.engine.pool.num_used == 0 and not running.engine.has_work


async def settled(engine: AsyncEngine) -> None:
    await engine.call(lambda: None)


def held(engine: AsyncEngine) -> tuple[threading.Event, threading.Event]:
    """Stops the engine's thread where it is: (it has stopped, let it go on)."""
    stopped, go_on = threading.Event(), threading.Event()
    engine.post(lambda: (stopped.set(), go_on.wait()))
    return stopped, go_on


def test_ten_thousand_waiting_requests_hold_little_and_leave_nothing(engine: AsyncEngine) -> None:
    count = 10_000
    prompt = list(range(1000, 1030))

    async def run() -> tuple[float, float]:
        first, second = held(engine), held(engine)
        first[0].wait()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        streams = engine.submit([request(f"{number}", prompt) for number in range(count)])
        third = held(engine)
        first[1].set(), second[1].set()
        third[0].wait()
        waiting = engine.engine.num_waiting
        each = (tracemalloc.get_traced_memory()[0] - before) / count
        for stream in streams:
            stream.abort()
        third[1].set()
        for stream in streams:
            async for delta in stream:
                assert delta.finish_reason == FinishReason.ABORT
        await settled(engine)
        assert waiting == count
        del streams, stream
        gc.collect()
        return each, (tracemalloc.get_traced_memory()[0] - before) / count

    try:
        each, left = asyncio.run(run())
    finally:
        tracemalloc.stop()
    assert each < 3000, f"{each:.0f} bytes a request"
    assert left < 100, f"{left:.0f} bytes a request stay behind"


def test_a_step_wakes_the_event_loop_once_however_many_it_serves(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    step = engine.engine.step

    def counted() -> list[TokenDelta]:
        nonlocal steps
        steps += 1
        return step()

    monkeypatch.setattr(engine.engine, "step", counted)

    async def run() -> int:
        loop = asyncio.get_running_loop()
        wakes = 0
        wake = loop.call_soon_threadsafe

        def counted_wake(*arguments: Any, **options: Any) -> asyncio.Handle:
            nonlocal wakes
            wakes += 1
            return wake(*arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted_wake)
        streams = engine.submit([request(f"{number}", [5, 6, number]) for number in range(8)])

        async def read(stream: TokenStream) -> int:
            return sum([len(delta.token_ids) async for delta in stream])

        assert await asyncio.gather(*map(read, streams)) == [12] * 8
        return wakes

    assert asyncio.run(run()) <= steps


def test_a_slow_reader_gets_what_it_missed_as_one_delta_and_loses_nothing(engine: AsyncEngine) -> None:
    prompt = [1000, 2000, 3000]

    async def run() -> tuple[list[TokenDelta], list[TokenDelta]]:
        quick, slow = engine.submit([request(name, prompt, max_tokens=40, logprobs=1) for name in ("quick", "slow")])
        at_once = [delta async for delta in quick]
        await settled(engine)
        return at_once, [delta async for delta in slow]

    quick, slow = asyncio.run(run())
    assert len(slow) == 1 < len(quick)
    assert slow[0].text == "".join(delta.text for delta in quick)
    assert tokens_of(slow) == tokens_of(quick) and len(slow[0].logprobs) == 40
    assert slow[0].finish_reason == quick[-1].finish_reason == FinishReason.LENGTH
    assert merge(quick).logprobs == slow[0].logprobs
