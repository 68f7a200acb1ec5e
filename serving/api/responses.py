"""POST /v1/responses, streamed and not: OpenAI's Responses API over the same turns as chat completions. Answers are
kept in memory, for GET and DELETE /v1/responses/{id} and for `previous_response_id`."""

from collections.abc import AsyncIterator, Iterable
from operator import itemgetter
from typing import Any

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from adapters.errors import Invalid, NotFound, renaming
from adapters.renderer import Message
from serving.api.auth import Caller, caller_of
from serving.api.dialects import Blend, chosen
from serving.api.errors import ended_reply
from serving.api.paging import page
from serving.api.reply import answer_headers
from serving.api.response_input import conversation, items_of
from serving.api.response_run import ResponseRun
from serving.api.response_schemas import ResponseRequest
from serving.api.streaming import event_stream, unless_disconnected
from serving.chat import ChatService, Turn
from serving.engine.sequence import SamplingParams
from serving.response_store import ResponseStore, StoredResponse


def responses_router(chat: ChatService, store: ResponseStore) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", response_model=None)
    async def respond(body: ResponseRequest, request: Request) -> Response:
        caller = caller_of(request)
        before = _before(body, store, caller)
        messages = conversation(items_of(before), body.input)
        params = _params(body, chat)
        turn = _turn(body, messages, params, caller, chosen(body, request, chat))
        with renaming({"messages": "input", "thinking": body.thinking_field}):
            answer = await chat.ask(turn)
        headers = answer_headers(answer)
        run = ResponseRun(body, answer, params, chat.base.tokenizer)
        asked = (*before, *(item.resource() for item in body.input))

        def keep() -> None:
            if body.store is not False:
                response = run.response()
                said = [item for item in response["output"] if not _cut(item)]
                stored = StoredResponse(orjson.dumps(response), _written(asked), _written(said))
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
        _only(request, set())
        return Response(_kept(store, request, response_id).body, media_type="application/json")

    @router.get("/v1/responses/{response_id}/input_items", response_model=None)
    async def input_items(
        response_id: str,
        request: Request,
        after: str | None = None,
        limit: int = Query(default=20, ge=1, le=100),
        order: str = Query(default="desc", pattern="^(asc|desc)$"),
    ) -> Response:
        """What the response answers: its input, and before it what `previous_response_id` went on from."""
        _only(request, {"after", "limit", "order"})
        items = [orjson.loads(item) for item in _kept(store, request, response_id).asked]
        if order == "desc":
            items.reverse()
        listed = page(items, itemgetter("id"), after=after, limit=limit)
        return Response(orjson.dumps(listed), media_type="application/json")

    @router.delete("/v1/responses/{response_id}")
    async def delete_response(response_id: str, request: Request) -> dict[str, Any]:
        if not store.delete(caller_of(request).id, response_id):
            raise _not_kept(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    return router


def _before(body: ResponseRequest, store: ResponseStore, caller: Caller) -> list[dict[str, Any]]:
    """The items that were said before; instructions are not among them, they last for one answer."""
    if body.previous_response_id is None:
        return []
    previous = store.get(caller.id, body.previous_response_id)
    if previous is None:
        raise Invalid(
            f"response '{body.previous_response_id}' is not kept (any more); send the whole conversation as input",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return [orjson.loads(item) for item in (*previous.asked, *previous.answered)]


def _cut(item: dict[str, Any]) -> bool:
    """Whether it is a call without its end, from which nobody can go on."""
    return bool(item["type"] == "function_call" and item["status"] != "completed")


def _written(items: Iterable[dict[str, Any]]) -> tuple[bytes, ...]:
    return tuple(map(orjson.dumps, items))


def _params(body: ResponseRequest, chat: ChatService) -> SamplingParams:
    vocab_size = chat.base.model.config.get_text_config().vocab_size
    try:
        return body.params(chat.default_params(), vocab_size, logprobs=body.reported_logprobs)
    except ValueError as error:
        raise Invalid(str(error)) from error


def _turn(
    body: ResponseRequest,
    messages: tuple[Message, ...],
    params: SamplingParams,
    caller: Caller,
    named: tuple[Blend, str],
) -> Turn:
    instructions: tuple[Message, ...] = ({"role": "system", "content": body.instructions},) if body.instructions else ()
    return Turn(
        model=body.model,
        messages=(*instructions, *messages),
        params=params,
        max_tokens=body.max_output_tokens,
        blend=named[0],
        param=named[1],
        user=body.user or "",
        key=caller.key,
        priority=caller.priority(body.priority),
        tools=body.offered,
        thinking=body.thinks,
    )


def _only(request: Request, names: set[str]) -> None:
    for name in request.query_params:
        if name not in names:
            raise Invalid(f"parameter '{name}' is not supported here", param=name, code="unsupported_parameter")


def _kept(store: ResponseStore, request: Request, response_id: str) -> StoredResponse:
    stored = store.get(caller_of(request).id, response_id)
    if stored is None:
        raise _not_kept(response_id)
    return stored


def _not_kept(response_id: str) -> NotFound:
    return NotFound(
        f"response '{response_id}' is not kept; the latest are, in memory, unless store=false", param="response_id"
    )


async def _exhaust(events: AsyncIterator[dict[str, Any]]) -> None:
    async for _ in events:
        pass
