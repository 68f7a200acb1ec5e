"""Methods, spellings and origins: what clients, monitors and browsers send besides the documented requests."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from starlette.types import Message, Receive, Scope, Send

from adapters.errors import Invalid
from adapters.settings import load_settings
from serving.api.paths import PathSpellings
from tests.serving.running import GREEDY, QUESTION, RunningServer, running_server, settings_for

PAGE = "https://app.example"


@pytest.fixture(scope="module")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    with running_server(settings_for(tiny_base, home, cors_origins=[PAGE], api_key=["user-key"])) as running:
        yield running
        running.assert_nothing_held()


def send(server: RunningServer, method: str, path: str, **headers: str) -> httpx.Response:
    keys = {"Authorization": "Bearer user-key"}
    return httpx.request(method, f"{server.url}{path}", headers=keys | headers, follow_redirects=False)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("PUT", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD, OPTIONS"),
        ("HEAD", "/v1/completions", "POST, OPTIONS"),
        ("POST", "/v1", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("PUT", "/ready", "GET, HEAD, OPTIONS"),
        ("DELETE", "/version", "GET, HEAD, OPTIONS"),
        ("POST", "/metrics", "GET, HEAD, OPTIONS"),
        ("GET", "/tokenize", "POST, OPTIONS"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(server: RunningServer, method: str, path: str, allow: str) -> None:
    reply = send(server, method, path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allow)
    assert method == "HEAD" or allow.split(",")[0] in reply.json()["error"]["message"]
    asked = send(server, "OPTIONS", path)
    assert (asked.status_code, asked.headers["allow"]) == (204, allow)


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_what_is_not_there_for_any_method_is_404(server: RunningServer, method: str) -> None:
    reply = send(server, method, "/v1/nothing")
    assert reply.status_code == 404 and reply.json()["error"]["message"] == "there is no endpoint /v1/nothing"


@pytest.mark.parametrize("path", ["/v1", "/v1/models", "/v1/models/tiny", "/health", "/ready", "/version"])
def test_head_is_get_without_the_body(server: RunningServer, path: str) -> None:
    got, head = send(server, "GET", path), send(server, "HEAD", path)
    assert got.status_code == head.status_code == 200
    assert head.content == b"" and head.headers["content-type"] == got.headers["content-type"]


def test_head_of_an_event_stream_ends_with_its_headers() -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "HEAD", "path": "/v1/fine_tuning/jobs/1/events"}
    asyncio.run(asyncio.wait_for(PathSpellings(endless)(scope, receive, send), timeout=10))
    assert [message.get("body") for message in sent] == [None, b""]


def test_head_needs_the_key_as_well(server: RunningServer) -> None:
    assert httpx.head(f"{server.url}/v1/models").status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/v1/", "/v1/models/", "/v1/models/tiny/", "/v1//", "/health/", "/ready/", "/version/", "/openapi.json/"],
)
def test_a_slash_at_the_end_changes_nothing(server: RunningServer, path: str) -> None:
    spelled, plain = send(server, "GET", path), send(server, "GET", path.rstrip("/"))
    assert spelled.status_code == plain.status_code == 200 and spelled.json() == plain.json()


def test_metrics_are_there_with_a_slash_too(server: RunningServer) -> None:
    reply = send(server, "GET", "/metrics/")  # its figures change from one request to the next
    assert reply.status_code == 200 and "# TYPE" in reply.text


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/tokenize/"])
def test_posting_with_a_slash_at_the_end_is_answered_without_a_redirect(server: RunningServer, path: str) -> None:
    body = {"model": "tiny", "messages": QUESTION} | (GREEDY if "chat" in path else {})
    headers = {"Authorization": "Bearer user-key"}
    reply = httpx.post(f"{server.url}{path}", json=body, headers=headers, follow_redirects=False)
    assert reply.status_code == 200


def test_a_base_url_without_v1_is_told_what_is_missing(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=server.url, api_key="user-key", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="end the client's base_url with /v1"):
        client.chat.completions.create(model="tiny", messages=QUESTION)


def preflight(server: RunningServer, origin: str, **headers: str) -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    return httpx.options(f"{server.url}/v1/chat/completions", headers=asked | headers)  # browsers send no key here


def test_a_configured_origin_may_call_from_a_browser(server: RunningServer) -> None:
    allowed = preflight(server, PAGE, **{"Access-Control-Request-Private-Network": "true"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"].lower()
    for headers in ({"Origin": PAGE}, {"Origin": PAGE, "Authorization": "Bearer wrong"}):
        reply = send(server, "GET", "/v1/models", **headers)
        assert reply.status_code == (401 if "Authorization" in headers else 200)
        assert reply.headers["access-control-allow-origin"] == PAGE, "a page may read errors too"
        assert reply.headers["access-control-expose-headers"] == "*"
        assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "https://app.example.evil.example", "http://app.example"])
def test_other_origins_are_refused(server: RunningServer, origin: str) -> None:
    refused = preflight(server, origin)
    assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-origin" not in send(server, "GET", "/v1/models", Origin=origin).headers


def test_without_configuration_no_origin_is_let_in(tiny_base: Path, tmp_path: Path) -> None:
    with running_server(settings_for(tiny_base, tmp_path)) as running:
        refused = preflight(running, PAGE)
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
        assert "access-control-allow-origin" not in send(running, "GET", "/v1/models", Origin=PAGE).headers


@pytest.mark.parametrize("origin", ["https://app.example/", "app.example", "https://*.example", "HTTPS://app.example"])
def test_what_no_browser_sends_as_origin_is_refused_at_start(origin: str) -> None:
    with pytest.raises(Invalid, match="is no origin; write"):
        load_settings(cors_origins=[origin])
