"""Is the process alive, is it ready, what is it."""

from importlib.metadata import version

from fastapi import APIRouter

from adapters.errors import Unavailable
from serving.chat import ChatService


def operations_router(chat: ChatService) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """200 once the base is loaded and the engine's thread answers."""
        if not chat.engine.alive:
            raise Unavailable("the engine is not running")
        await chat.engine.call(lambda: None)
        return {"status": "ready", "base": chat.base.name}

    @router.get("/version")
    async def get_version() -> dict[str, str]:
        return {"version": version("bianlian")}

    @router.get("/v1", include_in_schema=False)
    async def root() -> dict[str, str]:
        return {"message": "base URL of an OpenAI-compatible API; GET /v1/models lists what answers"}

    return router
