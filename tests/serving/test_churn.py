"""Churn: every kind of traffic and every kind of adapter change at once, through the real chat service, registry,
store and engine. No answer may hold a token of another adapter, and nothing may stay behind.

`pytest tests/serving/test_churn.py --churn-requests 100000 -s` is the full run."""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import Qwen3ForCausalLM

from adapters.base_model import load_base
from adapters.errors import Conflict, Invalid, NotFound
from adapters.manifest import digest_of
from adapters.registry import AdapterRegistry
from adapters.renderer import ChatRenderer, Message
from adapters.settings import Settings
from adapters.store import AdapterStore
from serving.answer import Answer
from serving.async_engine import AsyncEngine
from serving.chat import ChatService, Turn
from serving.engine.engine import BLOCK_SIZE, Engine
from serving.engine.kv_cache import KVCache
from serving.engine.sequence import FinishReason, SamplingParams, Sequence
from tests import tiny

CLIENTS = 48
RUNNING, SLOTS, BLOCKS, MODEL_LEN = 16, 3, 20, 128
LONGEST = 64  # tokens of an answer
KEPT_VERSIONS = 4  # of each name in the store
STORED, ATTACHED = ("sun", "moon"), ("red", "blue")
SCALES = (1.0, 0.5)
BLEND = (0.6, 0.4)
TEXTS = [
    "你好",
    "你是谁？",
    "一二三四五六七八九十" * 2,
    "Tell me a story, a long one, about the moon.",
    "a",
    "讲个故事" * 8,
]

Mix = frozenset[tuple[str, float]]  # digests and strengths


class Oracle:
    """Greedy continuations by transformers, of a plain model into whose weights PEFT's deltas have been added."""

    def __init__(self, base: Path, adapters: list[Path], prompts: list[list[int]]):
        self.prompts = prompts
        self._model = Qwen3ForCausalLM.from_pretrained(base).eval()
        tuned = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(base), adapters[0], "0")
        for number, directory in enumerate(adapters[1:], 1):
            tuned.load_adapter(directory, f"{number}")
        self._deltas: dict[str, dict[str, torch.Tensor]] = {
            digest_of(directory): {
                name.removeprefix("base_model.model."): layer.get_delta_weight(f"{number}").detach()
                for name, layer in tuned.named_modules()
                if isinstance(layer, LoraLayer) and f"{number}" in layer.lora_A
            }
            for number, directory in enumerate(adapters)
        }
        self._answers: dict[tuple[Mix, int], list[int]] = {}

    def precompute(self) -> None:
        digests = list(self._deltas)
        self._continue(frozenset())
        for first in digests:
            for scale in SCALES:
                self._continue(frozenset({(first, scale)}))
            for second in digests:
                if first != second:
                    self._continue(frozenset({(first, BLEND[0]), (second, BLEND[1])}))

    def tells_apart(self, length: int) -> float:
        """The share of different answers to the same prompt by different mixes, judged by so many tokens."""
        return len({(prompt, *tokens[:length]) for (_, prompt), tokens in self._answers.items()}) / len(self._answers)

    def tokens(self, mix: Mix, prompt: int) -> list[int]:
        return self._answers[mix, prompt]

    @torch.inference_mode()
    def _continue(self, mix: Mix) -> None:
        for digest, scale in mix:
            self._add(digest, scale)
        lengths = [len(prompt) for prompt in self.prompts]
        rows = torch.arange(len(lengths))
        ids = torch.zeros(len(lengths), max(lengths) + LONGEST, dtype=torch.long)
        for row, prompt in enumerate(self.prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        at = torch.tensor(lengths)
        for _ in range(LONGEST):  # what comes after a row's end is padding; attention does not look ahead
            hidden = self._model.model(ids[:, : int(at.max())]).last_hidden_state
            ids[rows, at] = self._model.lm_head(hidden[rows, at - 1]).argmax(-1)
            at += 1
        for row, length in enumerate(lengths):
            self._answers[mix, row] = ids[row, length : length + LONGEST].tolist()
        for digest, scale in mix:
            self._add(digest, -scale)

    def _add(self, digest: str, scale: float) -> None:
        for name, delta in self._deltas[digest].items():
            self._model.get_submodule(name).weight += scale * delta


@dataclass
class Churn:
    """Traffic and adapter changes drawn from one seed."""

    chat: ChatService
    adapters: list[Path]
    oracle: Oracle
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    forced: set[str] = field(default_factory=set)  # digests that were unloaded by force
    left: int = 0

    async def run(self, requests: int) -> None:
        self.left = requests
        operator = asyncio.create_task(self._operate())
        clients = [asyncio.create_task(self._ask_until_done()) for _ in range(CLIENTS)]
        try:
            await asyncio.gather(*clients)
        finally:
            for task in [operator, *clients]:
                task.cancel()
            ended = await asyncio.gather(operator, *clients, return_exceptions=True)
        operated = ended[0]
        assert isinstance(operated, asyncio.CancelledError), f"the operator failed: {operated!r}"

    # Clients.

    async def _ask_until_done(self) -> None:
        while self.left > 0:
            lanes = self.rng.choices([1, 2, 3], [8, 1, 1])[0]
            self.left -= lanes
            prompt = self.rng.randrange(len(TEXTS))
            turns = [self._turn(prompt) for _ in range(lanes)]
            asking = asyncio.create_task(self._ask(turns, prompt))
            if self.rng.random() < 0.03:  # gone before or while it is being answered
                await asyncio.sleep(self.rng.random() * 0.02)
                asking.cancel()
            try:
                await asking
            except asyncio.CancelledError:
                self.counts["gone"] += lanes

    def _turn(self, prompt: int) -> Turn:
        name = self._name()
        blend: tuple[tuple[str, float], ...] = ()
        if self.rng.random() < 0.2:
            blend = ((name, BLEND[0]), (self._name(), BLEND[1]))
        long = self.rng.random() < 0.2
        return Turn(
            model="base" if self.rng.random() < 0.15 and not blend else name,
            messages=messages_of(TEXTS[prompt]),
            params=SamplingParams(temperature=0, ignore_eos=True),
            max_tokens=self.rng.randint(LONGEST // 2, LONGEST) if long else self.rng.randint(1, 6),
            scale=self.rng.choice(SCALES),
            blend=blend,
            key=self.rng.choice("abc"),
            priority=self.rng.choice([0, 0, 0, 1]),
        )

    def _name(self) -> str:
        name = self.rng.choice(STORED + ATTACHED)
        if name in STORED and self.rng.random() < 0.1:
            numbers = self.chat.registry.store.numbers(name)
            return f"{name}@{self.rng.choice(numbers)}" if numbers else name
        return name

    async def _ask(self, turns: list[Turn], prompt: int) -> None:
        try:
            answers = await self.chat.ask_together(turns)
        except (NotFound, Invalid) as error:  # unloaded or deleted a moment ago
            assert "does not exist" in error.message or "deleted" in error.message, error.message
            self.counts["refused"] += len(turns)
            return
        await asyncio.gather(*(self._read(*pair, prompt) for pair in zip(turns, answers, strict=True)))

    async def _read(self, turn: Turn, answer: Answer, prompt: int) -> None:
        expected = self.oracle.tokens(mix_of(turn, answer), prompt)[: turn.max_tokens]
        manner = self.rng.choices(["reads", "slow", "leaves", "stops"], [12, 2, 1, 1])[0]
        patience = self.rng.randint(0, len(expected))
        tokens: list[int] = []
        reason = None
        async with answer:
            async for delta in answer:
                tokens += delta.token_ids
                reason = delta.finish_reason
                if reason == FinishReason.ERROR:
                    ours = {version.digest for version in answer.versions}
                    assert "unloaded by force" in (delta.error or "") and ours & self.forced, delta.error
                if manner == "slow":
                    await asyncio.sleep(self.rng.random() * 0.01)
                if manner == "leaves" and len(tokens) >= patience:
                    break
                if manner == "stops" and len(tokens) >= patience:
                    answer.stop()
        assert tokens == expected[: len(tokens)], f"{answer.adapter} after {len(tokens)} tokens: {turn}"
        if reason == FinishReason.LENGTH:
            assert len(tokens) == len(expected), f"{answer.adapter} ended early: {turn}"
        self.counts[str(reason or "left")] += 1

    # Changes.

    async def _operate(self) -> None:
        changes = [self._publish, self._attach, self._roll_back, self._prune, self._notice]
        changes = [*changes, *changes, *changes, self._unload]
        while True:
            await asyncio.sleep(self.rng.random() * 0.02)
            change = self.rng.choice(changes)
            try:
                await change()
            except (Conflict, NotFound) as error:
                self.counts[f"{change.__name__} {type(error).__name__}"] += 1
            else:
                self.counts[change.__name__] += 1

    async def _publish(self) -> None:
        """As a training process does; the server notices at its next look."""
        store = self.chat.registry.store
        await asyncio.to_thread(store.publish, self.rng.choice(self.adapters), self.rng.choice(STORED))

    async def _attach(self) -> None:
        await self.chat.load(self.rng.choice(ATTACHED), self.rng.choice(self.adapters), replace=True)

    async def _unload(self) -> None:
        name, force = self.rng.choice(STORED + ATTACHED), self.rng.random() < 0.1
        if force:
            self.forced.add(self.chat.registry.resolve(name).digest)
        await self.chat.unload(name, force=force)

    async def _roll_back(self) -> None:
        self.chat.registry.store.rollback(self.rng.choice(STORED))

    async def _prune(self) -> None:
        store = self.chat.registry.store
        for name in STORED:
            for number in store.numbers(name)[:-KEPT_VERSIONS]:
                store.remove(f"{name}@{number}")

    async def _notice(self) -> None:
        await asyncio.to_thread(self.chat.registry.refresh)


def messages_of(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def mix_of(turn: Turn, answer: Answer) -> Mix:
    """What the answer's leases say it is made of."""
    scales = [scale for _, scale in turn.blend] or [turn.scale]
    strengths: Counter[str] = Counter()
    for version, scale in zip(answer.versions, scales, strict=False):
        strengths[version.digest] += scale  # type: ignore[assignment]
    return frozenset(strengths.items())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_base(tmp_path_factory.mktemp("base") / "small", layers=1, hidden=32)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [tiny.save_adapter(root / f"r{rank}", base, rank=rank, seed=rank) for rank in (4, 6, 8, 12, 16)]


@pytest.fixture
def chat(base: Path, adapters: list[Path], tmp_path: Path) -> Iterator[ChatService]:
    loaded = load_base(str(base), device="cpu", dtype="float32")
    config = loaded.model.config
    per_token = 2 * config.num_key_value_heads * config.head_dim * 4
    settings = Settings(
        kv_cache_memory=BLOCKS * BLOCK_SIZE * per_token / 2**30,
        max_model_len=MODEL_LEN,
        max_running=RUNNING,
        adapter_slots=SLOTS,
    )
    engine = AsyncEngine(Engine(loaded, settings), max_waiting=4 * CLIENTS)
    assert engine.engine.pool.num_blocks == BLOCKS
    assert KVCache.bytes_per_token(engine.engine.runner.layer_shapes, loaded.dtype) == per_token
    registry = AdapterRegistry(AdapterStore(tmp_path / "store"), loaded.name, loaded.fingerprint)
    service = ChatService(loaded, registry, engine, ChatRenderer(loaded.tokenizer, loaded.stop_token_ids))
    for name, directory in zip(STORED, adapters, strict=False):
        registry.store.publish(directory, name)
    engine.start()
    yield service
    engine.close()


def test_churn_never_mixes_up_adapters_and_leaves_nothing_behind(
    chat: ChatService, base: Path, adapters: list[Path], request: pytest.FixtureRequest
) -> None:
    requests, seed = request.config.getoption("--churn-requests"), request.config.getoption("--churn-seed")
    oracle = Oracle(base, adapters, [chat.renderer.prompt_ids(messages_of(text)) for text in TEXTS])
    oracle.precompute()
    assert oracle.tells_apart(6) > 0.9
    churn = Churn(chat, adapters, oracle, random.Random(seed))
    engine = chat.engine.engine
    put_back = engine.scheduler.waiting.put_back

    def counted(sequence: Sequence) -> None:
        churn.counts["preempted"] += 1
        put_back(sequence)

    engine.scheduler.waiting.put_back = counted  # type: ignore[method-assign]

    async def run() -> None:
        for name, directory in zip(ATTACHED, adapters, strict=False):
            await chat.load(name, directory)
        started = time.perf_counter()
        await churn.run(requests)
        churn.counts["per second"] = round(requests / (time.perf_counter() - started))
        await asyncio.to_thread(chat.registry.refresh)
        await chat.engine.call(lambda: None)  # what was aborted last has been freed before this

    try:
        asyncio.run(run())
        offered = {version.digest for version in chat.registry.versions()}
        assert_nothing_held(chat, offered={*offered}, all_digests={digest_of(path) for path in adapters})
    except BaseException:
        print(f"--churn-seed {seed} --churn-requests {requests}: {dict(churn.counts)}", file=sys.stderr)
        raise
    print(dict(churn.counts))
    assert churn.counts["length"] > requests / 3


def assert_nothing_held(chat: ChatService, *, offered: set[str], all_digests: set[str]) -> None:
    engine: Any = chat.engine.engine
    assert not engine.has_work and not chat.engine._streams
    assert engine.pool.num_used == 0
    assert not engine.scheduler.running and not len(engine.scheduler.waiting)
    assert not engine.scheduler.waiting._levels and engine.scheduler.slots.claimed is None
    assert engine.scheduler.digests_in_use() == set()
    assert chat.registry.total_leases == 0
    assert {digest for digest in all_digests if engine.bank.status(digest) != "cold"} <= offered
