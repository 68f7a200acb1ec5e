"""Sampling: the distribution that was asked for, and dice that depend on nothing but seed, position and token."""

import math
import random

import torch
from torch import Tensor

from serving.engine.sampler import _ODD_A, CANDIDATES, _mix, _noise, sample
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


def exactly_kept(logits: Tensor, p: SamplingParams) -> Tensor:
    """Truncation by its definition, one row, by sorting everything. True where a token stays."""
    scaled = (logits / p.temperature).double()
    kept = torch.ones(len(logits), dtype=torch.bool)
    if p.top_k:
        kept &= scaled >= scaled.sort(descending=True).values[p.top_k - 1]
    probs = scaled.masked_fill(~kept, -math.inf).softmax(0)
    if p.top_p < 1:
        more_likely = torch.stack([probs[probs > q].sum() for q in probs])
        kept &= more_likely < p.top_p
    if p.min_p:
        kept &= scaled >= scaled.max() + math.log(p.min_p)
    return kept


def test_truncation_over_few_candidates_equals_its_definition_over_all() -> None:
    """Rows whose candidates suffice and rows that need more, with the dice held equal: a row's token is the one
    that its own dice pick among all the tokens that the definition leaves."""
    rng = random.Random(0)
    torch.manual_seed(0)
    for trial in range(60):
        spread = rng.choice([0.2, 1.0, 4.0])
        logits = torch.randn(4 * CANDIDATES) * spread
        params = SamplingParams(
            temperature=rng.choice([0.5, 1.0, 1.7]),
            top_k=rng.choice([0, 1, 20, CANDIDATES - 1, CANDIDATES, CANDIDATES + 1, 3 * CANDIDATES]),
            top_p=rng.choice([1.0, 0.3, 0.9, 0.999]),
            min_p=rng.choice([0.0, 0.05]),
            seed=trial,
        )
        kept = exactly_kept(logits, params)
        whole = SamplingParams(temperature=params.temperature, seed=trial)
        left = logits.masked_fill(~kept, -math.inf)
        [[expected], [drawn]] = [
            sample(row[None], [Sequence(Request("a", (1,), p))], frozenset())
            for row, p in ((left, whole), (logits, params))
        ]
        assert drawn.token_id == expected.token_id, params


def test_leaving_out_what_cannot_win_changes_no_draw() -> None:
    torch.manual_seed(3)
    for spread in (0.5, 3.0, 12.0):
        logits = torch.randn(200, 3000) * spread
        batch = sequences(200)
        dice = torch.tensor([_mix(torch.tensor(seed) * _ODD_A) for seed in range(200)])
        expected = (logits + _noise(dice, torch.arange(3000))).argmax(dim=-1).tolist()
        assert [sampled.token_id for sampled in sample(logits, batch, frozenset())] == expected


def test_equally_likely_tokens_stay_or_go_together() -> None:
    assert (frequencies([3.0, 1.0, 1.0, 0.0], top_k=2) > 0).tolist() == [True, True, True, False]
    assert (frequencies([1.0, 1.0, 1.0, 0.0], top_p=0.1) > 0).tolist() == [True, True, True, False]


def test_no_dice_choose_a_token_that_truncation_took() -> None:
    # These three counters hash to the greatest value there is, which once became infinite noise.
    for seed, position, token in ((113, 731, 27), (219, 170, 13), (262, 440, 112)):
        logits = torch.zeros(1, 200)
        logits[0, token] = -50.0
        for params in (SamplingParams(seed=seed), SamplingParams(seed=seed, top_k=50)):
            sequence = Sequence(Request("a", (1,), params))
            sequence.tokens += [0] * position
            assert sample(logits, [sequence], frozenset())[0].token_id != token


def test_counts_kept_along_the_way_equal_those_made_anew() -> None:
    """A sequence that is sampled at every step, and one that is seen first at its end, pay the same penalties."""
    rng = random.Random(1)
    params = SamplingParams(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.6, temperature=0.0)
    prompt = tuple(rng.randrange(50) for _ in range(30))
    running = Sequence(Request("a", prompt, params))
    torch.manual_seed(1)
    for _ in range(200):
        logits = torch.randn(1, 300)
        fresh = Sequence(Request("b", prompt, params))
        fresh.tokens = list(running.tokens)
        penalised = logits[0].clone()
        for token in set(running.tokens):
            value = penalised[token]
            penalised[token] = value / 1.3 if value > 0 else value * 1.3
        for token in set(running.tokens[30:]):
            penalised[token] -= 0.4 + 0.6 * running.tokens[30:].count(token)
        [kept], [anew] = sample(logits, [running], frozenset()), sample(logits, [fresh], frozenset())
        assert kept.token_id == anew.token_id == penalised.argmax().item()
        running.tokens.append(kept.token_id)


def random_sequences(rng: random.Random, count: int, vocab_size: int) -> list[Sequence]:
    sequences = []
    for number in range(count):
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
            top_k=rng.choice([0, 0, 5, 300]),
            top_p=rng.choice([1.0, 0.5, 0.95]),
            min_p=rng.choice([0.0, 0.0, 0.1]),
            seed=rng.randrange(10**6),
            repetition_penalty=rng.choice([1.0, 1.2]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            logit_bias=rng.choice([(), ((3, 4.0), (9, -4.0))]),
            min_tokens=rng.choice([0, 0, 40]),
            logprobs=rng.choice([None, 0, 3]),
        )
        sequence = Sequence(Request(f"{number}", tuple(rng.randrange(vocab_size) for _ in range(9)), params))
        sequence.tokens += [rng.randrange(vocab_size) for _ in range(rng.randrange(50))]
        sequences.append(sequence)
    return sequences


def test_a_row_alone_and_in_any_batch_gets_the_same_token_and_logprobs() -> None:
    rng = random.Random(2)
    torch.manual_seed(2)
    for dtype in (torch.float32, torch.bfloat16):  # bfloat16 is full of ties
        sequences = random_sequences(rng, 40, 2000)
        logits = (torch.randn(40, 2000) * 3).to(dtype)
        together = sample(logits, sequences, frozenset([2, 5]))
        order = list(range(40))
        rng.shuffle(order)
        shuffled = sample(logits[order], [sequences[row] for row in order], frozenset([2, 5]))
        for row, sequence in enumerate(sequences):
            [alone] = sample(logits[row : row + 1], [sequence], frozenset([2, 5]))
            assert together[row] == alone == shuffled[order.index(row)]


def test_a_minimum_length_gives_way_when_nothing_else_is_left() -> None:
    sequence = Sequence(Request("a", (0,), SamplingParams(min_tokens=5)))
    logits = torch.tensor([[-math.inf, -math.inf, 1.0]])
    assert sample(logits, [sequence], frozenset([2]))[0].token_id == 2
