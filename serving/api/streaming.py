"""What the streaming endpoints share: the SSE response, and giving up when the client has gone."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import anyio
import orjson
from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger(__name__)
T = TypeVar("T")

KEEP_ALIVE_S = 15
# A client that accepts nothing for this long is gone; its stream ends and its blocks are freed.
STALLED_AFTER_S = 60.0


class ClientGone(Exception):
    """Nobody is waiting for this answer any more."""


def event_stream(
    events: AsyncGenerator[dict[str, Any], None],
    headers: dict[str, str],
    *,
    on_close: Callable[[], None],
    on_failure: Callable[[], dict[str, Any]],
    named: bool = False,
) -> EventSourceResponse:
    """Each dict as one `data:` event, then `[DONE]`; or, `named`, as an event of the name that is its type, the last of
    which says that it is the last. An error after the first byte is sent as an event too, which
    `on_failure` gives for unexpected ones: the status line has gone out, and a cut connection would look like a
    network fault. `on_close` is called when the stream has ended, also where its client left before the first event,
    so that `events` never began."""

    async def lines() -> AsyncIterator[bytes]:
        try:
            async with aclosing(events):
                async for event in events:
                    yield _line(event, named)
        except Exception:
            log.exception("a stream failed after its first byte")
            yield _line(on_failure(), named)
        if not named:
            yield b"data: [DONE]\n\n"

    return _EventStream(
        lines(),
        on_close,
        sep="\n",
        ping=KEEP_ALIVE_S,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
        send_timeout=STALLED_AFTER_S,
        # Given an event and a grace, it does not cut streams when the server is asked to stop: answers finish, or the
        # engine ends them with an error event when they have been drained for long enough.
        shutdown_event=anyio.Event(),
        shutdown_grace_period=math.inf,
        headers=headers,
    )


def _line(event: dict[str, Any], named: bool) -> bytes:
    name = b"event: " + event["type"].encode() + b"\n" if named else b""
    return name + b"data: " + orjson.dumps(event) + b"\n\n"  # JSON has no line breaks, so this is one whole event


class _EventStream(EventSourceResponse):
    def __init__(self, content: AsyncIterator[bytes], on_close: Callable[[], None], **options: Any):
        super().__init__(content, **options)
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:
            log.info("a client accepted nothing for %g s; its stream has ended", STALLED_AFTER_S)
        finally:
            self._on_close()

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """As the overridden one, which opens anyio's cancel scope around every event; that took longer than to encode
        the event and hand it to the socket."""
        async with asyncio.timeout(self.send_timeout):
            await send(message)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it and raise ClientGone when the client goes away: an answer nobody reads is not
    computed."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            raise ClientGone
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()  # when we are cancelled ourselves


async def _disconnected(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return
