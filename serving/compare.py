"""One question, several lanes: each lane a model, a strength and a system prompt, all in one batch with the
same dice, so that what differs between the answers is the model and nothing else."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from adapters.errors import Invalid
from adapters.renderer import Message
from serving.answer import Answer, AnswerDelta
from serving.chat import ChatService, Turn
from serving.engine.sequence import FinishReason, SamplingParams

MAX_LANES = 6


@dataclass(frozen=True)
class Lane:
    """`system` None is the model's own system prompt, "" is none at all."""

    model: str
    scale: float = 1.0
    system: str | None = None


@dataclass
class LaneProgress:
    """How far a lane is. Times in seconds since the comparison began."""

    answer: Answer
    text: str = ""
    reasoning: str = ""
    token_ids: list[int] = field(default_factory=list)
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed: tokens after the first over the time since the first. None before the second."""
        if self.first_token_s is None or self.last_token_s is None or self.tokens < 2:
            return None
        return (self.tokens - 1) / max(self.last_token_s - self.first_token_s, 1e-9)

    def take(self, delta: AnswerDelta) -> None:
        now = time.perf_counter() - self.started
        if delta.token_ids:
            self.first_token_s = self.first_token_s if self.first_token_s is not None else now
            self.last_token_s = now
            self.token_ids += delta.token_ids
        self.text += delta.text
        self.reasoning += delta.reasoning
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.error = delta.error or self.error


class Comparison:
    """Running lanes. Iterate inside `async with` for (lane number, delta) as they come, until all have ended."""

    def __init__(self, answers: list[Answer], seed: int):
        self.id = f"cmp-{uuid.uuid4().hex}"
        self.seed = seed
        self.lanes = [LaneProgress(answer) for answer in answers]
        # Of bounded size: what nobody has read yet waits in the answers, which make one delta of it.
        self._events: asyncio.Queue[tuple[int, AnswerDelta]] = asyncio.Queue(len(answers))
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._readers = [asyncio.create_task(self._read(number)) for number in range(len(self.lanes))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in self._readers:
            reader.cancel()
        self.stop()

    def __aiter__(self) -> AsyncIterator[tuple[int, AnswerDelta]]:
        return self._until_all_end()

    def stop(self) -> None:
        """End every lane where it is."""
        for lane in self.lanes:
            lane.answer.stop()

    async def _until_all_end(self) -> AsyncIterator[tuple[int, AnswerDelta]]:
        open_lanes = len(self.lanes)
        while open_lanes:
            number, delta = await self._events.get()
            self.lanes[number].take(delta)
            open_lanes -= delta.finish_reason is not None
            yield number, delta

    async def _read(self, number: int) -> None:
        async with self.lanes[number].answer as answer:
            async for delta in answer:
                await self._events.put((number, delta))


async def compare(
    chat: ChatService,
    lanes: Sequence[Lane],
    conversations: Sequence[Sequence[Message]],
    params: SamplingParams,
    *,
    max_tokens: int | None = None,
    key: str = "",
    priority: int = 0,
    thinking: bool | None = None,
    repeatable: bool = False,
) -> Comparison:
    """Start one answer a lane, all in the same step. `conversations[i]` is what lane i has seen so far, the new
    question last; in a first turn they are all the same. Every lane uses `params.seed`. A `repeatable`
    comparison computes its prompts whole, so that an idle server gives the same texts again."""
    if not 1 <= len(lanes) <= MAX_LANES:
        raise Invalid(f"a comparison takes 1 to {MAX_LANES} lanes, not {len(lanes)}", param="lanes")
    turns = [
        Turn(
            model=lane.model,
            messages=tuple(with_system(messages, lane.system)),
            params=replace(params, whole_prompt=repeatable),
            max_tokens=max_tokens,
            scale=lane.scale,
            key=key,
            priority=priority,
            thinking=thinking,
            own_system=lane.system != "",
        )
        for lane, messages in zip(lanes, conversations, strict=True)
    ]
    return Comparison(await chat.ask_together(turns), params.seed)


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The messages under this system prompt: None leaves theirs, "" takes it away."""
    if system is None:
        return list(messages)
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": system}, *rest] if system else rest
