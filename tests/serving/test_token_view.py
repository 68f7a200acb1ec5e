"""Token by token: the probabilities are those of transformers and PEFT, under either prompt."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, Qwen3ForCausalLM

from adapters.errors import Invalid, NotFound
from app import Services, build_services
from serving.chat import Turn
from serving.engine.sequence import SamplingParams
from serving.token_view import ALTERNATIVES, ScoredLane, TokenScore, token_scores
from tests.serving.running import QUESTION, settings_for


@pytest.fixture(scope="module")
def services(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    named = [f"r8={tiny_adapters['r8']}"]
    running = build_services(settings_for(tiny_base, tmp_path_factory.mktemp("home"), adapter=named))
    yield running
    assert running.registry.total_leases == 0 and running.engine.engine.pool.num_used == 0
    running.close()


def answered(services: Services) -> tuple[list[int], list[int]]:
    """Prompt and answer of the adapter, in tokens."""

    async def ask() -> tuple[list[int], list[int]]:
        turn = Turn("r8", tuple(QUESTION), SamplingParams(temperature=1, seed=5, ignore_eos=True), max_tokens=24)
        said: list[int] = []
        async with await services.chat.ask(turn) as answer:
            async for delta in answer:
                said += delta.token_ids
            assert list(answer.prompt_ids) == await services.chat.prompt_ids(turn)
            return list(answer.prompt_ids), said

    return asyncio.run(ask())


def scored(services: Services, scale: float, prompt: list[int], said: list[int], base: list[int]) -> list[TokenScore]:
    lane = ScoredLane("r8", scale, prompt, said)
    return asyncio.run(token_scores(services.chat, lane, base))


def reference(base: Path, adapter: Path | None, scale: float, prompt: list[int], said: list[int]) -> torch.Tensor:
    """Log-probabilities (answer token, vocabulary) by transformers and PEFT."""
    model = Qwen3ForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
        for module in model.modules():
            if hasattr(module, "scale_layer"):
                module.scale_layer(scale)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
    found: torch.Tensor = logits.log_softmax(-1)
    return found


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("own_prompt", [False, True])
def test_probabilities_are_those_of_peft_and_of_the_base(
    services: Services, tiny_base: Path, tiny_adapters: dict[str, Path], scale: float, own_prompt: bool
) -> None:
    prompt, said = answered(services)
    base_prompt = prompt[3:] if own_prompt else prompt
    scores = scored(services, scale, prompt, said, base_prompt)
    tuned = reference(tiny_base, tiny_adapters["r8"], scale, prompt, said)
    base = reference(tiny_base, None, 1, base_prompt, said)
    tokens = torch.tensor(said)[:, None]
    # Several tokens may make one character, so their log-probabilities are added up.
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    assert "".join(score.text for score in scores) == tokenizer.decode(said)
    assert sum(s.logprob for s in scores) == pytest.approx(tuned.gather(1, tokens).sum().item(), abs=1e-3)
    assert sum(s.base_logprob for s in scores) == pytest.approx(base.gather(1, tokens).sum().item(), abs=1e-3)
    assert max(abs(score.logprob - score.base_logprob) for score in scores) > 0.1
    first = scores[0]
    for found, expected in ((first.alternatives, tuned), (first.base_alternatives, base)):
        values, ids = expected[0].topk(ALTERNATIVES)
        assert [p for _, p in found] == pytest.approx(values.exp().tolist(), abs=1e-4)
        whole = [tokenizer.decode([token]) for token in ids.tolist()]
        assert [text for (text, _), plain in zip(found, whole, strict=True) if "\ufffd" not in plain] == [
            plain for plain in whole if "\ufffd" not in plain
        ]


def test_at_strength_zero_nothing_differs(services: Services) -> None:
    prompt, said = answered(services)
    for score in scored(services, 0.0, prompt, said, prompt):
        assert score.difference == pytest.approx(0, abs=1e-6)
        assert score.alternatives == score.base_alternatives
        assert math.exp(score.logprob) <= 1


def test_what_cannot_be_scored_is_refused(services: Services) -> None:
    with pytest.raises(Invalid, match="no tokens"):
        scored(services, 1.0, [5, 6], [], [5, 6])
    with pytest.raises(NotFound, match="r9"):
        asyncio.run(token_scores(services.chat, ScoredLane("r9", 1.0, [5], [6]), [5]))
    with pytest.raises(Invalid, match="maximum context length is 512"):
        scored(services, 1.0, [5] * 500, [6] * 20, [5])
