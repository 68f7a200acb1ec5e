"""The effect of an adapter: the figure is PEFT's, what does nothing is flagged, and no running answer notices."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import cast

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from adapters.base_model import load_base
from adapters.manifest import WEIGHTS_FILE, AdapterVersion
from adapters.settings import BUNDLED, Settings
from adapters.snapshots import Snapshot
from serving.async_engine import AsyncEngine
from serving.effects import AdapterEffects
from serving.engine.effect import NO_EFFECT, TEXT, compare
from serving.engine.engine import Engine
from tests import tiny
from tests.serving.running import RunningServer, running_server
from tests.serving.test_engine import (
    assert_nothing_held,
    build_engine,
    drain,
    random_prompts,
    request,
    tokens_of,
    version_of,
)

MINI = BUNDLED / "bianlian-mini"


def with_b(source: Path, target: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A copy of an adapter with every B changed."""
    tiny.copy(source, target)
    weights = load_file(target / WEIGHTS_FILE)
    changed = {name: change(weight) if "lora_B" in name else weight for name, weight in weights.items()}
    save_file(changed, target / WEIGHTS_FILE)
    return target


@pytest.mark.parametrize("name", ["r2", "r4", "r8", "r16"])
def test_the_figure_is_the_one_peft_gives(tiny_base: Path, tiny_adapters: dict[str, Path], name: str) -> None:
    ids = AutoTokenizer.from_pretrained(tiny_base)(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    model = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(tiny_base), tiny_adapters[name]).eval()
    with torch.no_grad():
        tuned = model(input_ids=ids).logits[0].log_softmax(-1)
        with model.disable_adapter():
            base = model(input_ids=ids).logits[0].log_softmax(-1)
    expected = torch.nn.functional.kl_div(tuned, base, log_target=True, reduction="sum").item() / ids.shape[1]
    engine = build_engine(tiny_base)
    version = version_of(name, tiny_adapters[name])
    engine.bank.warm(version)
    effect = engine.measure_effect(version.digest)
    assert effect is not None and effect.kl == pytest.approx(expected, abs=1e-3)
    assert effect.verdict == "ok" and effect.warning is None
    assert_nothing_held(engine)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_untrained_is_no_effect_trained_is_ok_and_overflowing_breaks_down(dtype: str, tmp_path: Path) -> None:
    """On the bundled base. A single training step is rounding too: the threshold lies above what bfloat16 adds."""
    persona = BUNDLED / "personas" / "wukong"
    adapters = {
        "persona": persona,
        "untrained": with_b(persona, tmp_path / "untrained", torch.zeros_like),
        "one step": one_training_step(tmp_path / "step"),
        "diverged": with_b(persona, tmp_path / "diverged", lambda b: b * 1e3),
        "overflowing": with_b(persona, tmp_path / "overflowing", lambda b: torch.full_like(b, 1e38)),
    }
    engine = Engine(load_base(str(MINI), device="cpu", dtype=dtype), Settings(kv_cache_memory=0.05))
    effects = {}
    for name, directory in adapters.items():
        version = version_of("a", directory)
        engine.bank.warm(version)
        effects[name] = engine.measure_effect(version.digest)
    assert {name: effect.verdict for name, effect in effects.items() if effect} == {
        "persona": "ok",
        "untrained": "no effect",
        "one step": "no effect",
        "diverged": "breaks down",
        "overflowing": "breaks down",
    }
    assert effects["untrained"].kl == 0, "to the bit"
    assert 0 < effects["one step"].kl < NO_EFFECT < 0.5 < effects["persona"].kl
    assert effects["overflowing"].kl is None
    assert effects["persona"].warning is None and all(e.warning for n, e in effects.items() if n != "persona")
    assert_nothing_held(engine)


def one_training_step(directory: Path) -> Path:
    """A rank-4 adapter of the bundled base after one step of AdamW at a usual learning rate."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = AutoTokenizer.from_pretrained(MINI)("俺老孙来也！妖怪哪里逃？", return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=2e-4)
    tuned(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tuned.save_pretrained(directory)
    return directory


def test_half_of_what_a_token_can_tell_is_breaking_down() -> None:
    base = torch.tensor([[8.0, 0.0, 0.0, 0.0]])
    assert compare(base, base / 4).verdict == "ok"
    assert compare(base, torch.zeros(1, 4)).verdict == "breaks down"  # an even guess knows nothing of what base knows
    assert compare(base, torch.full((1, 4), math.nan)).kl is None
    silent = torch.tensor([[8.0, 0.0, -math.inf, 0.0]])  # a token that is never said
    assert compare(silent, silent).kl == 0


def test_measuring_between_steps_changes_no_running_answer(tiny_base: Path, tiny_adapters: dict[str, Path]) -> None:
    versions = [version_of(name, directory) for name, directory in tiny_adapters.items()]
    prompts = random_prompts(6, seed=9)

    def answers(*, measuring: bool) -> dict[str, list[int]]:
        engine = build_engine(tiny_base)
        for version in versions:
            engine.bank.warm(version)
        for number, prompt in enumerate(prompts):
            mix = ((versions[number % 3].digest, 1.0),) if number % 2 else ()
            engine.add(request(f"{number}", prompt, mix=mix))
        tokens: dict[str, list[int]] = {f"{number}": [] for number in range(len(prompts))}
        step = 0
        while engine.has_work:
            for delta in engine.step():
                tokens[delta.request_id] += delta.token_ids
            used = engine.pool.num_used
            if measuring:
                assert engine.measure_effect(versions[step % 4].digest) is not None
            assert engine.pool.num_used == used
            step += 1
        assert_nothing_held(engine)
        return tokens

    assert answers(measuring=True) == answers(measuring=False)


def test_an_adapter_that_finds_no_slot_is_measured_later(tiny_base: Path, tiny_adapters: dict[str, Path]) -> None:
    engine = build_engine(tiny_base, adapter_slots=1)
    running, other = (version_of(name, tiny_adapters[name]) for name in ("r2", "r4"))
    engine.bank.warm(running)
    assert engine.measure_effect(other.digest) is None, "still on disk"
    engine.bank.warm(other)
    engine.add(request("a", [5, 6, 7], mix=((running.digest, 1.0),)))
    engine.step()
    assert engine.measure_effect(other.digest) is None, "the only slot is taken"
    assert len(tokens_of(drain(engine)["a"])) > 0
    assert engine.measure_effect(other.digest) is not None
    assert_nothing_held(engine)


class AtOnce:
    """The engine without a thread of its own."""

    alive = True

    def __init__(self, engine: Engine):
        self.engine = engine

    async def call(self, work: Callable[[], None]) -> None:
        work()


def test_a_young_snapshot_without_effect_is_no_reason_to_warn(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    levels: list[int] = []
    for rank, kind in (("r2", AdapterVersion), ("r4", Snapshot)):
        version = version_of("face", with_b(tiny_adapters[rank], tmp_path / rank, torch.zeros_like))
        version = kind(**{field.name: getattr(version, field.name) for field in fields(version)})
        engine = build_engine(tiny_base)
        engine.bank.warm(version)
        asyncio.run(AdapterEffects(cast(AsyncEngine, AtOnce(engine))).measure(version))
        levels.append(next(record.levelno for record in caplog.records if "no effect" in record.getMessage()))
        caplog.clear()
    assert levels == [logging.WARNING, logging.INFO]


def card(server: RunningServer, model: str) -> dict[str, object]:
    return httpx.get(f"{server.url}/v1/models/{model}").json()


def test_loading_says_what_does_nothing_and_the_first_answer_makes_the_effect_known(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zero = with_b(tiny_adapters["r2"], tmp_path / "adapters" / "zero", torch.zeros_like)
    settings = Settings(
        home=tmp_path / "home",
        base=str(tiny_base),
        device="cpu",
        dtype="float32",
        kv_cache_memory=0.05,
        ui=False,
        adapter_roots=[tmp_path / "adapters", tiny_adapters["r2"].parent],
    )
    with running_server(settings) as server:

        def load(name: str, directory: Path) -> str:
            body = {"lora_name": name, "lora_path": str(directory)}
            return httpx.post(f"{server.url}/v1/load_lora_adapter", json=body).raise_for_status().text

        assert "no effect" in load("zero", zero)
        assert card(server, "zero")["effect"] == {"kl": 0.0, "verdict": "no effect"}
        assert "zero@1 has no effect" in caplog.text
        assert load("r4", tiny_adapters["r4"]) == "Success: LoRA adapter 'r4' loaded as r4@1."

        server.services.registry.store.publish(tiny_adapters["r8"], "face")
        assert card(server, "face")["effect"] is None, "nobody has asked it anything"
        question = {"model": "face", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 4}
        httpx.post(f"{server.url}/v1/chat/completions", json=question).raise_for_status()
        deadline = time.monotonic() + 10
        while card(server, "face")["effect"] is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert card(server, "face")["effect"]["kl"] > NO_EFFECT
        server.assert_nothing_held()


def test_effects_wait_for_an_idle_engine_but_not_for_ever(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.async_engine.LATEST_S", 3600.0)
    settings = Settings(
        home=tmp_path / "home", base=str(tiny_base), device="cpu", dtype="float32", kv_cache_memory=0.05, ui=False
    )
    with running_server(settings) as server:
        for name in ("r2", "r4", "r8"):
            server.services.registry.store.publish(tiny_adapters[name], name)

        def ask(model: str) -> None:
            question = {"model": model, "messages": [{"role": "user", "content": "你好"}], "max_tokens": 2}
            httpx.post(f"{server.url}/v1/chat/completions", json=question).raise_for_status()

        def effects_of(names: tuple[str, ...], *, known: bool) -> list[object]:
            deadline = time.monotonic() + 10 * known
            while True:
                effects = [card(server, name)["effect"] for name in names]
                if all(effects) or time.monotonic() >= deadline:
                    return effects
                time.sleep(0.02)

        @contextmanager
        def endless_answer() -> Iterator[None]:
            stop = threading.Event()

            def keep_asking() -> None:
                endless = {"model": "base", "prompt": "你好", "max_tokens": 200, "ignore_eos": True}
                while not stop.is_set():
                    httpx.post(f"{server.url}/v1/completions", json=endless).raise_for_status()

            with ThreadPoolExecutor(2) as askers:  # two, so that one runs when the other has ended
                asking = [askers.submit(keep_asking) for _ in range(2)]
                try:
                    yield
                finally:
                    stop.set()
                for asked in asking:
                    asked.result()

        with endless_answer():
            ask("r2")
            ask("r4")
            assert effects_of(("r2", "r4"), known=False) == [None, None], "answers were running"
        assert all(effects_of(("r2", "r4"), known=True))
        monkeypatch.setattr("serving.async_engine.LATEST_S", 0.0)
        with endless_answer():
            ask("r8")
            assert all(effects_of(("r8",), known=True))
