"""A server process that is asked to stop, and one that is killed, in the middle of streams: clients hear an event or
see the connection close, the disk stays whole, the next start is ready."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from adapters.store import AdapterStore
from tests.serving.running import QUESTION

READY_WITHIN_S = 120


class Process:
    def __init__(self, base: Path, home: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "server.log"
        command = [sys.executable, "-m", "app", "serve", "--base", str(base), "--port", str(self.port), "--no-ui"]
        command += [
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--kv-cache-memory",
            "0.05",
            "--log-format",
            "json",
            *options,
        ]
        environment = os.environ | {"BIANLIAN_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stderr=self.log.open("ab"), stdout=subprocess.DEVNULL)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        pytest.fail(f"not ready: {self.log.read_text()[-2000:]}")


@contextmanager
def serving(base: Path, home: Path, *options: str) -> Iterator[Process]:
    server = Process(base, home, *options)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


class Listener(threading.Thread):
    """Reads one stream to its end, however it ends."""

    def __init__(self, url: str, **body: object):
        super().__init__(daemon=True)
        self.url = url
        self.body = {
            "model": "face",
            "messages": QUESTION,
            "stream": True,
            "ignore_eos": True,
            "temperature": 0,
            **body,
        }
        self.begun = threading.Event()
        self.events: list[str] = []
        self.cut = False
        self.start()
        assert self.begun.wait(30)

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=self.body, timeout=60) as reply:
                for line in reply.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line[6:])
                    if '"content":"' in line.replace('"content":""', ""):
                        self.begun.set()
        except httpx.TransportError:
            self.cut = True


LONG = {"max_tokens": 480, "n": 16, "logprobs": True, "top_logprobs": 20}  # some seconds, sixteen answers at once


def test_asked_to_stop_it_refuses_new_work_and_ends_what_runs_killed_it_leaves_the_disk_whole(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    store = AdapterStore(tmp_path / "store")
    first, second = store.publish(tiny_adapters["r2"], "face"), store.publish(tiny_adapters["r8"], "face")

    with serving(tiny_base, tmp_path, "--drain-seconds", "1") as server:
        short, long = Listener(server.url, max_tokens=8), Listener(server.url, **LONG)
        server.process.send_signal(signal.SIGTERM)
        refused = refused_request(server)
        short.join(30)
        long.join(30)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "unavailable" and refused.headers["x-request-id"]
        assert server.process.wait(30) == -signal.SIGTERM
        assert not short.cut and short.events[-1] == "[DONE]" and '"finish_reason":"length"' in short.events[-2]
        assert not long.cut and "shutting down" in json.loads(long.events[-2])["error"]["message"]
    logged = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    ended = [line for line in logged if line["message"] == "request" and line["endpoint"] == "/v1/chat/completions"]
    assert {line["status"] for line in ended} == {200, 503}
    assert any("error" in line.get("finish_reason", "") for line in ended)
    assert not [line for line in logged if line["level"] in ("error", "critical")], logged

    with serving(tiny_base, tmp_path) as server:
        streams = [Listener(server.url, **LONG), Listener(server.url, **LONG)]
        store.rollback("face")  # the name moves while answers run on what it meant
        server.process.kill()
        for stream in streams:
            stream.join(30)
            assert stream.cut and stream.events[-1] != "[DONE]"
    store = AdapterStore(tmp_path / "store")
    for version in (first, second):
        store.verify(store.version("face", version.number))
    assert store.current("face").digest == first.digest
    assert not re.findall(r"\.(?:incoming|current)-", " ".join(os.listdir(tmp_path / "store" / "face")))

    with serving(tiny_base, tmp_path) as server:
        body = {"model": "face", "messages": QUESTION, "max_tokens": 3}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert reply.status_code == 200 and reply.headers["x-bianlian-adapter"] == "face@1"


def refused_request(server: Process) -> httpx.Response:
    """The first that is refused; a signal takes a moment to arrive."""
    while True:
        body = {"model": "face", "messages": QUESTION, "max_tokens": 1}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
        if reply.status_code != 200:
            return reply
