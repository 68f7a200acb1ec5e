"""Who is at the page: a login with an API key, remembered by a cookie.

Gradio's own login would keep a name that anybody may type, and would not notice when the key is revoked. Here the
cookie stands for the key, and the key is looked up for every request, as the API does."""

import secrets
from collections import OrderedDict
from urllib.parse import parse_qs

import gradio as gr
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.ui.tab import Viewer
from serving.api.auth import Caller, Keys
from serving.ui.texts import LINES

COOKIE = "bianlian-session"
MAX_SESSIONS = 10_000  # beyond, those that came first must log in again
MAX_FORM_BYTES = 8192

_PAGE = """<!doctype html><html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Bianlian</title><style>:root {{ color-scheme: light dark }} body {{ font: 16px system-ui, sans-serif;
display: grid; place-items: center; min-height: 90vh }} form {{ display: grid; gap: .8rem; width: min(22rem, 90vw) }}
input, button {{ font: inherit; padding: .6rem }}</style></head><body><form method="post" action="login">
<h1>变脸 Bianlian</h1><label for="key">{asks}</label>
<input id="key" name="password" type="password" autocomplete="current-password" required autofocus>
<p role="alert">{trouble}</p><button>{enter}</button></form></body></html>"""


class Sessions:
    """Who has logged in since the server started."""

    def __init__(self, keys: Keys):
        self._keys = keys
        self._key_of: OrderedDict[str, str] = OrderedDict()  # by the cookie's value

    async def user(self, request: Request) -> str | None:
        """The name of the key behind a request, "" where none is wanted, None when it must log in first."""
        caller = await self._caller(request.cookies.get(COOKIE, ""))
        return caller.key if caller else None

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
        if await self._keys.caller(key) is None:
            return None
        session = secrets.token_urlsafe(32)
        self._key_of[session] = key
        while len(self._key_of) > MAX_SESSIONS:
            self._key_of.popitem(last=False)
        return session


class Login:
    """Shows the login instead of the page to those who must log in, and takes their key. Pure ASGI."""

    def __init__(self, app: ASGIApp, sessions: Sessions):
        self.app = app
        self.sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) not in (("GET", "/"), ("POST", "/login")):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        if scope["method"] == "POST":
            await (await self._enter(request))(scope, receive, send)
        elif await self.sessions.user(request) is None:
            await _page(401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _enter(self, request: Request) -> Response:
        form = bytearray()
        async for chunk in request.stream():
            form += chunk
            if len(form) > MAX_FORM_BYTES:
                return _page(413)
        key = parse_qs(form.decode("utf-8", "replace")).get("password", [""])[0]
        session = await self.sessions.enter(key.strip())
        if session is None:
            return _page(401, " / ".join(LINES["wrong_key"]))
        reply = RedirectResponse(".", 303)
        secure = request.url.scheme == "https"
        reply.set_cookie(COOKIE, session, httponly=True, samesite="lax", secure=secure)
        return reply


def _page(status: int, trouble: str = "") -> HTMLResponse:
    asks, enter = (" / ".join(LINES[name]) for name in ("login", "enter"))
    return HTMLResponse(_PAGE.format(asks=asks, enter=enter, trouble=trouble), status)
