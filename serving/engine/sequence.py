"""The words the engine's parts use with each other: what was asked, how far it is, what came out."""

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Literal

from torch import Tensor

from serving.engine.grammar import Grammar, Matcher
from serving.engine.penalties import TokenCounts

# Adapter digests and their strengths, added up; () is the base alone. Everything that decides the keys and
# values of a token besides the tokens before it.
AdapterMix = tuple[tuple[str, float], ...]


LOWEST_TEMPERATURE = 1e-5  # below it logits divided by it leave float32's range; it is greedy by then


class FinishReason(StrEnum):
    STOP = "stop"
    TOOL_CALLS = "tool_calls"  # as STOP, where what the model said are calls; the engine itself cannot tell
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True)
class SamplingParams:
    """Defaults are the model's plain distribution. temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    max_tokens: int = 512
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # alternatives to report; 0 reports the chosen token alone
    prompt_logprobs: int | None = None  # the same for the prompt's tokens; max_tokens 0 then scores it and no more
    # Every token of the prompt is computed, whatever the prefix cache has of it: what was asked before then changes no
    # rounding, and an idle engine gives the same text again.
    whole_prompt: bool = False
    # The mean of the prompt's last hidden states, after the final norm; needs max_tokens 0, as nothing is said.
    embed: bool = False
    grammar: Grammar | None = None

    @cached_property
    def greedy(self) -> bool:
        return self.temperature < LOWEST_TEMPERATURE

    @cached_property
    def penalised(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    @cached_property
    def adjusted(self) -> bool:
        """Whether anything stands between the model's logits and the choice besides temperature and truncation."""
        return bool(self.penalised or self.logit_bias or self.min_tokens or self.grammar)

    @cached_property
    def truncated(self) -> bool:
        return bool(self.top_k or self.top_p < 1 or self.min_p)


@dataclass(frozen=True)
class Request:
    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    mix: AdapterMix = ()
    key: str = ""  # who asks: requests that wait are served fairly between keys
    priority: int = 0  # lower runs earlier
    adapter: str = ""  # the name of what answers, for figures
    arrived_s: float = field(default_factory=time.perf_counter, compare=False)
    hidden_tokens: frozenset[int] | None = None  # special tokens left out of the answer's text; None: all there are

    @property
    def adapters(self) -> frozenset[str]:
        return frozenset(digest for digest, _ in self.mix)


@dataclass(frozen=True)
class TokenLogprob:
    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


ErrorCode = Literal["adapter_unloaded", "shutting_down"]


@dataclass(frozen=True)
class TokenDelta:
    """What one step added to one request. `text` holds whole characters only and may be empty; the delta with a
    `finish_reason` is the last. `error` explains FinishReason.ERROR; with an `error_code` somebody has ended the
    request, without one the server has failed on it."""

    request_id: str
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # in the first delta, if asked for; the first token has none
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    error: str | None = None
    error_code: ErrorCode | None = None
    embedding: Tensor | None = None  # (hidden,) float32 on the host, of length 1; in the only delta, if asked for


def merge(deltas: Seq[TokenDelta]) -> TokenDelta:
    """Consecutive deltas of one request as one."""
    if len(deltas) == 1:
        return deltas[0]
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        prompt_logprobs=tuple(logprob for delta in deltas for logprob in delta.prompt_logprobs),
        cached_tokens=max(delta.cached_tokens for delta in deltas),
    )


@dataclass(eq=False)
class Sequence:
    """A request on its way. `tokens` is prompt and output; the first `num_computed` have keys and values."""

    request: Request
    tokens: list[int] = field(init=False)
    num_computed: int = 0
    num_cached: int = 0  # prompt tokens found in the prefix cache at first admission
    blocks: list[int] = field(default_factory=list)
    matcher: Matcher | None = None  # where the answer is in its grammar
    counts: TokenCounts | None = None  # kept by the sampler, for penalties
    # As far as they are known; nothing comes before the first token to predict it.
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    hidden_sum: Tensor | None = None  # (hidden,) float32, over the first `num_pooled` tokens, for an embedding
    num_pooled: int = 0
    num_shared: int = 0  # blocks, from the first on, that the prefix cache knows
    last_shared: int = -1  # its name for the last of them
    started: bool = False  # has run, though it may be waiting again

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def remaining(self) -> int:
        """Tokens still without keys and values. 1 while decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of prompt tokens are still to come."""
        return self.request.params.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt

    @property
    def pools_prompt(self) -> bool:
        """Whether hidden states of prompt tokens are still to be added up."""
        return self.request.params.embed and self.num_pooled < self.num_prompt

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether none of the prompt's tokens may be skipped: more than their keys and values is wanted, or the same
        rounding every time."""
        return self.scores_prompt or self.pools_prompt or self.request.params.whole_prompt


@dataclass(frozen=True)
class Chunk:
    """The part of a sequence that one step computes: `count` tokens from `start`."""

    sequence: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def samples(self) -> bool:
        """Whether this step yields the sequence's next token."""
        return self.end == len(self.sequence.tokens)

    @property
    def scored(self) -> range:
        """Positions whose logits say how likely a prompt token was that has no log-probability yet: the next one."""
        if not self.sequence.scores_prompt:
            return range(0)
        return range(len(self.sequence.prompt_logprobs) - 1, min(self.end, self.sequence.num_prompt - 1))

    @property
    def pooled(self) -> range:
        """Positions whose hidden states go into the sequence's embedding and have not yet."""
        if not self.sequence.pools_prompt:
            return range(0)
        return range(self.sequence.num_pooled, min(self.end, self.sequence.num_prompt))


Batch = list[Chunk]
