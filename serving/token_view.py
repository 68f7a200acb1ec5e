"""Token by token, what an adapter changed: how likely each token of an answer was to the lane that said it, how likely
it would have been to the base, and what the base would rather have said there.

Both are scored by the engine in one batch, as it would score any prompt. Log-probabilities are natural and those of the
model itself, before temperature and truncation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapters.errors import Invalid, Unavailable
from serving.answer import Answer
from serving.chat import ChatService, Turn
from serving.engine.detokenizer import Detokenizer
from serving.engine.sequence import FinishReason, SamplingParams, TokenLogprob

ALTERNATIVES = 5
_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class TokenScore:
    """A token, or the several that make one character; log-probabilities are then added up, and the alternatives are
    those to the first of them. Alternatives have probabilities, the likeliest first."""

    text: str
    logprob: float  # under the lane
    base_logprob: float
    alternatives: tuple[tuple[str, float], ...]  # what the lane could have said
    base_alternatives: tuple[tuple[str, float], ...]  # what the base would have said

    @property
    def difference(self) -> float:
        """Probability under the lane less that under the base: from -1 to 1."""
        return math.exp(self.logprob) - math.exp(self.base_logprob)


@dataclass(frozen=True)
class ScoredLane:
    """An answer to be looked at: the model id and strength that gave it, the prompt's ids and its own."""

    model: str
    scale: float
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]


async def token_scores(
    chat: ChatService, lane: ScoredLane, base_prompt_ids: Sequence[int], *, key: str = ""
) -> list[TokenScore]:
    """`lane`'s answer, scored by the lane after its prompt and by the base after `base_prompt_ids`: the same prompt
    shows what the weights changed, the base's own what prompt and weights changed together.

    Raises Invalid for an answer without tokens or too long to be scored, NotFound for a version that is gone, and as
    `ChatService.ask_together`."""
    if not lane.answer_ids:
        raise Invalid("the answer has no tokens yet", param="answer")
    prompts = ((lane.model, lane.scale, lane.prompt_ids), (chat.base.name, 1.0, base_prompt_ids))
    turns = [
        Turn(
            model=model,
            scale=scale,
            prompt=(*prompt, *lane.answer_ids),
            params=SamplingParams(prompt_logprobs=ALTERNATIVES),
            max_tokens=0,
            key=key,
            choice=number,  # one request to the key's limits and usage
        )
        for number, (model, scale, prompt) in enumerate(prompts)
    ]
    count = len(lane.answer_ids)
    lane_scores, base_scores = [await _scores(answer, count) for answer in await chat.ask_together(turns)]
    return _joined(chat.base.tokenizer, lane.answer_ids, lane_scores, base_scores)


async def _scores(answer: Answer, count: int) -> list[TokenLogprob]:
    """Of the prompt's last `count` tokens."""
    scores: list[TokenLogprob] = []
    async with answer:
        async for delta in answer:
            scores += [score for score in delta.prompt_logprobs if score is not None]
            if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                raise Unavailable(f"{answer.model} could not score the answer: {delta.error or 'the server stops'}")
    return scores[-count:]


def _joined(
    tokenizer: Any, ids: Sequence[int], lane: Sequence[TokenLogprob], base: Sequence[TokenLogprob]
) -> list[TokenScore]:
    """One score for each piece of whole characters."""
    detokenizer, found, first = Detokenizer(tokenizer, (), show_special=True), [], 0
    for at, token in enumerate(ids):
        text = detokenizer.push(token)
        if at == len(ids) - 1:
            text += detokenizer.finish()
        if not text:
            continue
        together = slice(first, at + 1)
        found.append(
            TokenScore(
                text,
                sum(score.logprob for score in lane[together]),
                sum(score.logprob for score in base[together]),
                _spelled(tokenizer, lane[first]),
                _spelled(tokenizer, base[first]),
            )
        )
        first = at + 1
    return found


def _spelled(tokenizer: Any, score: TokenLogprob) -> tuple[tuple[str, float], ...]:
    """Alternatives as text. Part of a character is spelled as in the vocabulary."""
    return tuple((_text(tokenizer, token), math.exp(logprob)) for token, logprob in score.top)


def _text(tokenizer: Any, token: int) -> str:
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if _UNFINISHED in text else text
