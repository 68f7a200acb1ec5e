"""One line a request: what it says, what it never says, and the id that ties it to the caller and the engine."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.logs import JsonFormatter, TextFormatter
from tests.serving.running import GREEDY, RunningServer, running_server, settings_for

SECRET = "天王盖地虎"
KEY = "sk-very-secret"
HEADERS = {"authorization": f"Bearer {KEY}"}


class Lines(logging.Handler):
    """Collects what a formatter makes of every line."""

    def __init__(self, formatter: logging.Formatter):
        super().__init__()
        self.lines: list[str] = []
        self.arrived = threading.Condition()
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        with self.arrived:
            self.lines.append(self.format(record))
            self.arrived.notify_all()


@pytest.fixture(scope="module")
def server(tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    home = tmp_path_factory.mktemp("home")
    settings = settings_for(tiny_base, home, adapter=[f"r8={tiny_adapters['r8']}"], api_key=[KEY])
    with running_server(settings) as running:
        yield running


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Of the whole server, as JSON."""
    handler, root = Lines(JsonFormatter()), logging.getLogger()
    serving = logging.getLogger("serving")
    level = serving.level
    serving.setLevel(logging.INFO)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    serving.setLevel(level)


def ask(server: RunningServer, headers: dict[str, str] = {}, **body: object) -> httpx.Response:  # noqa: B006
    sent = {"model": "r8", "messages": [{"role": "user", "content": SECRET}], **GREEDY, **body}
    return httpx.post(f"{server.url}/v1/chat/completions", json=sent, headers=HEADERS | headers)


def requests_in(lines: Lines, count: int) -> list[dict]:
    """So many request lines; a request's is written a moment after its client has read the answer."""

    def found() -> list[dict]:
        return [line for text in lines.lines if (line := json.loads(text))["message"] == "request"]

    with lines.arrived:
        lines.arrived.wait_for(lambda: len(found()) >= count, timeout=10)
        return found()


def test_a_request_is_one_line_with_its_figures_and_nothing_secret(server: RunningServer, lines: Lines) -> None:
    reply = ask(server, {"x-request-id": "app-7:1"}, n=2)
    assert reply.headers["x-request-id"] == "app-7:1"
    [line] = requests_in(lines, 1)
    usage = reply.json()["usage"]
    assert line["id"] == "app-7:1" and line["status"] == 200 and line["endpoint"] == "/v1/chat/completions"
    assert line["model"] == "r8" and line["adapter"] == "r8@1" and line["answers"] == 2
    assert line["completion_tokens"] == usage["completion_tokens"] and line["prompt_tokens"] >= usage["prompt_tokens"]
    assert 0 < line["ttft_s"] <= line["duration_s"] and line["finish_reason"] == "length"
    assert line["key"] and KEY not in "".join(lines.lines) and SECRET not in "".join(lines.lines)


def test_a_stream_is_logged_when_it_has_ended(server: RunningServer, lines: Lines) -> None:
    ask(server, stream=True)
    [line] = requests_in(lines, 1)
    assert line["completion_tokens"] == 24 and line["finish_reason"] == "length"


def test_errors_are_logged_with_their_code_and_carry_an_id(server: RunningServer, lines: Lines) -> None:
    replies = [
        ask(server, model="no-such"),
        ask(server, {"authorization": "Bearer wrong"}),
        ask(server, surprise=1),
        httpx.post(f"{server.url}/v1/chat/completions", content=b"x" * (5 << 20), headers=HEADERS),
        httpx.get(f"{server.url}/v1/nothing", headers=HEADERS),
    ]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert len(set(ids)) == 5
    found = [(line["id"], line["status"], line["error"]) for line in requests_in(lines, 5)]
    codes = ["model_not_found", "invalid_api_key", "unsupported_parameter", "request_too_large", "not_found_error"]
    assert found == list(zip(ids, [404, 401, 400, 413, 404], codes, strict=True))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_path_with_a_name_in_it_is_logged_by_its_pattern(server: RunningServer, lines: Lines, method: str) -> None:
    httpx.request(method, f"{server.url}/v1/models/r8/", headers=HEADERS)
    [line] = requests_in(lines, 1)
    assert (line["method"], line["endpoint"], line["status"]) == (method, "/v1/models/{model_id:path}", 200)


@pytest.mark.parametrize("sent", ["", "two words", "x" * 129, 'a"b', "天"])
def test_an_id_that_is_not_sane_is_replaced(server: RunningServer, sent: str) -> None:
    reply = httpx.get(f"{server.url}/health", headers={"x-request-id": sent.encode()})
    assert reply.headers["x-request-id"] not in ("", sent) and len(reply.headers["x-request-id"]) == 32


def test_an_unexpected_error_is_a_500_with_an_id_and_a_traceback_in_the_log(
    server: RunningServer, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(server.services.chat, "default_params", fails)
    reply = ask(server, {"x-request-id": "unlucky"})
    assert reply.status_code == 500 and reply.headers["x-request-id"] == "unlucky"
    assert "luck" not in reply.text.replace("unlucky", "")
    logged = [json.loads(line) for line in lines.lines]
    assert any("no such luck" in line.get("exception", "") and line["id"] == "unlucky" for line in logged)
    assert requests_in(lines, 1)[0]["error"] == "internal_error"


def test_the_engines_error_lines_name_the_callers_request(
    server: RunningServer, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.services.engine.engine

    def fails(batch: object) -> None:
        raise RuntimeError("a step broke")

    monkeypatch.setattr(engine.runner, "run", fails)
    reply = ask(server, {"x-request-id": "in-the-step"})
    assert reply.status_code == 500 and "a step broke" in reply.json()["error"]["message"]
    logged = [json.loads(line) for line in lines.lines]
    assert any("engine step failed" in line["message"] and "in-the-step/" in line["message"] for line in logged)


def test_two_requests_may_send_the_same_id(server: RunningServer) -> None:
    replies: list[httpx.Response] = []
    senders = [
        threading.Thread(target=lambda: replies.append(ask(server, {"x-request-id": "same"}, max_tokens=100)))
        for _ in range(4)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert [reply.status_code for reply in replies] == [200] * 4
    assert len({reply.json()["choices"][0]["message"]["content"] for reply in replies}) == 1


def test_text_lines_stay_lines() -> None:
    record = logging.LogRecord("serving.api", logging.INFO, "", 0, "request", (), None)
    record.fields = {"endpoint": "/v1/x", "odd": 'a\nb "c"', "duration_s": 0.123456, "none": None, "empty": ""}
    line = TextFormatter().format(record)
    assert line.endswith('INFO serving.api: request endpoint=/v1/x odd="a\\nb \\"c\\"" duration_s=0.1235 empty=""')
    assert "\n" not in line
