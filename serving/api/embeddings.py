"""POST /v1/embeddings: a text's direction in the model's last hidden layer, averaged over its tokens."""

import base64
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from adapters.errors import Conflict, renaming
from serving.answer import Answer
from serving.api.auth import Caller, caller_of
from serving.api.dialects import Blend, chosen
from serving.api.errors import ended_reply
from serving.api.reply import answer_headers
from serving.api.streaming import unless_disconnected
from serving.api.text_schemas import EmbeddingRequest, check_token_ids
from serving.chat import ChatService, Turn
from serving.engine.sequence import SamplingParams, TokenDelta

# Inputs of one body that are in the queue together: enough to fill steps, and no more than leave room for others.
AT_ONCE = 64

Embedded = list[tuple[Answer, TokenDelta]]


def embeddings_router(chat: ChatService) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings", response_model=None)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        turns = _turns(body, chat, caller_of(request), chosen(body, request, chat))
        embedded = await unless_disconnected(request, _embed(chat, turns))
        for _, delta in embedded:
            if delta.error:
                return ended_reply(request, delta.error, delta.error_code)
        tokens = sum(answer.prompt_tokens for answer, _ in embedded)
        first = embedded[0][0]
        content = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _encoded(delta, body.encoding_format)}
                for index, (_, delta) in enumerate(embedded)
            ],
            "model": first.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        written = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)  # the shortest text of each float32
        return Response(written, media_type="application/json", headers=answer_headers(first))

    return router


def _turns(body: EmbeddingRequest, chat: ChatService, caller: Caller, named: tuple[Blend, str]) -> list[Turn]:
    check_token_ids("input", body.input, chat.base.model.config.get_text_config().vocab_size)
    return [
        Turn(
            model=body.model,
            prompt=prompt,
            params=SamplingParams(temperature=0, embed=True),
            max_tokens=0,
            blend=named[0],
            param=named[1],
            user=body.user or "",
            key=caller.key,
            priority=caller.priority(body.priority),
        )
        for prompt in body.input
    ]


async def _embed(chat: ChatService, turns: Sequence[Turn]) -> Embedded:
    """Every turn's answer and only delta, up to the first that has failed. All by the same versions: Conflict when a
    name has moved on between two parts of a long list."""
    embedded: Embedded = []
    part = max(1, min(AT_ONCE, chat.engine.max_waiting))
    for start in range(0, len(turns), part):
        with renaming({"prompt": "input"}):
            answers = await chat.ask_together(turns[start : start + part])
        async with AsyncExitStack() as stack:
            for answer in answers:
                await stack.enter_async_context(answer)
            for answer in answers:
                async for delta in answer:
                    embedded.append((answer, delta))
                    if delta.error:
                        return embedded
        if answers[0].digest != embedded[0][0].digest:
            raise Conflict(f"'{turns[0].model}' was replaced while its inputs were embedded; send them again")
    return embedded


def _encoded(delta: TokenDelta, encoding: str) -> Any:
    assert delta.embedding is not None
    values = delta.embedding.numpy()
    return base64.b64encode(values.astype("<f4").tobytes()).decode() if encoding == "base64" else values
