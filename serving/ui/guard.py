"""What Gradio's own routes must not do for a client: fetch addresses, build components from client data, or let a
page load anything from another host. Pure ASGI, so that streams and disconnects pass through untouched."""

import json
import re
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.ui.bodies import MAX_EVENT_BYTES, read_body, replay
from serving.ui.scripts import EARLY

# Gradio's templates need unsafe-eval and inline scripts; what matters is that every source is this server.
CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)

# What the page asks Gradio for. The rest of Gradio's routes is not served: its simple API, whose results anybody may
# read who has the event's id, functions of components, streams of media, recordings, run history, monitoring.
_SERVED = re.compile(
    r"/gradio_api/(queue/join|queue/data|run/\w+|cancel|reset|heartbeat/[\w-]+|upload|upload_progress|file=.+|info|app_id"
    r"|startup-events|theme\.css)/?"
)
_ROOTS = ("/gradio_api", "/monitoring", "/runs", "/custom_component", "/svelte")
_POSTED = ("/gradio_api", "/login", "/logout")
_EVENTS = ("/gradio_api/queue/join", "/gradio_api/run/")
_OWN_PAGES = (None, "same-origin", "none")  # Sec-Fetch-Site: absent where it is no browser


class UiGuard:
    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path: str = scope["path"]
        if _fetches(path):
            return await _refuse(403, "this server does not fetch other addresses")(scope, receive, send)
        if path.startswith(_ROOTS) and not _SERVED.fullmatch(path):
            return await _refuse(404, "not found; programs use the API under /v1")(scope, receive, send)
        if scope["method"] == "POST" and path.startswith(_POSTED) and _from_elsewhere(scope):
            return await _refuse(403, "only this server's own page may do that")(scope, receive, send)
        if scope["method"] == "POST" and path.startswith(_EVENTS):
            body = await read_body(scope, receive)
            if body is None:
                return await _refuse(413, f"an event may have {MAX_EVENT_BYTES} bytes")(scope, receive, send)
            if _forged(body):
                return await _refuse(403, "this event names a file or component it may not")(scope, receive, send)
            receive = replay(body, receive)
        await self.app(scope, receive, _Page(send) if path == "/" else _guarded(send))


def _from_elsewhere(scope: Scope) -> bool:
    """Whether a browser sent it for a page of another origin, which may do so without being asked for leave."""
    return Headers(scope=scope).get("sec-fetch-site") not in _OWN_PAGES


def _fetches(path: str) -> bool:
    for route in ("/gradio_api/file=", "/gradio_api/file/", "/gradio_api/proxy="):
        if path.startswith(route) and path[len(route) :].lstrip(" /\\").lower().startswith(("http:", "https:")):
            return True
    return False


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


def _guarded(send: Send) -> Send:
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
            MutableHeaders(scope=message)["Cache-Control"] = "no-store"  # who logs out leaves no page behind
            self.start = message
            return
        assert self.start is not None
        self.body += message.get("body", b"")
        if message.get("more_body"):
            return
        headers = MutableHeaders(scope=self.start)
        page = bytes(self.body)
        if headers.get("content-type", "").startswith("text/html") and "content-encoding" not in headers:
            page = page.replace(b"<head>", b"<head>" + EARLY.encode(), 1)
            headers["content-length"] = str(len(page))
        await self.send(self.start)
        await self.send({"type": "http.response.body", "body": page})
