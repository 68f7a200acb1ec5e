"""/v1/aliases: names that stand for others, by weight and user."""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends

from adapters.aliases import Alias
from serving.api.adapter_schemas import AliasRequest
from serving.api.auth import Keys
from serving.chat import ChatService


def aliases_router(chat: ChatService, keys: Keys) -> APIRouter:
    router = APIRouter(dependencies=[Depends(keys.require_admin)])

    @router.get("/v1/aliases")
    async def list_aliases() -> dict[str, Any]:
        return {"object": "list", "data": [_card(alias) for alias in await asyncio.to_thread(chat.aliases.all)]}

    @router.get("/v1/aliases/{name}")
    async def get_alias(name: str) -> dict[str, Any]:
        return _card(chat.aliases.require(name))

    @router.put("/v1/aliases/{name}")
    async def put_alias(name: str, body: AliasRequest) -> dict[str, Any]:
        alias = Alias(name=name, targets=body.targets)
        return _card(await asyncio.to_thread(chat.aliases.put, alias, chat.registry))

    @router.delete("/v1/aliases/{name}")
    async def delete_alias(name: str) -> dict[str, Any]:
        chat.aliases.delete(name)
        return {"id": name, "object": "alias", "deleted": True}

    return router


def _card(alias: Alias) -> dict[str, Any]:
    total = sum(target.weight for target in alias.targets)
    targets = [target.model_dump() | {"share": target.weight / total} for target in alias.targets]
    return {"id": alias.name, "object": "alias", "targets": targets}
