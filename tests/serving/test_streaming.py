"""Streams among real clients: raw sockets that wait, stall, leave at the worst moment; and a server that stops."""

import asyncio
import errno
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import app
from serving.api import streaming
from serving.async_engine import MAX_UNREAD
from serving.engine.sequence import TokenDelta
from tests.serving.running import QUESTION, RunningServer, running_server, settings_for

LONG = {"model": "tiny", "messages": QUESTION, "ignore_eos": True, "max_tokens": 480, "temperature": 0}


@pytest.fixture(scope="module")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(settings_for(tiny_base, tmp_path_factory.mktemp("home"))) as running:
        yield running
        running.assert_nothing_held()


def connect(server: RunningServer, path: str = "/v1/chat/completions", **body: object) -> socket.socket:
    """A connection on which a request has just been sent."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return client


def read_until(client: socket.socket, text: bytes, limit: int = 1 << 24) -> bytes:
    found = b""
    while text not in found and len(found) < limit and (part := client.recv(65536)):
        found += part
    return found


class Gate:
    """Lets the engine's thread make a step only when told to."""

    def __init__(self, server: RunningServer):
        self.engine = server.services.engine
        self.entered, self._go = threading.Event(), threading.Event()

    def __enter__(self) -> "Gate":
        self.engine.post(lambda: (self.entered.set(), self._go.wait(30)))
        assert self.entered.wait(10)
        return self

    def open(self) -> None:
        self._go.set()

    def __exit__(self, *_: object) -> None:
        self.open()


def wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_accepted_connections_send_at_once_and_give_up_a_client_that_reads_no_more() -> None:
    with app.listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                unread_ms = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert unread_ms == app.STALLED_MS > 1000 * streaming.STALLED_AFTER_S


def test_a_connection_nobody_reads_is_ended_by_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "STALLED_MS", 1)
    with app.listen("127.0.0.1", 0) as listening, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            accepted.settimeout(30)
            with pytest.raises(TimeoutError) as ended:
                while True:
                    accepted.send(bytes(65536))
    assert ended.value.errno == errno.ETIMEDOUT, "ended by the system, not by our own waiting"


@pytest.mark.parametrize(
    ("path", "extra", "answers"),
    [
        ("/v1/chat/completions", {"stream": True}, 1),
        ("/v1/chat/completions", {"stream": True, "n": 3}, 3),
        ("/v1/completions", {"stream": True}, 1),
        ("/v1/compare", {"lanes": [{"model": "tiny"}, {"model": "tiny"}]}, 2),
    ],
)
def test_a_client_that_leaves_before_the_first_byte_is_computed_no_further(
    server: RunningServer, path: str, extra: dict, answers: int
) -> None:
    """Its answer is submitted, and the first byte waits for a transport that is full, when the client leaves: nobody
    has begun to read the answer, so nobody stops reading it."""
    engine = server.services.engine
    body = {**LONG, **extra}
    if path == "/v1/completions":
        body["prompt"] = body.pop("messages")[0]["content"]
    if path == "/v1/compare":
        del body["model"]
    before = engine.figures.ended.copy()

    async def request() -> None:
        sent = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        sending = asyncio.Event()

        async def receive() -> dict:
            if sent:
                return sent.pop()
            await sending.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            assert message["type"] == "http.response.start" and message["status"] == 200
            sending.set()
            await asyncio.Event().wait()

        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "root_path": ""}
        scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http", "http_version": "1.1"}
        await server.server.config.loaded_app(scope, receive, send)

    with Gate(server) as gate:
        asyncio.run(request())
        gate.open()
    wait_for(lambda: engine.figures.ended.total() == before.total() + answers, "the answers have not ended")
    assert engine.figures.ended - before == {"abort": answers}
    server.assert_nothing_held()


def test_a_client_that_leaves_while_it_waits_is_never_computed(server: RunningServer) -> None:
    engine = server.services.engine
    before = engine.engine.step_s.sum, engine.figures.ended["abort"]
    with Gate(server) as gate:
        client = connect(server, **LONG, stream=True)
        assert b"text/event-stream" in read_until(client, b"\r\n\r\n")
        client.close()
        wait_for(lambda: engine._inbox.qsize() >= 2, "the abort was not sent")
        gate.open()
    wait_for(lambda: engine.figures.ended["abort"] == before[1] + 1, "the answer was not aborted")
    assert engine.engine.step_s.sum == before[0]


def test_a_client_that_leaves_in_the_middle_frees_its_blocks(server: RunningServer) -> None:
    engine = server.services.engine
    step = engine.engine.step
    pace = threading.Event()
    engine.engine.step = lambda: (pace.wait(0.005), step())[1]  # type: ignore[method-assign]
    before = engine.figures.ended["abort"]
    try:
        client = connect(server, **LONG, stream=True)
        read_until(client, b'"content"')
        client.close()
        server.assert_nothing_held()
        wait_for(lambda: engine.figures.ended["abort"] == before + 1, "the answer was not aborted")
    finally:
        del engine.engine.step


def test_a_waiting_stream_hears_comments(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.02)
    with Gate(server) as gate:
        client = connect(server, **LONG, stream=True)
        heard = read_until(client, b": keep-alive\n\n")
        assert b": keep-alive\n\n" in heard and b'"content":"' not in heard.replace(b'"content":""', b"")
        gate.open()
        assert b"data: [DONE]" in read_until(client, b"[DONE]")
        client.close()


def test_a_reader_that_stalls_blocks_nobody_and_is_buffered_within_bounds(server: RunningServer) -> None:
    """The answer is many times larger than what the transport may hold; the engine does not wait for its reader."""
    engine = server.services.engine
    big = {**LONG, "n": 4, "logprobs": True, "top_logprobs": 20, "stream": True}
    [listening] = server.server.servers[0].sockets
    kernel_buffer = listening.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # or the kernel would hold the whole answer
    slow = connect(server, **big)
    events = read_until(slow, b"\r\n\r\n", limit=64)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_buffer // 2)  # which Linux doubles
    wait_for(lambda: engine.figures.ended["length"] and not engine.busy, "the engine waited for the reader")
    server.assert_nothing_held()
    other = httpx.post(f"{server.url}/v1/chat/completions", json={**LONG, "max_tokens": 5})
    assert other.status_code == 200
    buffered = [c.transport.get_write_buffer_size() for c in server.server.server_state.connections]
    assert 0 < max(buffered) < 1 << 17  # the transport's high-water mark and one event
    events += read_until(slow, b"[DONE]")
    slow.close()
    assert len(events) > 2 << 20
    chunks = [json.loads(line[6:]) for line in re.findall(rb"data: \{.*\}", events)]
    counted = [len((c.get("logprobs") or {}).get("content") or ()) for chunk in chunks for c in chunk["choices"]]
    assert sum(counted) == 4 * 480  # every token arrives all the same
    assert max(counted) > MAX_UNREAD  # and what was not read in time in few large events


def test_a_failure_after_the_first_byte_is_an_event_and_ends_the_stream(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.api.reply import Choice

    def fails(self: Choice, delta: TokenDelta) -> None:
        raise RuntimeError("our own bug")

    monkeypatch.setattr(Choice, "take", fails)
    client = connect(server, **LONG, stream=True)
    events = read_until(client, b"[DONE]")
    client.close()
    lines = re.findall(rb"data: (.*)\n", events)
    assert json.loads(lines[-2])["error"]["code"] == "internal_error" and b"our own bug" not in events
    assert lines[-1] == b"[DONE]"
    server.assert_nothing_held()


def test_asked_to_stop_a_server_refuses_new_work_while_answers_end_and_a_second_time_ends_them(
    tiny_base: Path, tmp_path: Path
) -> None:
    with running_server(settings_for(tiny_base, tmp_path, drain_seconds=600)) as running:
        paced = threading.Event()
        step = running.services.engine.engine.step
        running.services.engine.engine.step = lambda: (paced.wait(0.05), step())[1]  # type: ignore[method-assign]
        stream = connect(running, **LONG, stream=True)
        heard = read_until(stream, b'"delta":{"content":"')
        running.server.handle_exit(signal.SIGTERM, None)
        refused = httpx.post(f"{running.url}/v1/chat/completions", json=LONG)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{running.url}/ready").status_code == 503
        assert httpx.get(f"{running.url}/health").status_code == 200
        heard += stream.recv(65536)  # it goes on
        running.server.handle_exit(signal.SIGTERM, None)
        lines = re.findall(rb"data: (.*)\n", heard + read_until(stream, b"[DONE]"))
        assert "shutting down" in json.loads(lines[-2])["error"]["message"] and lines[-1] == b"[DONE]"
        wait_for(lambda: running.server.should_exit, "the server did not end")
