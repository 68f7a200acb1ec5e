"""Is the process alive, is it ready, what is it."""

from importlib.metadata import version

from fastapi import APIRouter, Depends, Response

from adapters.errors import Unavailable
from serving.api.auth import Keys
from serving.api.declared import TEXT
from serving.chat import ChatService
from serving.metrics import CONTENT_TYPE, Metrics


def operations_router(chat: ChatService, metrics: Metrics, keys: Keys) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """200 once the base is loaded and the engine's thread answers, until the server is asked to stop."""
        if not chat.engine.alive:
            raise Unavailable("the engine is not running")
        if chat.engine.draining:
            raise Unavailable("the server is shutting down; running answers end, new ones go elsewhere")
        await chat.engine.call(lambda: None)
        return {"status": "ready", "base": chat.base.name}

    @router.get("/version")
    async def get_version() -> dict[str, str]:
        return {"version": version("bianlian")}

    @router.get("/v1", include_in_schema=False)
    async def root() -> dict[str, str]:
        return {"message": "base URL of an OpenAI-compatible API; GET /v1/models lists what answers"}

    # With keys set it wants one, a user key like any other: it tells how busy the server is and which adapters it has.
    # The admin key would also do, but is too much to leave in a scraper's configuration.
    @router.get("/metrics", response_class=Response, responses=TEXT, dependencies=[Depends(keys.require_user)])
    async def get_metrics() -> Response:
        """Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router
