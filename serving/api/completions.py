"""POST /v1/chat/completions, streamed and not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from adapters.errors import Invalid, renaming
from serving.answer import AnswerDelta
from serving.api.auth import Caller, caller_of
from serving.api.chat_schemas import ChatCompletionRequest
from serving.api.declared import ChatCompletion, answers
from serving.api.dialects import Blend, chosen
from serving.api.reply import Reply, logprob_entry
from serving.chat import ChatService, Turn
from serving.engine.sequence import TokenLogprob
from serving.parsing.pieces import CallPiece


def completions_router(chat: ChatService) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None, responses=answers(ChatCompletion))
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        with renaming({"thinking": body.thinking_field}):
            answers = await chat.ask_together(_turns(body, chat, caller_of(request), chosen(body, request, chat)))
        reply = _ChatReply(answers, chat.base.tokenizer, body.n)
        return await reply.respond(request, stream=body.stream, options=body.stream_options)

    return router


def _turns(body: ChatCompletionRequest, chat: ChatService, caller: Caller, named: tuple[Blend, str]) -> list[Turn]:
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
            blend=named[0],
            param=named[1],
            user=body.user or "",
            key=caller.key,
            priority=caller.priority(body.priority),
            choice=number,
            tools=body.offered,
            thinking=body.thinks,
        )
        for number in range(body.n)
    ]


class _ChatReply(Reply):
    id_prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole_choice(self, index: int) -> dict[str, Any]:
        choice = self.choices[index]
        content = None if choice.calls and not choice.text else choice.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = [_call(call) for call in choice.calls]
        return {
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
        }

    def opening(self, index: int) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": "", "refusal": None}, "logprobs": None}

    def part(self, index: int, delta: AnswerDelta) -> dict[str, Any] | None:
        said: dict[str, Any] = {}
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.text:
            said["content"] = delta.text
        if delta.calls:
            said["tool_calls"] = [{"index": call.index} | _call(call) for call in delta.calls]
        if not (said or delta.logprobs or delta.finish_reason):
            return None
        return {"delta": said, "logprobs": self._logprobs(delta.logprobs)}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not logprobs:
            return None
        return {"content": [logprob_entry(self.tokenizer, entry) for entry in logprobs], "refusal": None}


def _call(call: CallPiece) -> dict[str, Any]:
    """A call, or what one piece adds to it."""
    if call.name is None:
        return {"function": {"arguments": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
