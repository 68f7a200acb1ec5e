"""What Gradio's own routes must not do for a client: fetch addresses, build components from client data, or let a
page load anything from another host. Pure ASGI, so that streams and disconnects pass through untouched."""

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.ui.theme import LANGUAGE_SCRIPT

# Gradio's templates need unsafe-eval and inline scripts; what matters is that every source is this server.
CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
MAX_EVENT_BYTES = 8 * 2**20
_EVENTS = ("/gradio_api/queue/join", "/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/")


class UiGuard:
    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path: str = scope["path"]
        if _fetches(path):
            return await _refuse(403, "this server does not fetch other addresses")(scope, receive, send)
        if scope["method"] == "POST" and path.startswith(_EVENTS):
            body = await _read(Request(scope, receive))
            if body is None:
                return await _refuse(413, f"an event may have {MAX_EVENT_BYTES} bytes")(scope, receive, send)
            if _forged(body):
                return await _refuse(403, "this event names a file or component it may not")(scope, receive, send)
            receive = _replay(body, receive)
        await self.app(scope, receive, _Page(send) if path == "/" else _with_csp(send))


def _fetches(path: str) -> bool:
    for route in ("/gradio_api/file=", "/gradio_api/file/", "/gradio_api/proxy="):
        if path.startswith(route) and path[len(route) :].lstrip(" /\\").lower().startswith(("http:", "https:")):
            return True
    return False


async def _read(request: Request) -> bytes | None:
    """The whole body, None when it is larger than an event may be."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_EVENT_BYTES:
            return None
    return bytes(body)


def _forged(body: bytes) -> bool:
    """Whether an event's data carries a file at an address, which Gradio would download, or a component to build."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return False  # Gradio answers 422
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            address = value.get("path") or value.get("url")
            if "constructor_args" in value:
                return True
            if "meta" in value and isinstance(address, str) and address.lower().startswith(("http:", "https:")):
                return True
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


def _refuse(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_csp(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            _add_headers(message)
        await send(message)

    return guarded


def _add_headers(start: Message) -> None:
    headers = MutableHeaders(scope=start)
    headers["Content-Security-Policy"] = CSP
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"


class _Page:
    """Sends the page with the language script first in its head, before Gradio's own scripts run."""

    def __init__(self, send: Send):
        self.send = send
        self.start: Message | None = None
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            _add_headers(message)
            self.start = message
            return
        assert self.start is not None
        self.body += message.get("body", b"")
        if message.get("more_body"):
            return
        headers = MutableHeaders(scope=self.start)
        page = bytes(self.body)
        if headers.get("content-type", "").startswith("text/html") and "content-encoding" not in headers:
            page = page.replace(b"<head>", b"<head>" + LANGUAGE_SCRIPT.encode(), 1)
            headers["content-length"] = str(len(page))
        await self.send(self.start)
        await self.send({"type": "http.response.body", "body": page})
