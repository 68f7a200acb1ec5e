"""Who may do what at the page: logging in and out, one's own events and nobody else's, no right outlives its key."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from adapters.aliases import Alias, AliasTarget
from adapters.settings import Settings
from adapters.ui.tab import Viewer
from serving.api.auth import Keys
from serving.database.database import Database
from serving.keys import KeyStore
from serving.rate_limits import RateLimiter
from serving.ui import owners
from serving.ui.login import COOKIE, WRONG_KEYS_A_MINUTE, Login, Sessions
from serving.ui.owners import Owners
from tests import tiny
from tests.ui.browser import Server, assert_nothing_runs, start
from tests.ui.events import PageClient, in_loop, said_in, succeeded

ADMIN = "an-admin-key"
USER = "a-user-key"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose answers are long enough to be cut, with a user key, an admin key and one adapter."""
    root = tmp_path_factory.mktemp("keyed")
    base = tiny.save_base(root / "slow", layers=4, hidden=128)
    adapter = tiny.save_adapter(root / "face", base, rank=4, seed=1)
    settings = Settings(
        home=root / "home",
        base=str(base),
        device="cpu",
        dtype="float32",
        kv_cache_memory=0.1,
        adapter=[f"face={adapter}"],
        api_key=[USER],
        admin_key=ADMIN,
    )
    running = start(settings)
    yield running
    running.close()


@asynccontextmanager
async def logged_in(server: Server, key: str) -> AsyncIterator[PageClient]:
    """A page of whoever has `key`."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        answer = await http.post("/login", data={"password": key})
        assert answer.status_code == 303, answer.text
        page = PageClient(http)
        await page.open()
        yield page


# Logging in: the real middleware and key store, in front of a page of one word.


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Callable[..., httpx.AsyncClient]]:
    database = Database(f"sqlite:///{tmp_path}/keys.db")
    store = KeyStore(database)
    sessions = Sessions(Keys(Settings(home=tmp_path), store, RateLimiter()))

    async def page(request: Any) -> PlainTextResponse:
        return PlainTextResponse("inside")

    app = Starlette(routes=[Route("/", page)])
    app.add_middleware(Login, sessions=sessions)
    app.state.store, app.state.sessions = store, sessions

    def client(url: str = "http://studio.test", address: str = "10.0.0.1") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 1))
        made = httpx.AsyncClient(transport=transport, base_url=url)
        made.store = store  # type: ignore[attr-defined]
        return made

    yield client
    database.close()


@in_loop
async def test_a_key_opens_the_page_until_the_visitor_logs_out(door: Callable[..., httpx.AsyncClient]) -> None:
    async with door() as visitor:
        assert (await visitor.get("/")).text == "inside"  # no key was ever made
        _, key = visitor.store.create("guest")
        refused = await visitor.get("/?tab=chat", headers={"accept-language": "en"})
        assert refused.status_code == 401 and "Access key" in refused.text and 'action="login?tab=chat"' in refused.text
        assert "访问密钥" in (await visitor.get("/", headers={"cookie": "bianlian-language=zh-CN"})).text
        entered = await visitor.post("/login?tab=chat", data={"password": f" {key} "})
        assert entered.status_code == 303 and entered.headers["location"] == "./?tab=chat"
        assert (await visitor.get("/")).text == "inside"
        session = visitor.cookies[COOKIE]
        assert (await visitor.post("/logout")).status_code == 204
        assert COOKIE not in visitor.cookies
        assert (await visitor.get("/", headers={"cookie": f"{COOKIE}={session}"})).status_code == 401


@in_loop
async def test_a_revoked_key_opens_nothing(door: Callable[..., httpx.AsyncClient]) -> None:
    async with door() as visitor:
        _, key = visitor.store.create("guest")
        await visitor.post("/login", data={"password": key})
        assert (await visitor.get("/")).status_code == 200
        visitor.store.revoke("guest")
        assert (await visitor.get("/")).status_code == 401
        assert (await visitor.post("/login", data={"password": key})).status_code == 401


@in_loop
async def test_the_cookie_is_for_this_server_and_for_no_script(door: Callable[..., httpx.AsyncClient]) -> None:
    async with door("https://studio.test") as visitor:
        _, key = visitor.store.create("guest")
        cookie = (await visitor.post("/login", data={"password": key})).headers["set-cookie"].lower()
        assert key.lower() not in cookie
        assert {"httponly", "samesite=lax", "secure", "path=/"} <= {part.strip() for part in cookie.split(";")}


@in_loop
async def test_guessing_is_slowed_down_by_address(door: Callable[..., httpx.AsyncClient]) -> None:
    async with door() as guesser, door(address="10.0.0.2") as other:
        _, key = guesser.store.create("guest")
        for _ in range(3):  # right keys do not count
            assert (await guesser.post("/login", data={"password": key})).status_code == 303
        guesses = [guesser.post("/login", data={"password": f"guess {n}"}) for n in range(WRONG_KEYS_A_MINUTE + 5)]
        answers = [answer.status_code for answer in await asyncio.gather(*guesses)]
        assert sorted(answers) == [401] * WRONG_KEYS_A_MINUTE + [429] * 5
        refused = await guesser.post("/login", data={"password": key}, headers={"accept-language": "en"})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert "Too many wrong keys" in refused.text
        assert (await other.post("/login", data={"password": key})).status_code == 303


@in_loop
async def test_who_makes_the_first_key_stays_in(door: Callable[..., httpx.AsyncClient]) -> None:
    async with door() as first, door() as other:
        for visitor in (first, other):
            assert (await visitor.get("/")).status_code == 200 and visitor.cookies[COOKIE]
        _, key = first.store.create("me", admin=True)
        sessions = first._transport.app.state.sessions  # type: ignore[attr-defined]
        request = Request({"type": "http", "headers": [(b"cookie", f"{COOKIE}={first.cookies[COOKIE]}".encode())]})
        assert sessions.promote(request, key)
        assert not sessions.promote(request, key), "a session is given a key once"
        assert (await first.get("/")).status_code == 200
        assert (await other.get("/")).status_code == 401
        assert await sessions.viewer(request) == Viewer("me", admin=True)


def test_an_id_is_for_whoever_used_it_first() -> None:
    known = Owners(limit=2)
    assert known.claim("a", "anna") and known.claim("a", "anna") and not known.claim("a", "ben")
    assert known.claim("b", "") and known.claim("b", "ben") and not known.claim("b", "anna")
    assert known.claim("a", "anna") and known.claim("c", "ben")  # "b" is the one unused longest
    assert not known.claim("a", "ben") and known.claim("b", "anna")


# The whole server.


def test_nobody_reaches_gradios_routes_without_logging_in(keyed: Server) -> None:
    with httpx.Client(base_url=keyed.url) as stranger:
        asked = [
            stranger.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "x"}),
            stranger.get("/gradio_api/queue/data", params={"session_hash": "x"}),
            stranger.post("/gradio_api/cancel", json={"session_hash": "x", "fn_index": 0, "event_id": "x"}),
            stranger.post("/gradio_api/run/predict", json={"data": [], "fn_index": 0}),
            stranger.get("/gradio_api/heartbeat/x"),
            stranger.post("/gradio_api/upload", files={"files": ("a.txt", b"a")}),
            stranger.get("/gradio_api/info"),
            stranger.get("/config"),
        ]
        assert [answer.status_code for answer in asked] == [401] * len(asked)


@in_loop
async def test_routes_that_the_page_does_not_use_are_closed(keyed: Server) -> None:
    async with logged_in(keyed, ADMIN) as page:
        for method, path in (
            ("POST", "/gradio_api/call/ask"),
            ("POST", "/gradio_api/call/v2/ask"),
            ("GET", "/gradio_api/call/ask/0"),
            ("POST", "/gradio_api/api/predict"),
            ("POST", "/gradio_api/component_server"),
            ("POST", "/gradio_api/stream/0"),
            ("POST", "/gradio_api/process_recording"),
            ("POST", "/gradio_api/vibe-edit"),
            ("GET", "/gradio_api/deep_link"),
            ("GET", "/gradio_api/queue/status"),
            ("GET", "/monitoring"),
            ("GET", "/monitoring/summary"),
            ("GET", "/docs"),
            ("GET", "/redoc"),
        ):
            answer = await page.http.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code == 404, path
            assert "cdn" not in answer.text


@in_loop
async def test_a_page_elsewhere_can_neither_read_nor_send(keyed: Server) -> None:
    async with logged_in(keyed, USER) as page:
        elsewhere = {"origin": "https://elsewhere.example", "host": "studio.example"}
        for path in ("/", "/config", "/gradio_api/info", "/theme.css"):
            answer = await page.http.get(path, headers=elsewhere)
            assert "access-control-allow-origin" not in answer.headers, path
            assert "access-control-allow-credentials" not in answer.headers, path
        for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/login", "/logout"):
            for site in ("cross-site", "same-site"):
                answer = await page.http.post(path, headers={"sec-fetch-site": site})
                assert answer.status_code == 403, path
        assert (await page.http.get("/config")).status_code == 200, "it was logged out all the same"


def long_question(page: PageClient) -> tuple[dict[str, Any], list[Any]]:
    event = page.event("compare-send")
    return event, page.data_of(event, {"compare-question": "one two three", "max-tokens": 400})


@in_loop
async def test_another_users_results_are_not_given_away_and_not_stopped(keyed: Server) -> None:
    async with logged_in(keyed, USER) as anna, logged_in(keyed, ADMIN) as ben:
        event, data = long_question(anna)
        event_id = (await anna.join(event, data)).json()["event_id"]
        stolen = await ben.http.get("/gradio_api/queue/data", params={"session_hash": anna.session})
        assert stolen.status_code == 404 and "one two" not in stolen.text
        for session in (anna.session, ben.session):
            body = {"session_hash": session, "fn_index": event["id"], "event_id": event_id}
            assert (await ben.http.post("/gradio_api/cancel", json=body)).status_code == 404
        assert (await ben.join(event, data, session=anna.session)).status_code == 404
        body = {"data": [], "fn_index": 0, "session_hash": anna.session}
        assert (await ben.http.post("/gradio_api/run/predict", json=body)).status_code == 404
        assert (await ben.http.get(f"/gradio_api/heartbeat/{anna.session}")).status_code == 404
        assert succeeded([message async for message in anna.messages()])
    assert_nothing_runs(keyed)


@pytest.mark.parametrize("how", ["revoked", "logged out"])
def test_answers_stop_when_the_session_ends(keyed: Server, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(owners, "RECHECK_S", 0.02)
    store = KeyStore(keyed.services.database)
    _, key = store.create(f"guest who is {how}")

    @in_loop
    async def ask() -> list[dict[str, Any]]:
        async with logged_in(keyed, key) as page:
            await page.join(*long_question(page))
            messages = page.messages()
            seen = [await anext(messages)]
            while seen[-1]["msg"] != "process_generating":
                seen.append(await anext(messages))
            if how == "revoked":
                await asyncio.to_thread(store.revoke, f"guest who is {how}")
            else:
                await page.http.post("/logout")
            return [*seen, *[message async for message in messages]]

    seen = ask()
    assert seen[-1]["msg"] == "unexpected_error" and "Your session has ended" in seen[-1]["message"]
    assert not any(message["msg"] == "process_completed" for message in seen)
    assert_nothing_runs(keyed)


@in_loop
async def test_whatever_event_a_user_sends_changes_nothing_of_the_admins(keyed: Server) -> None:
    store, chat = KeyStore(keyed.services.database), keyed.services.chat
    prefix = store.create("somebody")[0].prefix
    chat.aliases.put(Alias(name="shared", targets=[AliasTarget(model="face")]), chat.registry)

    def of_the_admins() -> object:
        home = keyed.services.settings.root
        jobs = sorted(path.name for path in (home / "runs").glob("*")) if (home / "runs").is_dir() else []
        return store.all(), [str(version) for version in chat.registry.versions()], chat.aliases.all(), jobs

    before = of_the_admins()
    async with logged_in(keyed, USER) as page:
        for event in page.events:
            if not event["backend_fn"]:
                continue
            data = page.data_of(event, {"key-name": "mine", "key-scope": "admin", "key-asked": "somebody"})
            joined = await page.join(event, data)
            if joined.status_code == 200:
                said = said_in([message async for message in page.messages()])
                assert str(keyed.services.settings.root) not in said, event
                assert prefix not in said, event
    assert of_the_admins() == before
    chat.aliases.delete("shared")


@in_loop
async def test_an_admin_makes_and_revokes_keys_at_the_page(keyed: Server) -> None:
    store = KeyStore(keyed.services.database)
    async with logged_in(keyed, ADMIN) as page:
        made = await page.run(page.event("key-create"), key_name="ship's cook", key_rpm=30, key_expires=7)
        assert succeeded(made), made
        [key] = [key for key in store.all() if key.name == "ship's cook"]
        assert (key.admin, key.requests_per_minute, key.tokens_per_minute) == (False, 30, None) and key.expires_at
        text = next(
            part for part in json.dumps(made).split('"') if part.startswith(f"{key.prefix}-") and len(part) > 50
        )
        assert store.find(text) == key
        again = said_in(await page.run(page.event("key-create"), key_name="ship's cook"))
        assert "already" in again and "revoke it first" in again
        assert succeeded(await page.run(page.event("key-really"), key_asked="ship's cook"))
        assert store.find(text) is None
