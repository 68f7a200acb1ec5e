"""Sampling: the distribution that was asked for, and dice that depend on nothing but seed, position and token."""

import torch

from serving.engine.sampler import sample
from serving.engine.sequence import Request, SamplingParams, Sequence


def sequences(count: int, **params: object) -> list[Sequence]:
    return [
        Sequence(Request(f"{seed}", (1, 2, 3), SamplingParams(**{"temperature": 1.0, "seed": seed, **params})))
        for seed in range(count)
    ]


def frequencies(logits: list[float], count: int = 4000, **params: object) -> torch.Tensor:
    rows = torch.tensor([logits]).expand(count, -1)
    tokens = [sampled.token_id for sampled in sample(rows, sequences(count, **params), frozenset())]
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)) / count


def test_frequencies_over_seeds_are_the_probabilities() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    expected = torch.tensor(logits).softmax(0)
    assert (frequencies(logits) - expected).abs().max() < 0.03


def test_temperature_and_truncation() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    assert (frequencies(logits, temperature=0.5) - (torch.tensor(logits) / 0.5).softmax(0)).abs().max() < 0.03
    assert (frequencies(logits, top_k=2) > 0).tolist() == [True, True, False, False]
    assert (frequencies(logits, top_p=0.6) > 0).tolist() == [True, False, False, False]
    assert (frequencies(logits, top_p=0.7) > 0).tolist() == [True, True, False, False]
    assert (frequencies(logits, min_p=0.2) > 0).tolist() == [True, True, False, False]


def test_rows_of_different_settings_do_not_disturb_each_other() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(3, -1)
    mixed = [*sequences(1, temperature=0.0), *sequences(1, top_k=1), *sequences(1, logit_bias=((3, 100.0),))]
    assert [sampled.token_id for sampled in sample(logits, mixed, frozenset())] == [0, 0, 3]


def test_penalties_bias_and_minimum_length() -> None:
    sequence = Sequence(Request("a", (0,), SamplingParams(temperature=0.0, min_tokens=5, frequency_penalty=2.0)))
    sequence.tokens += [1, 1]
    logits = torch.tensor([[4.0, 6.0, 3.5, 9.0]])
    # 3 is the end of turn and too early; 1 was said twice and pays 4.
    assert sample(logits, [sequence], frozenset([3]))[0].token_id == 0
    repeated = Sequence(Request("b", (1,), SamplingParams(temperature=0.0, repetition_penalty=2.0)))
    assert sample(torch.tensor([[4.0, 6.0, -1.0]]), [repeated], frozenset())[0].token_id == 0


def test_seeds_of_any_size_and_sign_are_accepted() -> None:
    logits = torch.zeros(1, 100)
    tokens = {
        sample(logits, [Sequence(Request("a", (1,), SamplingParams(seed=seed)))], frozenset())[0].token_id
        for seed in (0, -1, 2**31, 2**63, 2**64 + 5, -(2**70))
    }
    assert len(tokens) > 2
