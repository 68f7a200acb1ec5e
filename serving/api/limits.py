"""How much a request may send, and how much more an upload. Counted as it arrives, so that a client cannot
fill memory before it is refused."""

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.errors import error_body

MAX_BODY_BYTES = 4 << 20
MAX_DISCARDED_BYTES = 64 << 20
LIMITED = ("/v1/", "/tokenize", "/detokenize")


UPLOADS = ("/v1/adapters", "/v1/files")  # multipart, written to disk as it arrives
_FORM_BYTES = 1 << 20  # of a form, beside its file


class BodyLimit:
    """Answers 413 to bodies under /v1 of more than MAX_BODY_BYTES, or of more than `max_upload` bytes for uploads. Pure
    ASGI: streams pass through untouched."""

    def __init__(self, app: ASGIApp, max_upload: int):
        self.app = app
        self.max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(LIMITED):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        limit = MAX_BODY_BYTES
        if scope["path"] in UPLOADS and headers.get(b"content-type", b"").startswith(b"multipart/form-data"):
            limit = self.max_upload + _FORM_BYTES
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:18]) > limit:
            await _refuse(scope, receive, send, limit)
            return
        received = 0
        started = whole = False

        async def counted() -> Message:
            nonlocal received, whole
            message = await receive()
            received += len(message.get("body", b""))
            whole = not message.get("more_body")
            if received > limit:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if started or received <= limit:  # else it is what the application makes of being interrupted
                started = True
                await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLarge:
            if started:
                raise
        if received > limit and not started:
            await _refuse(scope, receive, send, limit, read=whole)


class _TooLarge(Exception):
    pass


async def _refuse(scope: Scope, receive: Receive, send: Send, limit: int, *, read: bool = False) -> None:
    """`read`: the client has sent all it had to."""
    # Closing while the client still sends would reset the connection, and our answer with it; what it sends is read and
    # thrown away, up to a bound.
    discarded = 0
    while not read and discarded < MAX_DISCARDED_BYTES:
        part = await receive()
        discarded += len(part.get("body", b""))
        if part["type"] != "http.request" or not part.get("more_body"):
            break
    scope.setdefault("state", {})["reason"] = "request_too_large"
    message = f"the body is larger than {limit >> 20} MiB"
    body = json.dumps(error_body(message, 413, code="request_too_large")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
