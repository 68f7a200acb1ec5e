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
from serving.engine.sequence import FinishReason, Request, SamplingParams, TokenDelta

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


def run_alone(
    base: Path, prompt: list[int], mix: tuple[tuple[str, float], ...], versions: list[AdapterVersion]
) -> list[int]:
    engine = build_engine(base, prefix_cache=False)
    for version in versions:
        engine.bank.warm(version)
    engine.add(request("alone", prompt, mix=mix))
    return tokens_of(drain(engine)["alone"])


def test_running_out_of_blocks_preempts_and_changes_no_token(tiny_base: Path) -> None:
    prompts = [prompt * 3 for prompt in random_prompts(8, seed=3)]
    prompts = [prompt[:150] for prompt in prompts]
    roomy = build_engine(tiny_base)
    tight = build_engine(tiny_base)
    # Leave room for barely two of the eight.
    hoard = [tight.pool._free.popitem(last=False)[0] for _ in range(tight.pool.num_free - 22)]
    results = []
    for engine in (roomy, tight):
        for number, prompt in enumerate(prompts):
            engine.add(request(f"{number}", prompt, max_tokens=40))
        results.append({key: tokens_of(deltas) for key, deltas in drain(engine).items()})
    assert results[0] == results[1]
    assert tight.pool.num_used == len(hoard)


def test_prefix_cache_is_used_and_never_across_adapters_or_strengths(
    tiny_base: Path, tiny_adapters: dict[str, Path]
) -> None:
    versions = {name: version_of(name, tiny_adapters[name]) for name in ("r2", "r8")}
    engine = build_engine(tiny_base)
    for version in versions.values():
        engine.bank.warm(version)
    prompt = random_prompts(1, seed=8)[0] * 4
    prompt = (prompt * 4)[:100]
    mixes = [
        (),
        ((versions["r2"].digest, 1.0),),
        ((versions["r2"].digest, 0.5),),
        ((versions["r8"].digest, 1.0),),
        tuple(sorted([(versions["r2"].digest, 0.5), (versions["r8"].digest, -0.5)])),
    ]
    for turn in range(2):  # the second time everything that may be shared is
        for number, mix in enumerate(mixes):
            engine.add(request(f"{turn}-{number}", prompt, mix=mix))
            deltas = drain(engine)[f"{turn}-{number}"]
            assert deltas[0].cached_tokens == (96 if turn else 0)
            assert tokens_of(deltas) == run_alone(tiny_base, prompt, mix, list(versions.values()))
    assert_nothing_held(engine)


def test_a_whole_prompt_is_computed_whatever_the_cache_has_and_serves_later_ones(tiny_base: Path) -> None:
    engine, prompt = build_engine(tiny_base), list(range(20, 120))
    for name, whole, cached in (("first", True, 0), ("again", True, 0), ("later", False, 96)):
        engine.add(request(name, prompt, whole_prompt=whole))
        assert drain(engine)[name][0].cached_tokens == cached
    assert_nothing_held(engine)


def test_forgetting_an_adapter_forgets_its_cached_blocks(tiny_base: Path, tiny_adapters: dict[str, Path]) -> None:
    version = version_of("r2", tiny_adapters["r2"])
    engine = build_engine(tiny_base)
    prompt = list(range(20, 120))
    for _ in range(2):
        engine.bank.warm(version)
        engine.add(request("a", prompt, mix=((version.digest, 1.0),)))
        assert drain(engine)["a"][0].cached_tokens == 0
        assert engine.forget_adapter(version.digest) > 0
        assert engine.bank.status(version.digest) == "cold"


def test_more_adapters_than_slots_take_turns_and_all_are_served(
    tiny_base: Path, tiny_adapters: dict[str, Path]
) -> None:
    engine = build_engine(tiny_base, adapter_slots=1)
    versions = [version_of(name, directory) for name, directory in tiny_adapters.items()]
    for version in versions:
        engine.bank.warm(version)
    prompt = random_prompts(1, seed=2)[0]
    for number in range(12):
        engine.add(request(f"{number}", prompt, mix=((versions[number % 4].digest, 1.0),)))
    answers = {key: tokens_of(deltas) for key, deltas in drain(engine).items()}
    for number in range(12):
        version = versions[number % 4]
        assert answers[f"{number}"] == run_alone(tiny_base, prompt, ((version.digest, 1.0),), [version])
    assert engine.bank.num_active == 1
    assert_nothing_held(engine)


def test_abort_frees_everything_at_once_and_others_go_on(tiny_base: Path) -> None:
    engine = build_engine(tiny_base)
    prompts = random_prompts(3, seed=6)
    for number, prompt in enumerate(prompts):
        engine.add(request(f"{number}", prompt))
    while engine.num_waiting:
        engine.step()
    used = engine.pool.num_used
    engine.abort("1")
    assert engine.pool.num_used < used
    answers = drain(engine)
    assert "1" not in answers
    assert tokens_of(answers["2"])[-5:] == run_alone(tiny_base, prompts[2], (), [])[-5:]
    assert_nothing_held(engine)


def test_equal_seeds_roll_equal_dice_whatever_else_is_in_the_batch(tiny_base: Path) -> None:
    prompt = random_prompts(1, seed=4)[0]
    crowded, lonely = build_engine(tiny_base), build_engine(tiny_base)
    sampled = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 42}
    for number, other in enumerate(random_prompts(5, seed=1)):
        crowded.add(request(f"other-{number}", other, temperature=1.5, seed=number))
    for engine in (crowded, lonely):
        engine.add(request("mine", prompt, **sampled))
    lonely.add(request("twin", prompt, **sampled))
    crowd, alone = drain(crowded), drain(lonely)
    assert tokens_of(crowd["mine"]) == tokens_of(alone["mine"]) == tokens_of(alone["twin"])


def test_max_model_len_ends_an_answer_with_length(tiny_base: Path) -> None:
    engine = build_engine(tiny_base, max_model_len=64)
    engine.add(request("a", list(range(10, 70)), max_tokens=engine.check(60, None)))
    deltas = drain(engine)["a"]
    assert deltas[-1].finish_reason == FinishReason.LENGTH and len(tokens_of(deltas)) == 4


def test_a_failing_step_ends_its_requests_with_the_reason_and_the_engine_lives(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine(tiny_base)
    engine.add(request("a", [5, 6, 7]))
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "run", lambda batch: 1 / 0)
        [delta] = engine.step()
    assert delta.finish_reason == FinishReason.ERROR and "division" in (delta.error or "")
    assert_nothing_held(engine)
    engine.add(request("b", [5, 6, 7]))
    assert len(tokens_of(drain(engine)["b"])) == NEW_TOKENS


def test_an_adapter_that_cannot_be_brought_in_ends_its_own_request_only(
    tiny_base: Path, tiny_adapters: dict[str, Path]
) -> None:
    engine = build_engine(tiny_base)
    version = version_of("r2", tiny_adapters["r2"])
    engine.bank.warm(version)
    engine.add(request("fine", [5, 6, 7]))
    engine.step()
    engine.add(request("gone", [5, 6, 7], mix=((version.digest, 1.0),)))
    engine.bank.free(version.digest)
    answers = drain(engine)
    assert len(tokens_of(answers["fine"])) == NEW_TOKENS - 1
    [delta] = answers["gone"]
    assert delta.finish_reason == FinishReason.ERROR and "unloaded" in (delta.error or "")
    assert_nothing_held(engine)
