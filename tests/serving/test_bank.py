"""The bank's three tiers: what is kept, what goes, what comes back, and that nobody's answer depends on it."""

import asyncio
import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import Invalid
from adapters.manifest import AdapterVersion
from adapters.settings import Settings
from app import build_services
from serving.chat import Turn
from serving.engine.engine import Engine
from serving.engine.lora import Delta
from serving.engine.packed import pack
from serving.engine.sequence import SamplingParams
from tests import tiny
from tests.serving.test_engine import (
    assert_nothing_held,
    build_engine,
    drain,
    random_prompts,
    request,
    run_alone,
    tokens_of,
    version_of,
)

GIB = 2**30


@pytest.fixture(scope="module")
def ranks(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, AdapterVersion]:
    """Adapters of very different size."""
    root = tmp_path_factory.mktemp("ranks")
    return {
        rank: version_of(f"r{rank}", tiny.save_adapter(root / f"r{rank}", tiny_base, rank=rank, seed=rank))
        for rank in (3, 4, 5, 128)
    }


@pytest.fixture(scope="module")
def size(tiny_base: Path, ranks: dict[int, AdapterVersion]) -> dict[int, int]:
    """Bytes of each adapter in host memory, by rank."""
    bank = build_engine(tiny_base).bank
    for version in ranks.values():
        bank.warm(version)
    return {rank: bank.nbytes(version.digest) for rank, version in ranks.items()}


def ask(engine: Engine, version: AdapterVersion, prompt: list[int]) -> list[int]:
    engine.bank.warm(version)
    engine.add(request("a", prompt, mix=((version.digest, 1.0),)))
    return tokens_of(drain(engine)["a"])


def test_host_memory_drops_the_least_recently_used_and_reads_them_again_for_the_same_answer(
    tiny_base: Path, ranks: dict[int, AdapterVersion], size: dict[int, int]
) -> None:
    engine = build_engine(tiny_base, adapter_slots=1, adapter_host_memory=(size[3] + size[4] + 8) / GIB)
    prompt = random_prompts(1, seed=3)[0]
    first = {rank: ask(engine, ranks[rank], prompt) for rank in (3, 4, 5)}
    assert [engine.bank.status(ranks[rank].digest) for rank in (3, 4, 5)] == ["cold", "cold", "active"]
    assert {rank: ask(engine, ranks[rank], prompt) for rank in (5, 3, 4)} == first
    figures = engine.bank.figures()
    assert figures.disk_reads == 5 and figures.host_evictions == 3
    assert figures.host_bytes <= figures.host_budget and figures.host == 2
    assert first[4] == run_alone(tiny_base, prompt, ((ranks[4].digest, 1.0),), [ranks[4]])
    assert_nothing_held(engine)


def test_what_is_pinned_or_held_stays_in_host_memory_even_over_budget(
    tiny_base: Path, ranks: dict[int, AdapterVersion], size: dict[int, int]
) -> None:
    bank = build_engine(tiny_base, adapter_host_memory=(size[5] + 8) / GIB).bank
    bank.pin(ranks[3].digest)
    bank.hold(ranks[4].digest)
    for rank in (3, 4, 5):
        bank.warm(ranks[rank])
    assert bank.figures().host_bytes > bank.figures().host_budget, "said openly"
    assert (bank.figures().pinned, bank.figures().held) == (1, 1)
    bank.release(ranks[4].digest)
    assert bank.status(ranks[4].digest) == "cold"
    bank.warm(ranks[5])
    assert bank.status(ranks[3].digest) == "warm"
    bank.unpin(ranks[3].digest)
    assert [bank.status(ranks[rank].digest) for rank in (3, 5)] == ["cold", "warm"]


def test_a_waiting_request_keeps_its_adapter_in_host_memory(
    tiny_base: Path, ranks: dict[int, AdapterVersion], size: dict[int, int]
) -> None:
    engine = build_engine(tiny_base, adapter_slots=1, max_running=1, adapter_host_memory=(size[5] + 8) / GIB)
    prompt = random_prompts(1, seed=4)[0]
    for rank in (3, 4, 5):
        engine.bank.warm(ranks[rank])
        engine.add(request(f"{rank}", prompt, mix=((ranks[rank].digest, 1.0),)))
    assert engine.bank.figures().host == 3
    answers = {key: tokens_of(deltas) for key, deltas in drain(engine).items()}
    for rank in (3, 4, 5):
        assert answers[f"{rank}"] == run_alone(tiny_base, prompt, ((ranks[rank].digest, 1.0),), [ranks[rank]])
    assert engine.bank.figures().held == 0
    assert engine.bank.figures().host_bytes <= engine.bank.figures().host_budget


def test_rank_4_and_128_share_a_device_budget_and_as_many_go_as_the_bytes_need(
    tiny_base: Path, ranks: dict[int, AdapterVersion], size: dict[int, int]
) -> None:
    budget = size[128] + size[5]
    engine = build_engine(tiny_base, adapter_slots=8, adapter_memory=budget / GIB)
    prompt = random_prompts(1, seed=5)[0]
    alone = {rank: run_alone(tiny_base, prompt, ((version.digest, 1.0),), [version]) for rank, version in ranks.items()}
    for rank in (3, 4, 5):
        assert ask(engine, ranks[rank], prompt) == alone[rank]
    assert engine.bank.active == {ranks[rank].digest for rank in (3, 4, 5)}
    assert ask(engine, ranks[128], prompt) == alone[128]
    assert engine.bank.active == {ranks[5].digest, ranks[128].digest}, "the two used longest ago made room"
    assert engine.bank.figures().evictions == 2
    for number, rank in enumerate((128, 3, 4, 5, 128, 4, 3)):
        engine.add(request(f"{number}", prompt, mix=((ranks[rank].digest, 1.0),)))
    answers: dict[str, list[int]] = {}
    while engine.has_work:
        for delta in engine.step():
            answers.setdefault(delta.request_id, []).extend(delta.token_ids)
        assert engine.bank.figures().device_bytes <= budget
    for number, rank in enumerate((128, 3, 4, 5, 128, 4, 3)):
        assert answers[f"{number}"] == alone[rank]
    assert_nothing_held(engine)


def test_a_pinned_adapter_leaves_its_slot_last(tiny_base: Path, ranks: dict[int, AdapterVersion]) -> None:
    engine = build_engine(tiny_base, adapter_slots=2)
    prompt = [20, 21, 22]
    engine.bank.pin(ranks[3].digest)
    for rank in (3, 4, 5):
        ask(engine, ranks[rank], prompt)
    assert engine.bank.active == {ranks[3].digest, ranks[5].digest}
    for rank in (4, 5):
        engine.bank.hold(ranks[rank].digest)
    engine.bank.activate([ranks[4].digest, ranks[5].digest], [])
    assert engine.bank.active == {ranks[4].digest, ranks[5].digest}, "requests that need both slots get them"
    assert engine.bank.status(ranks[3].digest) == "warm"


def test_what_can_never_fit_is_refused_with_both_numbers(
    tiny_base: Path, ranks: dict[int, AdapterVersion], size: dict[int, int]
) -> None:
    bank = build_engine(tiny_base, adapter_slots=2, adapter_memory=(size[5] + size[4]) / GIB).bank
    for version in ranks.values():
        bank.warm(version)
    bank.require_room([ranks[4].digest, ranks[5].digest])
    needed, budget = size[128] / 2**20, (size[5] + size[4]) / 2**20
    with pytest.raises(Invalid, match=rf"need {needed:.1f} MiB .* adapter_memory is {budget:.1f} MiB"):
        bank.require_room([ranks[128].digest])
    with pytest.raises(Invalid, match="combines 3 adapters, the server holds 2"):
        bank.require_room([ranks[3].digest, ranks[4].digest, ranks[5].digest])
    small = build_engine(tiny_base, adapter_host_memory=size[5] / GIB).bank
    with pytest.raises(Invalid, match=rf"needs {needed:.1f} MiB of host memory"):
        small.warm(ranks[128])
    assert small.figures().host == 0


def test_threads_that_warm_the_same_adapter_at_once_read_it_once(
    tiny_base: Path, ranks: dict[int, AdapterVersion]
) -> None:
    bank = build_engine(tiny_base).bank
    start = threading.Barrier(4)

    def warm() -> None:
        start.wait()
        bank.warm(ranks[128])

    threads = [threading.Thread(target=warm) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bank.figures().disk_reads == 1 and bank.status(ranks[128].digest) == "warm"


def test_an_adapter_lies_in_one_buffer_and_goes_to_a_device_as_one_copy() -> None:
    shared = torch.randn(7, 3)
    deltas = {
        "layer": Delta(torch.randn(2, 5), torch.randn(2, 9, dtype=torch.bfloat16), gain=torch.randn(9)),
        "embedding": Delta(weight=shared, tokens=torch.arange(7)),
        "head": Delta(weight=shared, tokens=torch.arange(7)),
    }
    packed = pack(deltas, page_locked=False)
    for name, delta in deltas.items():
        for ours, theirs in zip(packed.deltas[name].tensors(), delta.tensors(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
            assert ours.untyped_storage().data_ptr() == packed.buffer.data_ptr()
    assert packed.deltas["head"].weight.data_ptr() == packed.deltas["embedding"].weight.data_ptr(), "kept once"
    assert packed.on(torch.device("cpu")) is packed.deltas
    for name, delta in packed.on(torch.device("meta")).items():
        for there, here in zip(delta.tensors(), packed.deltas[name].tensors(), strict=True):
            assert (there.shape, there.dtype, there.device.type) == (here.shape, here.dtype, "meta")
            assert there.storage_offset() == here.storage_offset()


def test_lanes_on_more_adapters_than_host_memory_holds_are_all_answered(
    tiny_base: Path, ranks: dict[int, AdapterVersion], size: dict[int, int], tmp_path: Path
) -> None:
    """Between warming and running a request its adapter must not be dropped for the next one's."""
    settings = Settings(
        home=tmp_path / "home",
        base=str(tiny_base),
        device="cpu",
        dtype="float32",
        kv_cache_memory=0.05,
        adapter=[f"rank-{rank}={ranks[rank].directory}" for rank in (3, 4, 5)],
        adapter_slots=1,
        adapter_host_memory=(size[5] + 8) / GIB,
        ui=False,
    )
    services = build_services(settings)
    bank = services.engine.engine.bank
    turn = Turn("", ({"role": "user", "content": "hi"},), SamplingParams(temperature=0.0), max_tokens=4)

    async def texts(*models: str) -> list[str]:
        said = []
        for answer in await services.chat.ask_together(
            [Turn(model, turn.messages, turn.params, turn.max_tokens) for model in models]
        ):
            async with answer:
                deltas = [delta async for delta in answer]
                assert not any(delta.error for delta in deltas)
                said.append("".join(delta.text for delta in deltas))
        return said

    async def run() -> None:
        alone = [(await texts(name))[0] for name in ("rank-3", "rank-4", "rank-5")]
        for _ in range(2):
            assert await texts("rank-3", "rank-4", "rank-5") == alone
        await services.chat.pin("rank-3")
        await texts("rank-4", "rank-5")
        digest = services.registry.resolve("rank-3").digest
        assert bank.status(digest) != "cold"
        services.chat.unpin("rank-3")
        await services.chat.warm("rank-5")
        assert bank.status(services.registry.resolve("rank-5").digest) != "cold"

    try:
        asyncio.run(run())
    finally:
        services.close()
    assert services.registry.total_leases == 0 and bank.figures().held == 0
    assert_nothing_held(services.engine.engine)


MANY = 1000


def save_tiny_adapter(directory: Path, seed: int) -> AdapterVersion:
    """A rank-1 adapter on one layer, as PEFT writes it, without the time PEFT takes."""
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    noise = torch.Generator().manual_seed(seed)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {
        f"{key}A.weight": torch.randn(1, 64, generator=noise),
        f"{key}B.weight": torch.randn(128, 1, generator=noise),
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    return version_of(directory.name, directory)


def test_a_thousand_adapters_over_four_slots_are_all_answered(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", layers=1)
    versions = [save_tiny_adapter(tmp_path / f"{number}", number) for number in range(MANY)]
    engine = build_engine(base, adapter_slots=4, adapter_host_memory=100 * 1024 / GIB)
    prompt = [30, 31, 32]
    answers: dict[str, list[int]] = {}
    for first in range(0, MANY, 100):
        for number in range(first, first + 100):
            engine.bank.warm(versions[number])
            engine.add(request(f"{number}", prompt, mix=((versions[number].digest, 1.0),), max_tokens=2))
        answers |= {key: tokens_of(deltas) for key, deltas in drain(engine).items()}
    assert len(answers) == MANY and all(len(tokens) == 2 for tokens in answers.values())
    assert len({tuple(tokens) for tokens in answers.values()}) > 10, "they differ"
    for number in range(0, MANY, 250):
        engine.bank.warm(versions[number])
        engine.add(request("again", prompt, mix=((versions[number].digest, 1.0),), max_tokens=2))
        assert tokens_of(drain(engine)["again"]) == answers[f"{number}"]
        alone = run_alone(base, prompt, ((versions[number].digest, 1.0),), [versions[number]])
        assert alone[:2] == answers[f"{number}"]
    figures = engine.bank.figures()
    assert figures.active == 4 and figures.held == 0 and figures.activations >= MANY
    assert figures.host_bytes <= figures.host_budget and figures.host < MANY
    assert_nothing_held(engine)
