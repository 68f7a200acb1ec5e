"""A prompt's embedding: transformers' mean last hidden state, however the engine computed it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import Qwen3ForCausalLM

from serving.engine.sequence import FinishReason, TokenDelta
from tests.serving.test_cuda_graphs import PlainKernels, graphs_of
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
EMBED = {"embed": True, "max_tokens": 0}


def expected(base: Path, adapter: Path | None, prompt: list[int]) -> Tensor:
    """(hidden,), by transformers and PEFT."""
    model = Qwen3ForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        hidden = model.eval()(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1]
    return F.normalize(hidden[0].mean(dim=0), dim=0)


def embedding_of(deltas: list[TokenDelta]) -> Tensor:
    [delta] = deltas
    assert delta.embedding is not None and delta.embedding.dtype == torch.float32
    assert delta.finish_reason == FinishReason.LENGTH and not (delta.text or delta.token_ids)
    return delta.embedding


def test_prompts_in_chunks_between_running_chats_are_embedded_as_by_transformers(
    tiny_base: Path, tiny_adapters: dict[str, Path]
) -> None:
    version = version_of("r8", tiny_adapters["r8"])
    mixes = {(): None, ((version.digest, 1.0),): tiny_adapters["r8"]}
    engine = build_engine(tiny_base, max_batch_tokens=48)  # less than a prompt
    engine.bank.warm(version)
    for number, prompt in enumerate(PROMPTS):  # the prefix cache knows every prompt already
        for mix in mixes:
            engine.add(request(f"warm-{number}-{len(mix)}", prompt, mix=mix, max_tokens=1))
    drain(engine)
    for number, prompt in enumerate(PROMPTS):
        for mix in mixes:
            engine.add(request(f"chat-{number}-{len(mix)}", prompt[:20], mix=mix, max_tokens=40))
            engine.add(request(f"{number}-{len(mix)}", prompt, mix=mix, **EMBED))
    deltas = drain(engine)
    for number, prompt in enumerate(PROMPTS):
        for mix, adapter in mixes.items():
            found = embedding_of(deltas[f"{number}-{len(mix)}"])
            assert torch.allclose(found, expected(tiny_base, adapter, prompt), atol=1e-4)
            assert found.norm().item() == pytest.approx(1.0, abs=1e-5)
            assert len(tokens_of(deltas[f"chat-{number}-{len(mix)}"])) == 40
    assert_nothing_held(engine)


def test_one_that_steps_back_half_way_counts_no_token_twice(tiny_base: Path) -> None:
    engine = build_engine(tiny_base, max_batch_tokens=16)
    for _ in range(engine.pool.num_free - 23):
        engine.pool._free.popitem(last=False)
    stepped_back = []
    put_back = engine.scheduler.waiting.put_back
    engine.scheduler.waiting.put_back = lambda sequence: (stepped_back.append(sequence.num_pooled), put_back(sequence))
    prompt = PROMPTS[-1] * 2
    engine.add(replace(request("embedded", prompt, **EMBED), priority=1))
    engine.step()
    for number in range(3):
        engine.add(request(f"chat-{number}", prompt[number : number + 15], max_tokens=40))
    deltas = drain(engine)
    [pooled] = stepped_back
    assert 0 < pooled < len(prompt)
    assert torch.allclose(embedding_of(deltas["embedded"]), expected(tiny_base, None, prompt), atol=1e-4)


def test_alone_and_in_one_chunk_or_many_it_is_the_same(tiny_base: Path) -> None:
    found = []
    for budget in (16, 64, 512):
        engine = build_engine(tiny_base, max_batch_tokens=budget)
        engine.add(request("a", PROMPTS[1], **EMBED))
        found.append(embedding_of(drain(engine)["a"]))
    assert torch.allclose(found[0], found[2], atol=1e-5) and torch.allclose(found[1], found[2], atol=1e-5)
    assert torch.allclose(found[2], expected(tiny_base, None, PROMPTS[1]), atol=1e-4)


def test_embedding_changes_no_neighbour_and_its_blocks_serve_later_prompts(tiny_base: Path) -> None:
    prompt = PROMPTS[1]
    alone, shared = build_engine(tiny_base), build_engine(tiny_base)
    for engine in (alone, shared):
        engine.add(request("plain", PROMPTS[2], seed=3, temperature=1.0))
    shared.add(request("embedded", prompt, **EMBED))
    assert tokens_of(drain(alone)["plain"]) == tokens_of(drain(shared)["plain"])
    shared.add(request("later", prompt))
    assert drain(shared)["later"][0].cached_tokens == (len(prompt) - 1) // 16 * 16 > 0


def test_a_single_token_is_embedded_although_its_step_could_be_a_captured_one(tiny_base: Path) -> None:
    engine = build_engine(tiny_base)
    engine.runner.kernels = PlainKernels()
    engine.runner.graphs = graphs_of(engine, lambda step: step)
    engine.add(request("chat", PROMPTS[2]))
    while engine.num_waiting or any(sequence.remaining > 1 for sequence in engine.scheduler.running):
        engine.step()
    engine.add(request("a", [7], **EMBED))
    assert torch.allclose(embedding_of(drain(engine)["a"]), expected(tiny_base, None, [7]), atol=1e-4)


def test_hidden_states_that_are_no_numbers_are_an_error_of_their_request_only(tiny_base: Path) -> None:
    engine = build_engine(tiny_base)
    engine.add(request("broken", PROMPTS[1], **EMBED))
    engine.add(request("fine", PROMPTS[2], **EMBED))
    [broken] = [chunk.sequence for chunk in engine.scheduler.schedule() if chunk.sequence.request.id == "broken"]
    broken.hidden_sum = torch.full((64,), float("nan"))
    deltas = drain(engine)
    assert deltas["broken"][0].finish_reason == FinishReason.ERROR and "not numbers" in (
        deltas["broken"][0].error or ""
    )
    embedding_of(deltas["fine"])
    assert_nothing_held(engine)
