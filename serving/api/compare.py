"""POST /v1/compare: one question, several lanes, one stream whose events say which lane they belong to."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from adapters.errors import Invalid
from serving.api.auth import caller_of
from serving.api.chat_schemas import CompareRequest
from serving.api.declared import EVENTS
from serving.api.errors import ended_body, failure_event
from serving.api.streaming import event_stream
from serving.chat import ChatService
from serving.compare import Comparison, Lane, compare
from serving.votes import VoteStore, voted_lanes


def compare_router(chat: ChatService, votes: VoteStore) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/compare", response_class=Response, responses=EVENTS)
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
        try:
            await votes.database.call(votes.remember, running.id, caller.key, voted_lanes(lanes, running))
        except BaseException:
            running.stop()
            raise
        headers = {"x-bianlian-comparison": running.id}
        return event_stream(_events(running), headers, on_close=running.stop, on_failure=failure_event)

    return router


async def _events(running: Comparison) -> AsyncGenerator[dict[str, Any], None]:
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
                "max_tokens": lane.answer.max_tokens,
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
                    "comparison_id": running.id,
                    "lane": number,
                    "finish_reason": lane.finish_reason,
                    "prompt_tokens": lane.answer.prompt_tokens,
                    "completion_tokens": lane.tokens,
                    "ttft_s": lane.first_token_s,
                    "tokens_per_s": lane.tokens_per_s,
                }
                yield end | (ended_body(delta.error, delta.error_code) if delta.error else {})
