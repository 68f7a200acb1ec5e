"""Requests that no endpoint takes as they come: HEAD, OPTIONS, a slash at the end, a wrong method, a base URL without
/v1. Clients and monitors send them all."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
WITHOUT_V1 = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models")
# What is ours outside /v1; everything else is the page's.
OURS = ("/v1", "/health", "/ready", "/version", "/metrics", "/openapi.json", "/tokenize", "/detokenize")


class PathSpellings:
    """In the API's paths a slash at the end is as none, without a redirect, which would cost some clients their body;
    and HEAD is GET without the body. Pure ASGI: streams pass through untouched."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").rstrip("/")
        if scope["type"] != "http" or not (path.startswith("/v1/") or path in OURS):
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        head = scope["method"] == "HEAD"
        spelled = {**scope, "path": path, "method": "GET" if head else scope["method"]}
        try:
            await (self._without_body if head else self.app)(spelled, receive, send)
        finally:
            scope["route"] = spelled.get("route")  # for the log, which is further out and knows the other scope

    async def _without_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def head_only(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                await send(message)
                await send({"type": "http.response.body", "body": b""})

        async def until_started() -> Message:
            return {"type": "http.disconnect"} if started else await receive()  # an event stream ends here

        await self.app(scope, until_started, head_only)


def unknown_router(known: Sequence[BaseRoute]) -> APIRouter:
    """Answers what none of the `known` routes does. Included last; the UI, mounted at "/", would answer such paths in
    its own way."""
    router = APIRouter(include_in_schema=False)

    async def unknown(request: Request) -> Response:
        path = request.scope["path"]
        scopes = {method: {**request.scope, "method": method} for method in METHODS}
        allowed = [m for m, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in known)]
        if not allowed:
            raise HTTPException(404, f"there is no endpoint {path}")
        if "GET" in allowed and "HEAD" not in allowed:
            allowed.append("HEAD")
        headers = {"Allow": ", ".join([*allowed, "OPTIONS"])}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        raise HTTPException(405, f"{path} takes {' or '.join(allowed)}, not {request.method}", headers)

    for ours in (*OURS, "/v1/{path:path}"):
        router.add_api_route(ours, unknown, methods=[*METHODS])

    for short in WITHOUT_V1:

        @router.api_route(short, methods=[*METHODS])
        async def without_v1(request: Request) -> None:
            path = request.url.path
            raise HTTPException(404, f"there is no endpoint {path}, only /v1{path}: end the client's base_url with /v1")

    return router
