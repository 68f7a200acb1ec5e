"""What the endpoints that complete have in common: the choices of one request, collected or passed on as chunks."""

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from serving.answer import Answer, AnswerDelta
from serving.api.errors import ended_body, ended_reply, failure_event
from serving.api.schemas import StreamOptions
from serving.api.streaming import event_stream, unless_disconnected
from serving.engine.sequence import ErrorCode, FinishReason, TokenLogprob
from serving.parsing.pieces import CallPiece, joined


@dataclass
class Choice:
    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()  # one piece a call
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprob | None] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def take(self, delta: AnswerDelta) -> None:
        self.text += delta.text
        self.reasoning += delta.reasoning
        if delta.calls:
            self.calls = joined((*self.calls, *delta.calls))
        self.tokens += len(delta.token_ids)
        self.logprobs += delta.logprobs
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = delta.finish_reason
        self.error, self.error_code = delta.error, delta.error_code
        self.cached_tokens = delta.cached_tokens or self.cached_tokens
        self.reasoning_tokens = delta.reasoning_tokens


class Reply(ABC):
    """All choices of one request. `answers` holds the choices of its first prompt, then those of the next; `n` a
    prompt."""

    id_prefix: str
    object: str
    chunk_object: str

    def __init__(self, answers: list[Answer], tokenizer: Any, n: int):
        self.answers = answers
        self.tokenizer = tokenizer
        self.n = n
        self.choices = [Choice() for _ in answers]
        self.id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    @abstractmethod
    def whole_choice(self, index: int) -> dict[str, Any]:
        """The finished choice, less its index and finish reason."""

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """What a choice's stream begins with, before any token; None for nothing."""

    @abstractmethod
    def part(self, index: int, delta: AnswerDelta) -> dict[str, Any] | None:
        """What one delta adds to a choice's stream; None for nothing worth sending."""

    async def respond(self, request: Request, *, stream: bool, options: StreamOptions | None) -> Response:
        headers = answer_headers(*self.answers)
        if stream:
            chunks = self._chunks(with_usage=options is not None and options.include_usage)
            return event_stream(chunks, headers, on_close=self._stop, on_failure=failure_event)
        try:
            await unless_disconnected(request, self._read_all())
        finally:
            self._stop()
        for choice in self.choices:
            if choice.error:
                return ended_reply(request, choice.error, choice.error_code)
        choices = [
            {"index": index} | self.whole_choice(index) | {"finish_reason": choice.finish_reason}
            for index, choice in enumerate(self.choices)
        ]
        return JSONResponse(self._head(self.object) | {"choices": choices, "usage": self._usage()}, headers=headers)

    def _stop(self) -> None:
        """End what still runs: the client may have gone before anybody began to read."""
        for answer in self.answers:
            answer.stop()

    async def _read_all(self) -> None:
        async for _ in self._deltas():
            pass

    async def _chunks(self, *, with_usage: bool) -> AsyncGenerator[dict[str, Any], None]:
        head = self._head(self.chunk_object)
        extra = {"usage": None} if with_usage else {}

        def chunk(index: int, part: dict[str, Any], reason: FinishReason | None = None) -> dict[str, Any]:
            return head | {"choices": [{"index": index} | part | {"finish_reason": reason}]} | extra

        for index in range(len(self.answers)):
            if opening := self.opening(index):
                yield chunk(index, opening)
        async for index, delta in self._deltas():
            if delta.error:
                yield ended_body(delta.error, delta.error_code)
                return
            if part := self.part(index, delta):
                yield chunk(index, part, delta.finish_reason)
        if with_usage:
            yield head | {"choices": [], "usage": self._usage()}

    async def _deltas(self) -> AsyncGenerator[tuple[int, AnswerDelta], None]:
        """(choice, delta) from all answers as they come; leaving early stops them all."""
        if len(self.answers) == 1:  # nothing to merge: a task and a queue fewer for every token
            async with self.answers[0] as answer:
                async for delta in answer:
                    self.choices[0].take(delta)
                    yield 0, delta
            return
        async with AsyncExitStack() as stack:
            # Of bounded size: what a slow client has not read waits in the answers, which make one delta of it.
            merged: asyncio.Queue[tuple[int, AnswerDelta]] = asyncio.Queue(len(self.answers))
            for index, answer in enumerate(self.answers):
                await stack.enter_async_context(answer)
                reader = asyncio.create_task(_pass_on(answer, lambda delta, i=index: merged.put((i, delta))))  # type: ignore[misc]
                stack.callback(reader.cancel)
            open_choices = len(self.answers)
            while open_choices:
                index, delta = await merged.get()
                self.choices[index].take(delta)
                open_choices -= delta.finish_reason is not None
                yield index, delta

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.answers[0].model}

    def _usage(self) -> dict[str, Any]:
        """Prompt tokens are counted once for all choices; a generated end-of-turn token counts."""
        prompt = sum(answer.prompt_tokens for answer in self.answers[:: self.n])
        completion = sum(choice.tokens for choice in self.choices)
        cached = sum(choice.cached_tokens for choice in self.choices[:: self.n])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": sum(choice.reasoning_tokens for choice in self.choices)},
        }


def logprob_entry(tokenizer: Any, entry: TokenLogprob) -> dict[str, Any]:
    """One token of an answer as chat completions and responses report it, with the most likely ones beside it."""

    def spelled(token_id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token_id])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

    return spelled(entry.token_id, entry.logprob) | {"top_logprobs": [spelled(i, p) for i, p in entry.top]}


def answer_headers(answer: Answer, *others: Answer) -> dict[str, str]:
    """Who answers, and where it is not one adapter at full strength how strong each is; and how long the answers to one
    request may be, where that is less than it said."""
    shortened = [one.max_tokens for one in (answer, *others) if one.shortened]
    named = {
        "x-bianlian-adapter": answer.adapter,
        "x-bianlian-digest": answer.digest,
        "x-bianlian-lora": answer.strengths,
        "x-bianlian-max-tokens": str(min(shortened)) if shortened else None,
    }
    return {name: value for name, value in named.items() if value is not None}


async def _pass_on(answer: Answer, put: Callable[[AnswerDelta], Awaitable[None]]) -> None:
    async for delta in answer:
        await put(delta)
