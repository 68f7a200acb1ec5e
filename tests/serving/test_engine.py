"""The engine against plain transformers and PEFT, in float32: same tokens, and nothing left behind."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import Qwen3ForCausalLM

from adapters.base_model import load_base
from adapters.manifest import AdapterVersion, digest_of
from adapters.settings import Settings
from serving.engine.engine import Engine
from serving.engine.kernels import reference
from serving.engine.sequence import Request, SamplingParams, TokenDelta

NEW_TOKENS = 12


def version_of(name: str, directory: Path) -> AdapterVersion:
    return AdapterVersion(name, 1, digest_of(directory), directory, None)


def build_engine(base: Path, **settings: object) -> Engine:
    options = {"kv_cache_memory": 0.05, "max_batch_tokens": 64, **settings}
    return Engine(load_base(str(base), device="cpu", dtype="float32"), Settings(**options))


def request(
    request_id: str, prompt: list[int], *, mix: tuple[tuple[str, float], ...] = (), **params: object
) -> Request:
    chosen = {"temperature": 0.0, "max_tokens": NEW_TOKENS, "ignore_eos": True, **params}
    return Request(request_id, tuple(prompt), SamplingParams(**chosen), mix)


def drain(engine: Engine) -> dict[str, list[TokenDelta]]:
    """Step until nothing is left; every request's deltas."""
    deltas: dict[str, list[TokenDelta]] = {}
    while engine.has_work:
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    return deltas


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def assert_nothing_held(engine: Engine) -> None:
    assert engine.pool.num_used == 0
    assert engine.scheduler.digests_in_use() == set()
    assert not engine.scheduler.running and not engine.scheduler.waiting


@pytest.fixture(scope="module")
def oracle(tiny_base: Path, tiny_adapters: dict[str, Path]) -> Iterator[object]:
    """Greedy continuation by transformers' generate under PEFT, one adapter alone."""
    model = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(tiny_base), tiny_adapters["r2"], "r2")
    for name, directory in tiny_adapters.items():
        if name != "r2":
            model.load_adapter(directory, name)
    model.eval()

    def continue_greedily(prompt: list[int], adapter: str | None) -> list[int]:
        def generate() -> list[int]:
            out = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
            )
            return out[0, len(prompt) :].tolist()

        if adapter is None:
            with model.disable_adapter():
                return generate()
        model.set_adapter(adapter)
        return generate()

    yield continue_greedily


def random_prompts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(10, 8000) for _ in range(rng.randrange(1, 90))] for _ in range(count)]


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_mixed_batch_of_base_and_four_adapters_equals_peft_for_each_alone(
    tiny_base: Path, tiny_adapters: dict[str, Path], oracle: object, kernels: str
) -> None:
    base = load_base(str(tiny_base), device="cpu", dtype="float32")
    settings = Settings(kv_cache_memory=0.05, max_batch_tokens=64)
    engine = Engine(base, settings, kernels=reference if kernels == "reference" else None)
    versions = {name: version_of(name, directory) for name, directory in tiny_adapters.items()}
    for version in versions.values():
        engine.bank.warm(version)
    rng = random.Random(7)
    wanted: dict[str, tuple[list[int], str | None]] = {}
    for number, prompt in enumerate(random_prompts(40, seed=5)):
        adapter = rng.choice([None, *versions])
        wanted[f"{number}"] = (prompt, adapter)
        mix = ((versions[adapter].digest, 1.0),) if adapter else ()
        # Eos would end generate() early; neither side may stop at it, so it may not be chosen by either.
        bias = ((engine.base.tokenizer.eos_token_id, -1e9),)
        engine.add(request(f"{number}", prompt, mix=mix, logit_bias=bias))
        if number % 3 == 0:
            engine.step()  # arrivals while others run
    # Deltas of the early steps are in the sequences; collect whole answers at the end instead.
    sequences = {key: running.sequence for key, running in engine._requests.items()}
    drain(engine)
    for key, sequence in sequences.items():
        prompt, adapter = wanted[key]
        assert sequence.tokens[len(prompt) :] == oracle(prompt, adapter), f"request {key} on {adapter}"
    assert_nothing_held(engine)
