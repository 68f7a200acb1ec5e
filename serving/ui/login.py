"""Who is at the page: a login with an API key, remembered by a cookie.

Gradio's own login would keep a name that anybody may type, and would not notice when the key is revoked. Here the
cookie stands for the key, and the key is looked up for every request, as the API does."""

import secrets
import time
from collections import OrderedDict
from urllib.parse import parse_qs

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.ui.tab import Viewer
from serving.api.auth import Caller, Keys
from serving.rate_limits import Bucket
from serving.ui.login_page import login_page

COOKIE = "bianlian-session"
MAX_SESSIONS = 10_000  # beyond, those that came first must log in again
MAX_FORM_BYTES = 8192
WRONG_KEYS_A_MINUTE = 10  # from one address


class Sessions:
    """Who has logged in since the server started."""

    def __init__(self, keys: Keys):
        self._keys = keys
        self._key_of: OrderedDict[str, str] = OrderedDict()  # by the cookie's value; "" while no key is wanted

    async def user(self, request: Request) -> str | None:
        """The name of the key behind a request, "" where none is wanted, None when it must log in first."""
        caller = await self._caller(request.cookies.get(COOKIE, ""))
        return caller.key if caller else None

    async def owner(self, request: Request) -> str | None:
        """As `user`, but one key's alone: a name can be given again."""
        caller = await self._caller(request.cookies.get(COOKIE, ""))
        return caller.id if caller else None

    async def viewer(self, request: gr.Request) -> Viewer:
        """Who is looking. A key revoked since the page was opened has no rights left."""
        caller = await self._caller(request.cookies.get(COOKIE, ""))
        return Viewer(caller.key, caller.admin) if caller else Viewer("", admin=False)

    async def _caller(self, cookie: str) -> Caller | None:
        caller = await self._keys.caller(self._key_of.get(cookie, ""))
        if caller is None and not await self._keys.configured():
            return Caller("", admin=True)
        return caller

    async def enter(self, key: str) -> str | None:
        """A new cookie's value; None for a wrong key."""
        return None if await self._keys.caller(key) is None else self._begin(key)

    async def welcome(self, request: Request) -> str | None:
        """A cookie's value for a browser that comes while no key is wanted, unless it has one."""
        known = request.cookies.get(COOKIE, "") in self._key_of
        return None if known or await self._keys.configured() else self._begin("")

    def promote(self, request: gr.Request, key: str) -> bool:
        """Log the browser that has just made the first key in with it: everybody needs one from then on. False when it
        has no session."""
        cookie = request.cookies.get(COOKIE, "")
        if self._key_of.get(cookie) != "":
            return False
        self._key_of[cookie] = key
        return True

    def leave(self, request: Request) -> None:
        self._key_of.pop(request.cookies.get(COOKIE, ""), None)

    def _begin(self, key: str) -> str:
        session = secrets.token_urlsafe(32)
        self._key_of[session] = key
        while len(self._key_of) > MAX_SESSIONS:
            self._key_of.popitem(last=False)
        return session


class WrongKeys:
    """How many wrong keys each address may still try."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, address: str) -> float:
        """Count one try. 0, or the seconds until there is one again."""
        now = time.monotonic()
        bucket = self._left.setdefault(address, Bucket(WRONG_KEYS_A_MINUTE, WRONG_KEYS_A_MINUTE, now))
        self._left.move_to_end(address)
        while len(self._left) > MAX_SESSIONS:
            self._left.popitem(last=False)
        if wait_s := bucket.seconds_until(1, now):
            return wait_s
        bucket.add(-1, now)
        return 0.0

    def give_back(self, address: str) -> None:
        """The key was right."""
        if bucket := self._left.get(address):
            bucket.add(1, time.monotonic())


class Login:
    """Shows the login instead of the page to those who must log in, takes their key, and lets them out. Pure ASGI."""

    def __init__(self, app: ASGIApp, sessions: Sessions):
        self.app = app
        self.sessions = sessions
        self.wrong_keys = WrongKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = (scope["method"], scope["path"].rstrip("/") or "/") if scope["type"] == "http" else None
        request = Request(scope, receive) if asked else None
        if request is None or asked not in (("GET", "/"), ("POST", "/login"), ("POST", "/logout")):
            await self.app(scope, receive, send)
        elif asked == ("POST", "/login"):
            await (await self._enter(request))(scope, receive, send)
        elif asked == ("POST", "/logout"):
            self.sessions.leave(request)
            reply = Response(status_code=204)
            reply.delete_cookie(COOKIE, httponly=True, samesite="lax")
            await reply(scope, receive, send)
        elif await self.sessions.user(request) is None:
            await login_page(request, 401)(scope, receive, send)
        else:
            await self.app(scope, receive, await self._welcoming(request, send))

    async def _enter(self, request: Request) -> Response:
        address = request.client.host if request.client else ""
        if wait_s := self.wrong_keys.take(address):
            return login_page(request, 429, "slow_down", wait_s)
        form = bytearray()
        async for chunk in request.stream():
            form += chunk
            if len(form) > MAX_FORM_BYTES:
                return login_page(request, 413, "wrong_key")
        key = parse_qs(form.decode("utf-8", "replace")).get("password", [""])[0]
        session = await self.sessions.enter(key.strip())
        if session is None:
            return login_page(request, 401, "wrong_key")
        self.wrong_keys.give_back(address)
        query = request.url.query
        reply = RedirectResponse(f"./?{query}" if query else ".", 303)
        _set_cookie(reply, request, session)
        return reply

    async def _welcoming(self, request: Request, send: Send) -> Send:
        session = await self.sessions.welcome(request)
        if session is None:
            return send
        cookie = Response()
        _set_cookie(cookie, request, session)

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("set-cookie", cookie.headers["set-cookie"])
            await send(message)

        return with_cookie


def _set_cookie(reply: Response, request: Request, session: str) -> None:
    reply.set_cookie(COOKIE, session, httponly=True, samesite="lax", secure=request.url.scheme == "https")
