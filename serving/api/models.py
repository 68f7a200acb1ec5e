"""GET /v1/models, and loading and unloading adapters by path (vLLM's endpoints)."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from adapters.aliases import Alias
from adapters.errors import BianlianError
from adapters.manifest import AdapterVersion
from adapters.registry import BASE_ALIAS
from adapters.settings import Settings
from serving.api.adapter_schemas import LoadAdapterRequest, UnloadAdapterRequest
from serving.api.auth import Keys
from serving.api.declared import TEXT, ModelCard, ModelList, Unloaded
from serving.chat import ChatService
from serving.lifecycle import require_under


def models_router(chat: ChatService, settings: Settings, keys: Keys, started: int) -> APIRouter:
    router = APIRouter()

    def base_card() -> dict[str, Any]:
        return {
            "id": chat.base.name,
            "object": "model",
            "created": started,
            "owned_by": "bianlian",
            "root": chat.base.name,
            "parent": None,
            "max_model_len": chat.engine.engine.max_model_len,
            "digest": chat.base.fingerprint,
            "status": "active",
        }

    def adapter_card(version: AdapterVersion, model_id: str) -> dict[str, Any]:
        created = int(version.manifest.created.timestamp()) if version.manifest else started
        return {
            "id": model_id,
            "object": "model",
            "created": created,
            "owned_by": "bianlian",
            "root": str(version),
            "parent": chat.base.name,
            "max_model_len": chat.engine.engine.max_model_len,
            "version": version.number,
            "digest": version.digest,
            "status": chat.engine.engine.bank.status(version.digest),
            "effect": asdict(effect) if (effect := chat.effects.get(version.digest)) else None,
        }

    def alias_card(alias: Alias) -> dict[str, Any] | None:
        """What most users get; None when that is not offered now."""
        try:
            root = base_card() if chat.is_base(alias.heaviest) else model_card(alias.heaviest)
        except BianlianError:
            return None
        return root | {"id": alias.name, "targets": [target.model_dump() for target in alias.targets]}

    def model_card(model_id: str) -> dict[str, Any]:
        return adapter_card(chat.registry.resolve(model_id), model_id)

    def alias_cards() -> list[dict[str, Any]]:
        return [card for alias in chat.aliases.all() if (card := alias_card(alias))]

    @router.get("/v1/models", response_model=None, responses={200: {"model": ModelList}})
    async def list_models() -> Response:
        # In a thread, because it reads the disk for every name; and as it is, because checking a thousand cards against
        # a schema would hold up everybody's tokens.
        versions = await asyncio.to_thread(chat.registry.versions)
        adapters = [adapter_card(version, version.name) for version in versions]
        return JSONResponse({"object": "list", "data": [base_card(), *adapters, *await asyncio.to_thread(alias_cards)]})

    @router.get("/v1/models/{model_id:path}", responses={200: {"model": ModelCard}})
    async def get_model(model_id: str) -> dict[str, Any]:
        if model_id in (chat.base.name, BASE_ALIAS):
            return base_card()
        if (alias := chat.aliases.get(model_id)) and (card := alias_card(alias)):
            return card
        return model_card(model_id)

    @router.post(
        "/v1/load_lora_adapter",
        response_class=Response,
        responses=TEXT,
        dependencies=[Depends(keys.require_admin)],
    )
    async def load_lora_adapter(body: LoadAdapterRequest) -> Response:
        version = await chat.load(
            body.lora_name,
            require_under(Path(body.lora_path), [settings.root, *settings.adapter_roots], param="lora_path"),
            replace=body.load_inplace,
        )
        effect = chat.effects.get(version.digest)
        warning = f" But it {effect.warning}" if effect and effect.warning else ""
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' loaded as {version}.{warning}")

    @router.post(
        "/v1/unload_lora_adapter",
        response_model=None,
        responses={200: {"model": Unloaded}},
        dependencies=[Depends(keys.require_admin)],
    )
    async def unload_lora_adapter(body: UnloadAdapterRequest) -> Response:
        freed = await chat.unload(body.lora_name, force=body.force)
        message = f"Success: LoRA adapter '{body.lora_name}' unloaded."
        return JSONResponse({"message": message, "bytes_freed": freed})

    return router
