"""How much a request may send. Counted as it arrives, so that a client cannot fill memory before it is refused."""

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.errors import error_body

MAX_BODY_BYTES = 4 << 20
MAX_DISCARDED_BYTES = 64 << 20
LIMITED = ("/v1/", "/tokenize", "/detokenize")


class BodyLimit:
    """Answers 413 to bodies of more than MAX_BODY_BYTES for the API. Pure ASGI: streams pass through untouched."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(LIMITED):
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:18]) > MAX_BODY_BYTES:
            await _refuse(scope, receive, send)
            return
        received = 0
        started = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLarge:
            if started:
                raise
            await _refuse(scope, receive, send)


class _TooLarge(Exception):
    pass


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    # Closing while the client still sends would reset the connection, and our answer with it; what it sends is read and
    # thrown away, up to a bound.
    discarded = 0
    while discarded < MAX_DISCARDED_BYTES:
        part = await receive()
        discarded += len(part.get("body", b""))
        if part["type"] != "http.request" or not part.get("more_body"):
            break
    scope.setdefault("state", {})["reason"] = "request_too_large"
    message = f"the body is larger than {MAX_BODY_BYTES >> 20} MiB"
    body = json.dumps(error_body(message, 413, code="request_too_large")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
