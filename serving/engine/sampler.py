"""From logits to tokens, for a whole batch at once; every row pays only for what it asked.

Sampling is Gumbel-max with noise that is a function of (seed, output position, token) and nothing else: two
requests with the same seed roll the same dice at the same position, whatever else is in the batch, so lanes of
a comparison differ only where their models do. For the same reason truncation looks at a row's values alone:
tokens that are equally likely stay or go together."""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from serving.engine.grammar import allowed_tokens
from serving.engine.penalties import TokenCounts
from serving.engine.sequence import SamplingParams, Sequence, TokenLogprob

# The most likely tokens that truncation looks at first. It is almost always enough, and costs 0.35 ms a row of
# 151,936 where sorting the row costs 11 ms.
CANDIDATES = 256
# Not -inf: where a grammar leaves nothing but the end of turn, a minimum length must give way.
_BANNED = -1e9
_GREATEST_NOISE = 17.0  # a little more than -log(-log(1 - 2**-24))


@dataclass(frozen=True)
class Sampled:
    token_id: int
    logprob: TokenLogprob | None


def sample(logits: Tensor, sequences: Seq[Sequence], stop_token_ids: frozenset[int]) -> list[Sampled]:
    """One token a row. logits (rows, vocabulary), any float type; row i belongs to sequences[i]."""
    if not sequences:
        return []
    params = [sequence.request.params for sequence in sequences]
    plain = [row for row, p in enumerate(params) if p.greedy and not p.adjusted]
    if len(plain) == len(params):
        tokens = logits.float().argmax(dim=-1)  # float() first: argmax of bfloat16 takes thrice as long
    else:
        tokens = torch.empty(len(params), dtype=torch.long, device=logits.device)
        tokens[plain] = logits[plain].float().argmax(dim=-1)
        others = [row for row, p in enumerate(params) if p.adjusted or not p.greedy]
        tokens[others] = _choose(logits[others].float(), [sequences[row] for row in others], stop_token_ids)
    logprobs: list[TokenLogprob | None] = [None] * len(params)
    asked = [row for row, p in enumerate(params) if p.logprobs is not None]
    if asked:
        counts = [params[row].logprobs or 0 for row in asked]
        for row, logprob in zip(asked, token_logprobs(logits[asked], tokens[asked], counts), strict=True):
            logprobs[row] = logprob
    return [Sampled(token, logprob) for token, logprob in zip(tokens.tolist(), logprobs, strict=True)]


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: Seq[int]) -> list[TokenLogprob]:
    """Log-probabilities under the model itself, before penalties and temperature: of tokens (rows), and of each
    row's `num_top` most likely. logits (rows, vocabulary), any float type."""
    found = []
    for start in range(0, len(num_top), _LOGPROB_ROWS):
        part = slice(start, start + _LOGPROB_ROWS)
        logprobs = logits[part].float().log_softmax(dim=-1)
        chosen = logprobs.gather(1, tokens[part, None])[:, 0].tolist()
        values, ids = logprobs.topk(max(num_top[part]), dim=-1)
        top = [list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
        found += [
            TokenLogprob(token, logprob, tuple(likely[:count]))
            for token, logprob, likely, count in zip(tokens[part].tolist(), chosen, top, num_top[part], strict=True)
        ]
    return found


_LOGPROB_ROWS = 64  # at once; a prompt of thousands has as many rows, each as wide as the vocabulary


def _choose(logits: Tensor, sequences: Seq[Sequence], stop_token_ids: frozenset[int]) -> Tensor:
    """Tokens (rows) for rows that are not plainly greedy. Overwrites logits (rows, vocabulary) in float32."""
    _adjust(logits, sequences, stop_token_ids)
    drawn = [row for row, sequence in enumerate(sequences) if not sequence.request.params.greedy]
    if len(drawn) == len(sequences):
        return _draw(logits, sequences)
    tokens = logits.argmax(dim=-1)
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [sequences[row] for row in drawn])
    return tokens


def _adjust(logits: Tensor, sequences: Seq[Sequence], stop_token_ids: frozenset[int]) -> None:
    """Penalties, biases, the minimum length and grammars, in place, on the rows that ask for them."""
    rows = [(row, sequence, sequence.request.params) for row, sequence in enumerate(sequences)]
    rows = [entry for entry in rows if entry[2].adjusted]
    penalised = [entry for entry in rows if entry[2].penalised]
    if penalised:
        _penalise(logits, penalised)
    biases = [(row, token, bias) for row, _, p in rows for token, bias in p.logit_bias]
    if biases:
        at, tokens, values = (torch.tensor(column, device=logits.device) for column in zip(*biases, strict=True))
        logits.index_put_((at, tokens), values.float(), accumulate=True)
    short = [(row, p) for row, sequence, p in rows if sequence.num_output < p.min_tokens]
    banned = [(row, token) for row, p in short for token in stop_token_ids | p.stop_token_ids]
    if banned:
        at, tokens = (torch.tensor(column, device=logits.device) for column in zip(*banned, strict=True))
        logits[at, tokens] = _BANNED
    bound = [(row, sequence.matcher) for row, sequence, _ in rows if sequence.matcher]
    if bound:
        allowed = allowed_tokens([matcher for _, matcher in bound], logits.shape[1], logits.device)
        at = torch.tensor([row for row, _ in bound], device=logits.device)
        logits[at] = logits[at].masked_fill_(~allowed, -math.inf)


def _penalise(logits: Tensor, rows: list[tuple[int, Sequence, SamplingParams]]) -> None:
    """Repetition, then presence and frequency penalties, of all rows together: one entry a distinct token."""
    counted = [_counts(sequence) for _, sequence, _ in rows]
    device = logits.device
    tokens = torch.cat([counts.ids for counts in counted]).to(device)
    said = torch.cat([counts.counts for counts in counted]).to(device)
    settings = [(row, p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for row, _, p in rows]
    lengths = torch.tensor([len(counts.ids) for counts in counted])
    spread = torch.tensor(settings, dtype=torch.float64).repeat_interleave(lengths, dim=0).to(device)
    at = spread[:, 0].long()
    repetition, presence, frequency = spread[:, 1:].float().unbind(dim=1)
    values = logits[at, tokens]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[at, tokens] = values - presence * (said > 0) - frequency * said


def _counts(sequence: Sequence) -> TokenCounts:
    if sequence.counts is None:
        # Only the repetition penalty asks about the prompt.
        repeats = sequence.request.params.repetition_penalty != 1
        sequence.counts = TokenCounts(sequence.request.prompt_ids if repeats else (), sequence.num_prompt)
    sequence.counts.read(sequence.tokens)
    return sequence.counts


def _draw(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Tokens (rows) by temperature, truncation and dice."""
    device = logits.device
    params = [sequence.request.params for sequence in sequences]
    scaled = logits / torch.tensor([p.temperature for p in params], device=device)[:, None]
    seeds = torch.tensor([_signed(p.seed) for p in params], device=device)
    positions = torch.tensor([sequence.num_output for sequence in sequences], device=device)
    dice = _mix(seeds * _ODD_A + positions)
    cut = [row for row, p in enumerate(params) if p.truncated]
    if len(cut) == len(params):
        return _draw_truncated(scaled, dice, params)
    tokens = torch.empty(len(params), dtype=torch.long, device=device)
    whole = [row for row, p in enumerate(params) if not p.truncated]
    tokens[whole] = _draw_whole(scaled[whole], dice[whole])
    if cut:
        tokens[cut] = _draw_truncated(scaled[cut], dice[cut], [params[row] for row in cut])
    return tokens


def _draw_whole(scaled: Tensor, dice: Tensor) -> Tensor:
    """Tokens (rows) from the whole vocabulary."""
    if scaled.device.type != "cpu":
        return (scaled + _noise(dice, torch.arange(scaled.shape[1], device=scaled.device))).argmax(dim=-1)
    # Noise takes a CPU 1.4 ms a row of 151,936. Only tokens that could still beat the likeliest one get theirs, a row
    # at a time, so that what it takes in between stays in the cache.
    tokens = []
    for row, roll in zip(scaled, dice[:, None], strict=True):
        likeliest = row.argmax()
        beaten = row < row[likeliest] + _noise(roll, likeliest)[0, 0] - _GREATEST_NOISE
        ids = (~beaten).nonzero()[:, 0]
        tokens.append(ids[(row[ids] + _noise(roll, ids)[0]).argmax()])
    return torch.stack(tokens)


def _draw_truncated(scaled: Tensor, dice: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """Tokens (rows) of those that truncation leaves. Looks at the most likely ones first and at more only for rows
    that are not settled by them; a row's token does not depend on how many it took."""
    vocab_size = scaled.shape[1]
    limits = _limits(scaled, params)
    tokens = torch.empty(len(params), dtype=torch.long, device=scaled.device)
    rows = torch.arange(len(params), device=scaled.device)
    width = CANDIDATES
    while True:
        ordered, ids = scaled[rows].topk(min(width, vocab_size), dim=-1)
        floor, settled = _floor(ordered, _Limits(*(column[rows] for column in limits)))
        noisy = ordered.masked_fill(ordered < floor[:, None], -math.inf) + _noise(dice[rows], ids)
        tokens[rows] = ids.gather(1, noisy.argmax(dim=-1, keepdim=True))[:, 0]
        if width >= vocab_size or settled.all():
            return tokens
        rows = rows[~settled]
        width *= 16


class _Limits(NamedTuple):
    """Truncation of each row, (rows) all of them."""

    top_k: Tensor  # 0: all
    top_p: Tensor  # float64
    min_p: Tensor  # its logarithm
    total: Tensor  # float64; sum of exp(value - greatest value) over the vocabulary, where top_p needs it, else 0


def _limits(scaled: Tensor, params: Seq[SamplingParams]) -> _Limits:
    device = scaled.device
    total = torch.zeros(len(params), dtype=torch.float64, device=device)
    nucleus = [row for row, p in enumerate(params) if p.top_p < 1 and not p.top_k]
    if nucleus:
        values = scaled[nucleus]
        # In float64, so that how the sum is split up, which varies with the batch, does not matter.
        total[nucleus] = (values - values.amax(dim=-1, keepdim=True)).exp_().sum(dim=-1, dtype=torch.float64)
    return _Limits(
        torch.tensor([p.top_k for p in params], device=device),
        torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
        torch.tensor([math.log(p.min_p) if p.min_p else -math.inf for p in params], device=device),
        total,
    )


def _floor(ordered: Tensor, limits: _Limits) -> tuple[Tensor, Tensor]:
    """The least value that stays, and whether it is certain from these candidates alone, both (rows).

    top_k keeps the k-th value and all above it; of what is left, top_p keeps a token while the more likely ones
    have not reached it; min_p is relative to the most likely token. ordered (rows, candidates), descending."""
    greatest, least = ordered[:, 0], ordered[:, -1]
    kth = ordered.gather(1, limits.top_k.clamp(1, ordered.shape[1])[:, None] - 1)[:, 0]
    by_count = torch.where(limits.top_k > 0, kth, -math.inf)
    weights = (ordered - greatest[:, None]).double().exp().masked_fill(ordered < by_count[:, None], 0)
    total = torch.where(limits.top_k > 0, weights.sum(dim=-1), limits.total)
    before = weights.cumsum(dim=-1) - weights
    num_kept = (before < (limits.top_p * total)[:, None]).sum(dim=-1, keepdim=True).clamp(min=1)
    by_mass = torch.where(limits.top_p < 1, ordered.gather(1, num_kept - 1)[:, 0], -math.inf)
    floor = torch.maximum(torch.maximum(by_count, by_mass), greatest + limits.min_p)
    # What lies beyond the candidates is at most `least`. With top_k the mass, too, must lie above it.
    certain = torch.where(limits.top_k > 0, by_count, floor) > least
    return floor, certain | (least == -math.inf)


def _noise(dice: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise (rows, tokens); dice (rows), token_ids (tokens) or (rows, tokens), or one token."""
    bits = (_mix(dice[:, None] + token_ids * _ODD_B) >> 40) & 0xFFFFFF
    # The greatest of 2**24 values rounds to 1, whose noise would be infinite: one step in a hundred would then say
    # any word of a vocabulary of 150,000.
    uniform = ((bits.float() + 0.5) * 2.0**-24).clamp_(max=1 - 2.0**-24)
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
