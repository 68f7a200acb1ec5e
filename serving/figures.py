"""What callers notice, counted: time to first token and between tokens, how answers ended, tokens by adapter.

The engine's thread writes, once a step; anyone reads. Publishing is `metrics`' business."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from serving.engine.histogram import Histogram
from serving.engine.sequence import FinishReason, Request, TokenDelta

MAX_NAMES = 100  # adapters with figures of their own; those first asked for after them share one line
OTHER = "other"

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BETWEEN_TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_ANSWER_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)


@dataclass(eq=False)
class TokensServed:
    """Of one adapter, or of the base. A prompt counts when its answer begins, tokens of the cache included."""

    prompt: int = 0
    generated: int = 0


@dataclass(eq=False)
class Progress:
    """How far one answer is. Times are time.perf_counter()'s."""

    request: Request
    served: TokensServed
    begun: bool = False
    tokens: int = 0  # generated, read or not
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish_reason: FinishReason | None = None

    @property
    def ttft_s(self) -> float | None:
        """From the request's arrival to its first token."""
        return None if self.first_token_s is None else self.first_token_s - self.request.arrived_s


class AnswerFigures:
    def __init__(self) -> None:
        self.first_token_s = Histogram(_FIRST_TOKEN_S)
        self.between_tokens_s = Histogram(_BETWEEN_TOKENS_S)
        self.answer_s = Histogram(_ANSWER_S)
        self.ended = Counter[FinishReason]()
        self.tokens: dict[str, TokensServed] = {}  # by adapter's name

    def follow(self, request: Request) -> Progress:
        name = request.adapter if request.adapter in self.tokens or len(self.tokens) < MAX_NAMES else OTHER
        return Progress(request, self.tokens.setdefault(name, TokensServed()))

    def note_step(self, arrived: Iterable[tuple[Progress, TokenDelta]]) -> None:
        """One step's deltas."""
        now = time.perf_counter()
        waited: dict[float, int] = {}  # most waited since the same step: a look-up for each, an observation for all
        for progress, delta in arrived:
            if not progress.begun:
                progress.begun = True
                progress.served.prompt += len(progress.request.prompt_ids)
                progress.cached_tokens = delta.cached_tokens
            if delta.token_ids:
                count = len(delta.token_ids)
                progress.tokens += count
                progress.served.generated += count
                last, progress.last_token_s = progress.last_token_s, now
                if last is None:
                    progress.first_token_s = now
                    self.first_token_s.observe(now - progress.request.arrived_s)
                else:
                    waited[last] = waited.get(last, 0) + 1
            if delta.finish_reason:
                self.note_end(progress, delta.finish_reason)
        for last, times in waited.items():
            self.between_tokens_s.observe(now - last, times)

    def note_end(self, progress: Progress, reason: FinishReason) -> None:
        progress.finish_reason = reason
        self.ended[reason] += 1
        self.answer_s.observe(time.perf_counter() - progress.request.arrived_s)
