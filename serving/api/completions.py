"""POST /v1/chat/completions, streamed and not."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from adapters.errors import Invalid
from serving.api.auth import Caller, caller_of
from serving.api.errors import error_body
from serving.api.schemas import ChatCompletionRequest
from serving.api.streaming import event_stream, unless_disconnected
from serving.chat import Answer, ChatService, Turn
from serving.engine.sequence import FinishReason, TokenDelta, TokenLogprob


def completions_router(chat: ChatService) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        answers = await chat.ask_together(_turns(body, chat, caller_of(request)))
        reply = _Reply(answers, chat.base.tokenizer)
        headers = adapter_headers(answers[0])
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return event_stream(reply.chunks(with_usage=with_usage), headers)
        await unless_disconnected(request, reply.read_all())
        failed = next((choice.error for choice in reply.choices if choice.error), None)
        if failed:
            status = 503 if chat.engine.draining else 500
            return JSONResponse(error_body(failed, status), status)
        return JSONResponse(reply.whole(), headers=headers)

    return router


def adapter_headers(answer: Answer) -> dict[str, str]:
    headers = {"x-bianlian-adapter": answer.adapter}
    return headers | ({"x-bianlian-digest": answer.digest} if answer.digest else {})


def _turns(body: ChatCompletionRequest, chat: ChatService, caller: Caller) -> list[Turn]:
    """One turn a choice. Choice k rolls its own dice, seed + k, so that n=2 with a seed is reproducible too."""
    try:
        params = body.params(
            chat.default_params(), chat.base.model.config.get_text_config().vocab_size, logprobs=body.reported_logprobs
        )
    except ValueError as error:
        raise Invalid(str(error)) from error
    return [
        Turn(
            model=body.model,
            messages=tuple(message.plain() for message in body.messages),
            params=replace(params, seed=params.seed + number),
            max_tokens=body.token_limit,
            blend=tuple((choice.model, choice.scale) for choice in body.lora),
            key=caller.key,
            priority=caller.priority(body.priority),
        )
        for number in range(body.n)
    ]


@dataclass
class _Choice:
    text: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0

    def take(self, delta: TokenDelta) -> None:
        self.text += delta.text
        self.tokens += len(delta.token_ids)
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason
        self.error = delta.error
        self.cached_tokens = delta.cached_tokens or self.cached_tokens


class _Reply:
    """All choices of one request, collected or passed on as chunks."""

    def __init__(self, answers: list[Answer], tokenizer: Any):
        self.answers = answers
        self.tokenizer = tokenizer
        self.choices = [_Choice() for _ in answers]
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    async def read_all(self) -> None:
        async for _ in self._deltas():
            pass

    def whole(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.answers[0].model,
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": self._logprobs(choice.logprobs),
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(self.choices)
            ],
            "usage": self._usage(),
        }

    async def chunks(self, *, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        extra = {"usage": None} if with_usage else {}
        for index in range(len(self.answers)):
            yield self._chunk([self._part(index, {"role": "assistant", "content": "", "refusal": None})]) | extra
        async for index, delta in self._deltas():
            if delta.error:
                yield error_body(delta.error, 500)
                return
            if delta.text or delta.logprobs or delta.finish_reason:
                content = {"content": delta.text} if delta.text else {}
                yield self._chunk([self._part(index, content, delta)]) | extra
        if with_usage:
            yield self._chunk([]) | {"usage": self._usage()}

    async def _deltas(self) -> AsyncIterator[tuple[int, TokenDelta]]:
        """(choice, delta) from all answers as they come; leaving early stops them all."""
        async with AsyncExitStack() as stack:
            merged: asyncio.Queue[tuple[int, TokenDelta]] = asyncio.Queue()
            for index, answer in enumerate(self.answers):
                await stack.enter_async_context(answer)
                reader = asyncio.create_task(_pass_on(answer, lambda delta, i=index: merged.put_nowait((i, delta))))  # type: ignore[misc]
                stack.callback(reader.cancel)
            open_choices = len(self.answers)
            while open_choices:
                index, delta = await merged.get()
                self.choices[index].take(delta)
                open_choices -= delta.finish_reason is not None
                yield index, delta

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.answers[0].model,
            "choices": choices,
        }

    def _part(self, index: int, content: dict[str, Any], delta: TokenDelta | None = None) -> dict[str, Any]:
        return {
            "index": index,
            "delta": content,
            "logprobs": self._logprobs(list(delta.logprobs)) if delta else None,
            "finish_reason": delta.finish_reason if delta else None,
        }

    def _usage(self) -> dict[str, Any]:
        """Prompt tokens are counted once for all choices; a generated end-of-turn token counts."""
        prompt = self.answers[0].prompt_tokens
        completion = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.choices[0].cached_tokens},
        }

    def _logprobs(self, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        if not logprobs:
            return None
        return {
            "content": [
                self._token(entry.token_id, entry.logprob) | {"top_logprobs": [self._token(i, p) for i, p in entry.top]}
                for entry in logprobs
            ],
            "refusal": None,
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token_id])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


async def _pass_on(answer: Answer, put: Callable[[TokenDelta], None]) -> None:
    async for delta in answer:
        put(delta)
