"""Bodies of requests to Gradio's routes, read once by whoever must judge them and handed on whole."""

import json
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

MAX_EVENT_BYTES = 8 * 2**20


async def read_body(scope: Scope, receive: Receive, limit: int = MAX_EVENT_BYTES) -> bytes | None:
    """The whole body, None when it has more than `limit` bytes."""
    body = bytearray()
    async for chunk in Request(scope, receive).stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def as_object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is; an empty one when it is none, which Gradio answers with 422."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
