"""POST /tokenize and /detokenize, as vLLM has them; under /v1 too."""

from typing import Any

from fastapi import APIRouter

from serving.api.text_schemas import DetokenizeRequest, TokenizeRequest, check_token_ids
from serving.chat import ChatService, Turn


def tokens_router(chat: ChatService) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize")
    @router.post("/v1/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        messages = tuple(message.plain() for message in body.messages or ())
        special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
        turn = Turn(body.model, messages, prompt=body.prompt)
        tokens = await chat.tokenize(turn, head=body.add_generation_prompt, special=special)
        return {"count": len(tokens), "max_model_len": chat.engine.engine.max_model_len, "tokens": tokens}

    @router.post("/detokenize")
    @router.post("/v1/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        check_token_ids("tokens", [body.tokens], chat.base.model.config.get_text_config().vocab_size)
        return {"prompt": await chat.detokenize(body.model, body.tokens)}

    return router
