"""POST /v1/compare: one question, several lanes, one stream whose events say which lane they belong to."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response

from adapters.errors import Invalid
from serving.api.auth import caller_of
from serving.api.errors import error_body
from serving.api.schemas import CompareRequest
from serving.api.streaming import event_stream
from serving.chat import ChatService
from serving.compare import Comparison, Lane, compare


def compare_router(chat: ChatService) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/compare", response_model=None)
    async def post_compare(body: CompareRequest, request: Request) -> Response:
        try:
            params = body.params(chat.default_params(), chat.base.model.config.get_text_config().vocab_size)
        except ValueError as error:
            raise Invalid(str(error)) from error
        messages = [message.plain() for message in body.messages]
        lanes = [Lane(lane.model, lane.scale, lane.system) for lane in body.lanes]
        caller = caller_of(request)
        running = await compare(
            chat,
            lanes,
            [messages] * len(lanes),
            params,
            max_tokens=body.max_tokens,
            key=caller.key,
            priority=caller.priority(body.priority),
            thinking=body.thinking,
        )
        return event_stream(_events(running), {"x-bianlian-comparison": running.id})

    return router


async def _events(running: Comparison) -> AsyncIterator[dict[str, Any]]:
    """`start` with every lane's model and digest, `reasoning` and `delta` with text, `end` with the lane's figures."""
    async with running:
        for number, lane in enumerate(running.lanes):
            yield {
                "type": "start",
                "comparison_id": running.id,
                "lane": number,
                "model": lane.answer.model,
                "adapter": lane.answer.adapter,
                "digest": lane.answer.digest,
                "seed": running.seed,
            }
        async for number, delta in running:
            if delta.reasoning:
                yield {"type": "reasoning", "lane": number, "text": delta.reasoning}
            if delta.text:
                yield {"type": "delta", "lane": number, "text": delta.text}
            if delta.finish_reason:
                lane = running.lanes[number]
                end = {
                    "type": "end",
                    "lane": number,
                    "finish_reason": lane.finish_reason,
                    "prompt_tokens": lane.answer.prompt_tokens,
                    "completion_tokens": lane.tokens,
                    "ttft_s": lane.first_token_s,
                    "tokens_per_s": lane.tokens_per_s,
                }
                yield end | (error_body(delta.error, 500) if delta.error else {})
