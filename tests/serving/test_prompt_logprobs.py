"""How likely a prompt was, token by token: the same as transformers and PEFT say, however it was computed."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import Qwen3ForCausalLM

from serving.engine.engine import Engine
from serving.engine.sequence import FinishReason, TokenDelta, TokenLogprob
from tests.serving.test_engine import (
    assert_nothing_held,
    build_engine,
    drain,
    random_prompts,
    request,
    tokens_of,
    version_of,
)

PROMPTS = [[7], *((prompt * 5)[:150] for prompt in random_prompts(3, seed=21))]


def expected(base: Path, adapter: Path | None, prompt: list[int]) -> torch.Tensor:
    """(position, vocabulary)"""
    model = Qwen3ForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logprobs: torch.Tensor = model.eval()(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return logprobs


def assert_scored(deltas: list[TokenDelta], prompt: list[int], logprobs: torch.Tensor, top: int) -> None:
    scores = deltas[0].prompt_logprobs
    assert len(scores) == len(prompt) and scores[0] is None
    assert not any(delta.prompt_logprobs for delta in deltas[1:])
    for at, score in enumerate(scores[1:]):
        assert isinstance(score, TokenLogprob) and score.token_id == prompt[at + 1]
        assert score.logprob == pytest.approx(logprobs[at, score.token_id].item(), abs=1e-4)
        values, ids = logprobs[at].topk(top)
        assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=1e-4)
        assert [token for token, _ in score.top] == ids.tolist()


@pytest.mark.parametrize("room", [None, 13], ids=["roomy", "preempted"])
def test_prompts_in_chunks_with_adapters_and_a_warm_prefix_cache_are_scored_as_by_transformers(
    tiny_base: Path, tiny_adapters: dict[str, Path], room: int | None
) -> None:
    version = version_of("r8", tiny_adapters["r8"])
    mixes = {(): None, ((version.digest, 1.0),): tiny_adapters["r8"]}
    engine: Engine = build_engine(tiny_base, max_batch_tokens=48)  # less than a prompt
    engine.bank.warm(version)
    for number, prompt in enumerate(PROMPTS):
        for mix in mixes:
            engine.add(request(f"warm-{number}-{len(mix)}", prompt, mix=mix, max_tokens=1))
    drain(engine)
    if room:  # for one and a half of the longest
        for _ in range(engine.pool.num_free - room):
            engine.pool._free.popitem(last=False)
    preempted = []
    put_back = engine.scheduler.waiting.put_back
    engine.scheduler.waiting.put_back = lambda sequence: (preempted.append(sequence), put_back(sequence))[1]
    for number, prompt in enumerate(PROMPTS):
        for mix in mixes:
            for count in (0, 40):
                name = f"{number}-{len(mix)}-{count}"
                engine.add(request(name, prompt, mix=mix, max_tokens=count, prompt_logprobs=3))
    deltas = drain(engine)
    assert bool(preempted) == bool(room)
    for number, prompt in enumerate(PROMPTS):
        for mix, adapter in mixes.items():
            logprobs = expected(tiny_base, adapter, prompt)
            for count in (0, 40):
                found = deltas[f"{number}-{len(mix)}-{count}"]
                assert_scored(found, prompt, logprobs, 3)
                assert len(tokens_of(found)) == count and found[-1].finish_reason == FinishReason.LENGTH
                assert not any(delta.cached_tokens for delta in found)
    if not room:
        assert_nothing_held(engine)


def test_scoring_changes_no_neighbour_and_its_blocks_serve_later_prompts(tiny_base: Path) -> None:
    prompt = PROMPTS[1]
    alone, shared = build_engine(tiny_base), build_engine(tiny_base)
    for engine in (alone, shared):
        engine.add(request("plain", PROMPTS[2], seed=3, temperature=1.0))
    shared.add(request("scored", prompt, prompt_logprobs=0, max_tokens=0))
    assert tokens_of(drain(alone)["plain"]) == tokens_of(drain(shared)["plain"])
    shared.add(request("later", prompt))
    assert drain(shared)["later"][0].cached_tokens == (len(prompt) - 1) // 16 * 16 > 0
