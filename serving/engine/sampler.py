"""From logits to tokens, for a whole batch at once.

Sampling is Gumbel-max with noise that is a function of (seed, output position, token) and nothing else: two
requests with the same seed roll the same dice at the same position, whatever else is in the batch, so lanes of
a comparison differ only where their models do."""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.engine.sequence import SamplingParams, Sequence, TokenLogprob


@dataclass(frozen=True)
class Sampled:
    token_id: int
    logprob: TokenLogprob | None


def sample(logits: Tensor, sequences: Seq[Sequence], stop_token_ids: frozenset[int]) -> list[Sampled]:
    """One token a row. logits (rows, vocabulary), any float type; row i belongs to sequences[i]."""
    params = [sequence.request.params for sequence in sequences]
    if all(p.plain_greedy for p in params):
        return [Sampled(token, None) for token in logits.argmax(dim=-1).tolist()]
    logits = logits.float()
    adjusted = _adjust(logits.clone(), sequences, params, stop_token_ids)
    temperatures = torch.tensor([p.temperature for p in params], device=logits.device)
    greedy = temperatures == 0
    scaled = adjusted / temperatures.masked_fill(greedy, 1.0)[:, None]
    scaled = _truncate(scaled, params)
    tokens = torch.where(greedy, adjusted.argmax(dim=-1), (scaled + _noise(scaled, sequences)).argmax(dim=-1))
    logprobs = _logprobs(logits, tokens, params)
    return [Sampled(token, logprob) for token, logprob in zip(tokens.tolist(), logprobs, strict=True)]


def _adjust(
    logits: Tensor, sequences: Seq[Sequence], params: list[SamplingParams], stop_token_ids: frozenset[int]
) -> Tensor:
    """Penalties, biases and the minimum length, in place, on the rows that ask for them."""
    for row, (sequence, p) in enumerate(zip(sequences, params, strict=True)):
        if p.repetition_penalty != 1:
            seen = torch.tensor(sequence.tokens, device=logits.device).unique()
            values = logits[row, seen]
            logits[row, seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        if p.presence_penalty or p.frequency_penalty:
            output = torch.tensor(sequence.tokens[sequence.num_prompt :], dtype=torch.long, device=logits.device)
            tokens, counts = output.unique(return_counts=True)
            logits[row, tokens] -= p.presence_penalty + p.frequency_penalty * counts
        for token, bias in p.logit_bias:
            logits[row, token] += bias
        if sequence.num_output < p.min_tokens:
            logits[row, list(stop_token_ids | p.stop_token_ids)] = -math.inf
    return logits


def _truncate(logits: Tensor, params: list[SamplingParams]) -> Tensor:
    """top_k, then top_p over what is left, then min_p relative to the most likely token; -inf elsewhere."""
    if any(p.top_k or p.top_p < 1 for p in params):
        device = logits.device
        ordered, order = logits.sort(dim=-1, descending=True)
        rank = torch.arange(logits.shape[1], device=device)
        top_k = torch.tensor([p.top_k or logits.shape[1] for p in params], device=device)
        ordered = ordered.masked_fill(rank >= top_k[:, None], -math.inf)
        probs = ordered.softmax(dim=-1)
        top_p = torch.tensor([p.top_p for p in params], device=device)
        # A token stays while the ones before it have not reached top_p; the first always stays.
        beyond = (probs.cumsum(dim=-1) - probs) >= top_p[:, None]
        beyond[:, 0] = False
        ordered = ordered.masked_fill(beyond & (top_p < 1)[:, None], -math.inf)
        logits = torch.empty_like(logits).scatter_(1, order, ordered)
    if any(p.min_p for p in params):
        floor = torch.tensor([math.log(p.min_p) if p.min_p else -math.inf for p in params], device=logits.device)
        logits = logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + floor[:, None], -math.inf)
    return logits


def _noise(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Standard Gumbel noise (rows, vocabulary) from the counters."""
    seeds = torch.tensor([_signed(s.request.params.seed) for s in sequences], device=logits.device)
    positions = torch.tensor([s.num_output for s in sequences], device=logits.device)
    counters = _mix(seeds * _ODD_A + positions)[:, None] + torch.arange(logits.shape[1], device=logits.device) * _ODD_B
    bits = (_mix(counters) >> 40) & 0xFFFFFF
    uniform = (bits.float() + 0.5) * 2.0**-24
    return -torch.log(-torch.log(uniform))


def _signed(value: int) -> int:
    """The 64 low bits of any integer, as torch's signed type holds them."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_ODD_A = _signed(0x9E3779B97F4A7C15)
_ODD_B = _signed(0xD1B54A32D192ED03)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele, Lea, Flood 2014) on int64; `>>` is arithmetic in torch, hence the masks."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _logprobs(logits: Tensor, tokens: Tensor, params: list[SamplingParams]) -> list[TokenLogprob | None]:
    """Log-probabilities under the model itself, before penalties and temperature."""
    if all(p.logprobs is None for p in params):
        return [None] * len(params)
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    most = max(p.logprobs or 0 for p in params)
    values, ids = logprobs.topk(most, dim=-1) if most else (logprobs[:, :0], tokens[:, None][:, :0])
    top = [list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return [
        None if p.logprobs is None else TokenLogprob(token, logprob, tuple(top[row][: p.logprobs]))
        for row, (p, token, logprob) in enumerate(zip(params, tokens.tolist(), chosen, strict=True))
    ]
