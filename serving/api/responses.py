"""POST /v1/responses, streamed and not: OpenAI's Responses API over the same turns as chat completions. Answers are
kept in memory, for GET and DELETE /v1/responses/{id} and for `previous_response_id`."""

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from itertools import count
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from adapters.errors import Invalid, NotFound, renaming
from adapters.renderer import Message
from serving.answer import Answer
from serving.api.auth import Caller, caller_of
from serving.api.errors import ended_reply, failure_event
from serving.api.reply import Choice, answer_headers
from serving.api.response_items import ItemStatus, Output
from serving.api.response_schemas import ResponseRequest
from serving.api.streaming import event_stream, unless_disconnected
from serving.chat import ChatService, Turn
from serving.engine.sequence import FinishReason, SamplingParams
from serving.response_store import ResponseStore, StoredResponse


def responses_router(chat: ChatService, store: ResponseStore) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", response_model=None)
    async def respond(body: ResponseRequest, request: Request) -> Response:
        caller = caller_of(request)
        conversation = _conversation(body, store, caller)
        params = _params(body, chat)
        with renaming({"messages": "input"}):
            answer = await chat.ask(_turn(body, conversation, params, caller))
        headers = answer_headers(answer)
        run = _Run(body, answer, params, chat.base.tokenizer)

        def keep() -> None:
            if body.store is not False:
                said: Message = {"role": "assistant", "content": run.output.text}
                stored = StoredResponse(orjson.dumps(run.response()), (*conversation, said))
                store.put(caller.id, run.id, stored)

        events = run.events(keep)
        if body.stream:
            return event_stream(events, headers, on_close=answer.stop, on_failure=run.failure, named=True)
        try:
            await unless_disconnected(request, _exhaust(events))
        finally:
            answer.stop()
        if run.answered.error:
            return ended_reply(request, run.answered.error, run.answered.error_code)
        return JSONResponse(run.response(), headers=headers)

    @router.get("/v1/responses/{response_id}", response_model=None)
    async def get_response(response_id: str, request: Request) -> Response:
        for name in request.query_params:
            raise Invalid(f"parameter '{name}' is not supported here", param=name, code="unsupported_parameter")
        stored = store.get(caller_of(request).id, response_id)
        if stored is None:
            raise _not_kept(response_id)
        return Response(stored.body, media_type="application/json")

    @router.delete("/v1/responses/{response_id}")
    async def delete_response(response_id: str, request: Request) -> dict[str, Any]:
        if not store.delete(caller_of(request).id, response_id):
            raise _not_kept(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    return router


def _conversation(body: ResponseRequest, store: ResponseStore, caller: Caller) -> tuple[Message, ...]:
    """What was said before and what is said now; instructions are not part of it, they last for one answer."""
    said = tuple(item.plain() for item in body.input)
    if body.previous_response_id is None:
        return said
    previous = store.get(caller.id, body.previous_response_id)
    if previous is None:
        raise Invalid(
            f"response '{body.previous_response_id}' is not kept (any more); send the whole conversation as input",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return (*previous.conversation, *said)


def _params(body: ResponseRequest, chat: ChatService) -> SamplingParams:
    vocab_size = chat.base.model.config.get_text_config().vocab_size
    try:
        return body.params(chat.default_params(), vocab_size, logprobs=body.reported_logprobs)
    except ValueError as error:
        raise Invalid(str(error)) from error


def _turn(body: ResponseRequest, conversation: tuple[Message, ...], params: SamplingParams, caller: Caller) -> Turn:
    instructions: tuple[Message, ...] = ({"role": "system", "content": body.instructions},) if body.instructions else ()
    return Turn(
        model=body.model,
        messages=(*instructions, *conversation),
        params=params,
        max_tokens=body.max_output_tokens,
        blend=tuple((choice.model, choice.scale) for choice in body.lora),
        key=caller.key,
        priority=caller.priority(body.priority),
    )


def _not_kept(response_id: str) -> NotFound:
    return NotFound(
        f"response '{response_id}' is not kept; the latest are, in memory, unless store=false", param="response_id"
    )


class _Run:
    """One response from its first event to its last."""

    def __init__(self, body: ResponseRequest, answer: Answer, params: SamplingParams, tokenizer: Any):
        self.id = f"resp_{uuid.uuid4().hex}"
        self.answered = Choice()
        self.output = Output(tokenizer, logprobs=bool(body.include))
        self._answer = answer
        self._head = {"id": self.id, "object": "response", "created_at": int(time.time())}
        self._echo = _echo(body, answer, params)
        self._completed_at: int | None = None
        self._numbers = count()

    async def events(self, keep: Callable[[], None]) -> AsyncGenerator[dict[str, Any], None]:
        """Every event, with its type and number; `keep` is called before the one that ends a good answer."""

        def event(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
            return {"type": f"response.{kind}", "sequence_number": next(self._numbers)} | fields

        async with self._answer as answer:
            yield event("created", {"response": self.response()})
            yield event("in_progress", {"response": self.response()})
            for kind, fields in self.output.begin():
                yield event(kind, fields)
            async for delta in answer:
                self.answered.take(delta)
                for kind, fields in self.output.take(delta):
                    yield event(kind, fields)
        self._completed_at = int(time.time())
        if not self.answered.error:
            for kind, fields in self.output.end(self._item_status):
                yield event(kind, fields)
            keep()
        yield event(self._status, {"response": self.response()})

    def failure(self) -> dict[str, Any]:
        """The event that ends a stream on which the server failed."""
        error = failure_event()["error"]
        sent = {name: error[name] for name in ("code", "message", "param")}
        return {"type": "error", "sequence_number": next(self._numbers)} | sent

    def response(self) -> dict[str, Any]:
        """As far as it is."""
        status = self._status
        failed = {"code": "server_error", "message": self.answered.error} if self.answered.error else None
        return {
            **self._head,
            "status": status,
            "completed_at": self._completed_at if status == "completed" else None,
            "error": failed,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [] if status == "in_progress" else self.output.items(self._item_status),
            **({} if status == "in_progress" else {"usage": self._usage()}),
            **self._echo,
        }

    @property
    def _status(self) -> str:
        match self.answered.finish_reason:
            case None:
                return "in_progress"
            case FinishReason.STOP:
                return "completed"
            case FinishReason.ERROR:
                return "failed"
            case _:
                return "incomplete"

    @property
    def _item_status(self) -> ItemStatus:
        return "completed" if self.answered.finish_reason == FinishReason.STOP else "incomplete"

    def _usage(self) -> dict[str, Any]:
        prompt, said = self._answer.prompt_tokens, self.answered.tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.answered.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + said,
        }


def _echo(body: ResponseRequest, answer: Answer, params: SamplingParams) -> dict[str, Any]:
    """What was asked, as a response repeats it; temperature and top_p as they were used."""
    named = {"user": body.user, "safety_identifier": body.safety_identifier, "prompt_cache_key": body.prompt_cache_key}
    return {
        "model": answer.model,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "max_output_tokens": body.max_output_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": body.text.format.model_dump(by_alias=True, exclude_none=True), "verbosity": "medium"},
        "reasoning": {"effort": None, "summary": None},
        "tools": [],
        "tool_choice": body.tool_choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "truncation": "disabled",
        "background": False,
        "service_tier": "default",
        "store": body.store is not False,
        "metadata": body.metadata or {},
        **{name: value for name, value in named.items() if value is not None},
    }


async def _exhaust(events: AsyncIterator[dict[str, Any]]) -> None:
    async for _ in events:
        pass
