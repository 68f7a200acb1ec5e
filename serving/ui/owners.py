"""Whose a session of the page is. Gradio gives the results of an event to anybody who names its session, and ends
anybody's event on request; here both are for the user who began it. Pure ASGI."""

import asyncio
import json
from collections import OrderedDict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.ui.words import language_of
from serving.ui.bodies import as_object, read_body, replay
from serving.ui.login import Sessions
from serving.ui.texts import say

MAX_IDS = 20_000  # of sessions and events; those unused longest are forgotten
RECHECK_S = 1.0  # how long answers may go on to someone whose key was revoked, or who has logged out
NOBODY = ""  # the owner of everything while no key is wanted

_ROUTES = "/gradio_api/"


class Owners:
    """Ids, and who was the first to use each."""

    def __init__(self, limit: int = MAX_IDS):
        self._limit = limit
        self._owner_of: OrderedDict[str, str] = OrderedDict()

    def claim(self, id: str, owner: str) -> bool:
        """Whether `id` is `owner`'s, as what nobody has used becomes."""
        known = self._owner_of.get(id, NOBODY)
        if known not in (owner, NOBODY):
            return False
        self._owner_of[id] = owner
        self._owner_of.move_to_end(id)
        while len(self._owner_of) > self._limit:
            self._owner_of.popitem(last=False)
        return True


class OwnSessions:
    """Lets nobody at Gradio's routes who has not logged in, or at another user's session or event."""

    def __init__(self, app: ASGIApp, sessions: Sessions):
        self.app = app
        self.sessions = sessions
        self.owners = Owners()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_ROUTES):
            return await self.app(scope, receive, send)
        request = Request(scope)
        owner = await self.sessions.owner(request)
        if owner is None:
            return await JSONResponse({"detail": "log in first"}, 401)(scope, receive, send)
        route = scope["path"].removeprefix(_ROUTES).rstrip("/")
        named: dict[str, Any] = dict(request.query_params)
        if route.startswith("heartbeat/"):
            named = {"session_hash": route.removeprefix("heartbeat/")}
        elif scope["method"] == "POST" and not route.startswith("upload"):
            body = await read_body(scope, receive)
            if body is None:
                return await JSONResponse({"detail": "too large"}, 413)(scope, receive, send)
            named, receive = as_object(body), replay(body, receive)
        ids = [named.get("session_hash"), named.get("event_id")]
        if not all(self.owners.claim(id, owner) for id in ids if isinstance(id, str)):
            return await JSONResponse({"detail": "no such session"}, 404)(scope, receive, send)
        if route == "queue/join":
            await self.app(scope, receive, self._noting(send, owner))
        elif route == "queue/data":
            await self._while_welcome(request, receive, send)
        else:
            await self.app(scope, receive, send)

    def _noting(self, send: Send, owner: str) -> Send:
        """Also claims the event that Gradio's answer names."""

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.body":
                event = as_object(message.get("body", b"")).get("event_id")
                if isinstance(event, str):
                    self.owners.claim(event, owner)
            await send(message)

        return noted

    async def _while_welcome(self, request: Request, receive: Receive, send: Send) -> None:
        """Streams results until they end or the session does; then Gradio is told as if the page had been closed, and
        stops what still runs."""
        stream = _Stream(send)
        running = asyncio.ensure_future(self.app(request.scope, receive, stream))
        try:
            while not (await asyncio.wait([running], timeout=RECHECK_S))[0]:
                if await self.sessions.owner(request) is None:
                    stream.cut = True
                    break
            else:
                return running.result()
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait([running])
        await stream.end(say(language_of(request), "ended"))


class _Stream:
    """Passes an event stream on, until it is cut."""

    def __init__(self, send: Send):
        self.send = send
        self.started = False
        self.cut = False

    async def __call__(self, message: Message) -> None:
        if not self.cut:
            self.started = True
            await self.send(message)

    async def end(self, reason: str) -> None:
        """Closes the stream with an error that the page shows."""
        if not self.started:
            await self.send({"type": "http.response.start", "status": 200, "headers": []})
        event = {"msg": "unexpected_error", "message": reason, "success": False, "session_not_found": False}
        line = f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
        await self.send({"type": "http.response.body", "body": line.encode(), "more_body": False})
