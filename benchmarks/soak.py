"""Streaming clients that come, leave and dawdle for a while; then everything must be back where it was.

    python -m benchmarks.soak [--clients 200] [--seconds 120]

A third of the requests are left at a random moment, some clients read one byte a second. What the server holds is read
from /metrics before and after: memory, blocks, slots, leases, tasks, threads, file descriptors. Exit code 1 when
something has stayed, or when a request failed with anything but 429."""

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from adapters.settings import BUNDLED
from benchmarks.results import write_results
from benchmarks.server import Server

BASE = BUNDLED / "bianlian-mini"
QUESTIONS = ("你好，你是谁？", "给我讲一个短故事。", "今天天气真好，我们去哪里玩？", "我有点累，怎么办？", "春天来了。")
LEAVING = 1 / 3
DAWDLING = 1 / 20  # of the clients
BYTE_EVERY_S = 1.0
WARM_UP_S = 60.0
SETTLED_WITHIN_S = 30.0
# Memory counts once it has been written to, so blocks are few and steps short, and warming up sees every size. After
# it the server holds what it will hold: of memory the whole run is judged, part by part for who reads the figures.
PARTS = 4
MEMORY = "process_resident_memory_bytes"
KV_CACHE_GIB = "0.03"
MAX_STEP_TOKENS = 64
MAX_RUNNING = 32
MEMORY_SLACK = 32 << 20  # bytes; allocators keep some of what was once used
POOLED_THREADS = 4  # asyncio's pool for blocking calls grows to its size when it is needed, and stays
POOLED_FILES = 8  # connections to SQLite that a pool opens when it needs them, and keeps: two descriptors each
SLACK = {MEMORY: MEMORY_SLACK, "bianlian_threads": POOLED_THREADS, "process_open_fds": POOLED_FILES}
HELD = (
    MEMORY,
    "process_open_fds",
    "bianlian_asyncio_tasks",
    "bianlian_threads",
    "bianlian_leases",
    "bianlian_kv_blocks_used",
    "bianlian_requests_running",
    "bianlian_requests_waiting",
    "bianlian_http_requests_in_progress",
    "bianlian_adapters_held",
    "bianlian_adapters{tier=device}",
    "bianlian_adapters{tier=host}",
    "bianlian_adapter_memory_bytes{tier=host}",
)


@dataclass
class Outcome:
    """What the clients saw. `statuses` counts responses by status, `failures` what broke otherwise."""

    completed: int = 0
    left: int = 0
    dawdled: int = 0
    bytes_dawdled: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    ttft_s: list[float] = field(default_factory=list)

    @property
    def errors(self) -> dict[str, int]:
        """Everything that should not happen: a full queue may refuse, nothing else."""
        return {s: n for s, n in self.statuses.items() if s not in ("200", "429")} | dict(self.failures)


def held(url: str) -> dict[str, float]:
    """HELD, as the server tells it."""
    text = httpx.get(f"{url}/metrics", timeout=30).raise_for_status().text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return {name: found[name] for name in HELD}


async def settle(server: Server, start: dict[str, float] | None = None) -> dict[str, float]:
    """What is held once nothing runs any more and, given a `start`, nothing is held that was not; or in the end."""
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while True:
        server.send_signal(signal.SIGUSR1)
        now = await asyncio.to_thread(held, server.url)
        idle = now["bianlian_http_requests_in_progress"] == 1 and not now["bianlian_requests_running"]
        if time.monotonic() > deadline or (idle and not (start and stayed(start, now))):
            return now
        await asyncio.sleep(0.5)


def stayed(start: dict[str, float], end: dict[str, float]) -> dict[str, float]:
    """What is held beyond the start, less what is allowed."""
    return {name: end[name] - start[name] for name in HELD if end[name] - start[name] > SLACK.get(name, 0)}


async def load(url: str, models: list[str], clients: int, seconds: float, seed: int, outcome: Outcome) -> None:
    """`clients` at once until `seconds` are over; what they see is added to `outcome`."""
    until = time.monotonic() + seconds
    dawdlers = max(1, round(clients * DAWDLING))
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        await asyncio.gather(
            *(_dawdle(url, models, random.Random(f"{seed}/{n}"), until, outcome) for n in range(dawdlers)),
            *(_ask(http, models, random.Random(f"{seed}/{n}"), until, outcome) for n in range(dawdlers, clients)),
        )


async def _compute_every_size(url: str, model: str) -> None:
    """Steps of every number of tokens, and of every number of sequences."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        for tokens in range(1, MAX_STEP_TOKENS + 1):
            body = {"model": model, "prompt": [5] * tokens, "max_tokens": 1, "ignore_eos": True}
            (await http.post("/v1/completions", json=body)).raise_for_status()
        for sequences in range(2, MAX_RUNNING + 1):
            body = {"model": model, "prompt": [[5]] * sequences, "max_tokens": 3, "ignore_eos": True}
            (await http.post("/v1/completions", json=body)).raise_for_status()


def _body(models: list[str], dice: random.Random) -> dict[str, object]:
    return {
        "model": dice.choice(models),
        "messages": [{"role": "user", "content": dice.choice(QUESTIONS)}],
        "max_tokens": dice.randint(8, 64),
        "ignore_eos": True,
        "stream": True,
    }


async def _ask(http: httpx.AsyncClient, models: list[str], dice: random.Random, until: float, outcome: Outcome) -> None:
    """One client: asks again and again, reads to the end or leaves, by the dice."""
    while time.monotonic() < until:
        leaves_after_s = dice.expovariate(1.0) if dice.random() < LEAVING else None
        try:
            async with asyncio.timeout(leaves_after_s):
                await _read(http, _body(models, dice), outcome)
        except TimeoutError:
            outcome.left += 1
        except httpx.HTTPError as error:
            outcome.failures[type(error).__name__] += 1


async def _read(http: httpx.AsyncClient, body: dict[str, object], outcome: Outcome) -> None:
    asked = time.perf_counter()
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        outcome.statuses[str(reply.status_code)] += 1
        if reply.status_code != 200:
            await reply.aread()
            await asyncio.sleep(float(reply.headers.get("retry-after", 1)))
            return
        first, last = None, ""
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            last = line[6:]
            if first is None and '"content":""' not in last:
                first = time.perf_counter() - asked
                outcome.ttft_s.append(first)
            if last.startswith('{"error"'):
                outcome.failures[json.loads(last)["error"]["message"][:80]] += 1
        if last == "[DONE]":
            outcome.completed += 1
        else:
            outcome.failures["the stream ended without [DONE]"] += 1


async def _dawdle(url: str, models: list[str], dice: random.Random, until: float, outcome: Outcome) -> None:
    """One client that reads a byte a second to the end of the run, and then leaves what it has not read."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    content = json.dumps(_body(models, dice) | {"max_tokens": 400}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    try:
        while time.monotonic() < until and await reader.read(1):
            outcome.bytes_dawdled += 1
            await asyncio.sleep(BYTE_EVERY_S)
        outcome.dawdled += 1
    except OSError as error:
        outcome.failures[type(error).__name__] += 1
    finally:
        writer.transport.abort()


async def soak(
    server: Server, models: list[str], clients: int, seconds: float, *, warm_up_s: float = WARM_UP_S, seed: int = 0
) -> dict[str, object]:
    """The run and its figures; "stayed" and "errors" are empty when all is well."""
    await _compute_every_size(server.url, models[0])
    # Threads, buffers and allocators grow to their size.
    await load(server.url, models, clients, warm_up_s, seed - 1, Outcome())
    start = await settle(server)
    outcome = Outcome()
    settled = [start]
    for part in range(PARTS):
        await load(server.url, models, clients, seconds / PARTS, seed + part, outcome)
        settled.append(await settle(server, start))
    end = settled[-1]
    shown = {key: value for key, value in vars(outcome).items() if key != "ttft_s"}
    percentiles = statistics.quantiles(outcome.ttft_s, n=20) if len(outcome.ttft_s) > 1 else []
    return {
        "clients": clients,
        "seconds": seconds,
        "ttft_s": {"p50": percentiles[9], "p95": percentiles[18]} if percentiles else None,
        **shown,
        "errors": outcome.errors,
        "start": start,
        "end": end,
        "memory_mib": [round(then[MEMORY] / 2**20) for then in settled],
        "stayed": stayed(start, end),
    }


def soaked_server(home: Path) -> Server:
    environment = {
        "BIANLIAN_KV_CACHE_MEMORY": KV_CACHE_GIB,
        "BIANLIAN_MAX_BATCH_TOKENS": str(MAX_STEP_TOKENS),
        "BIANLIAN_MAX_RUNNING": str(MAX_RUNNING),
    }
    return Server(BASE, home, module="benchmarks.tidy_server", environment=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, help="write the figures here [benchmarks/results/soak.json]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, soaked_server(Path(home)) as server:
        models = [card["id"] for card in httpx.get(f"{server.url}/v1/models").json()["data"]]
        figures = asyncio.run(soak(server, models, options.clients, options.seconds, seed=options.seed))
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    print(f"written to {write_results('soak', figures, options.json)}")
    sys.exit(1 if figures["stayed"] or figures["errors"] else 0)


if __name__ == "__main__":
    main()
