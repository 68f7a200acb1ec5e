"""Serving and training on one machine: eight clients chat while two jobs wait and run.

The jobs are queued through the fine-tuning API of the server that answers the clients, on the base it holds. Rounds of
the clients with training and with it stopped alternate. Reported together: tokens a second of the answers and of the
training, alone and beside each other and every request that failed. The target: serving keeps 60 % of what it does
alone, and no request fails."""

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.bench_training import made_up
from benchmarks.results import write_results
from benchmarks.server import Server
from benchmarks.shapes import BUNDLED_BASE, build_adapter, prompts
from serving.load_client import Endpoint, Load, LoadReport, run_load
from training.runs.journal import METRICS_FILE, Journal

CLIENTS = 8
ADAPTERS = 4
KEPT_TARGET = 0.6
ENDED = ("succeeded", "failed", "cancelled")


def main() -> None:
    options = arguments()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        adapters = {f"face{n}": build_adapter(BUNDLED_BASE, home / f"face{n}", rank=8, seed=n) for n in range(ADAPTERS)}
        with Server(BUNDLED_BASE, home, adapters=adapters) as server:
            models = (BUNDLED_BASE.name, *adapters)
            chat(server.url, models, 2 * CLIENTS)  # everything is compiled and warm
            rows = made_up(Path(scratch) / "rows.jsonl", options.rows, seed=0)
            console.print("one job alone")
            lone = trained(home, [finished(server.url, queued(server.url, rows, "alone"))])
            console.print("two jobs, eight clients")
            jobs = [queued(server.url, rows, name) for name in ("first", "second")]
            alone, beside = [], []
            while not all(state(server.url, job) in ENDED for job in jobs):
                beside.append(chat(server.url, models, options.requests))
                with stopped(home, jobs):
                    alone.append(chat(server.url, models, options.requests))
            away_s = sum(each.wall_s for each in alone)
            both = trained(home, [finished(server.url, job) for job in jobs], away_s)
    report(console, alone, beside, lone, both, options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40, help="in a round of the clients, 64 tokens each")
    parser.add_argument("--rows", type=int, default=400, help="of each job, made up; one epoch")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/beside.json")
    return parser.parse_args()


def chat(url: str, models: tuple[str, ...], requests: int) -> LoadReport:
    texts = tuple(({"role": "user", "content": text},) for text in prompts(16, 64))
    return asyncio.run(run_load(Load(Endpoint(url), models, texts, requests, CLIENTS)))


def queued(url: str, rows: Path, name: str) -> str:
    """A job's id. The server takes messages files, so the made-up rows become one."""
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    pairs = (({"role": "user", "content": row["instruction"]}, row["output"]) for row in lines)
    text = "".join(
        json.dumps({"messages": [asked, {"role": "assistant", "content": said}]}, ensure_ascii=False) + "\n"
        for asked, said in pairs
    )
    file = httpx.post(
        f"{url}/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", text.encode())}, timeout=60
    )
    body = {
        "model": BUNDLED_BASE.name,
        "training_file": file.raise_for_status().json()["id"],
        "suffix": name,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
    }
    job: str = httpx.post(f"{url}/v1/fine_tuning/jobs", json=body, timeout=60).raise_for_status().json()["id"]
    return job


@contextmanager
def stopped(home: Path, jobs: list[str]) -> Iterator[None]:
    """Without training, so that rounds alone lie between the others: this machine's speed changes by the minute."""
    runs = [Journal(home / "runs" / job).status() for job in jobs]
    pids = [status.process.pid for status in runs if status.state == "running" and status.process]
    try:
        for pid in pids:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def state(url: str, job: str) -> str:
    status: str = httpx.get(f"{url}/v1/fine_tuning/jobs/{job}", timeout=60).raise_for_status().json()["status"]
    return status


def finished(url: str, job: str) -> str:
    """The job's id, once it has succeeded. RuntimeError when it has not."""
    while (now := state(url, job)) not in ENDED:
        time.sleep(0.5)
    if now != "succeeded":
        raise RuntimeError(f"{job} {now}: {httpx.get(f'{url}/v1/fine_tuning/jobs/{job}').text}")
    return job


def trained(home: Path, jobs: list[str], away_s: float = 0.0) -> float:
    """Tokens a second from the first step to the last, standing back included. The processes were stopped for
    `away_s`."""
    tokens, seconds = 0.0, -away_s
    for job in jobs:
        lines = (home / "runs" / job / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        steps = [line for line in map(json.loads, lines) if line["kind"] == "step"]
        for before, step in zip(steps, steps[1:], strict=False):
            took = step["time"] - before["time"]
            # A step's rate leaves out the time it stood back; the clock does not.
            tokens += step["tokens_per_s"] * (took - step.get("paused_s", 0.0))
            seconds += took
    return tokens / seconds


def rate(rounds: list[LoadReport]) -> float:
    """Tokens of all answers over the time of all rounds."""
    return sum(each.output_tokens for each in rounds) / sum(each.wall_s for each in rounds)


def report(
    console: Console,
    alone: list[LoadReport],
    beside: list[LoadReport],
    lone: float,
    both: float,
    output: Path | None,
) -> None:
    before, now = rate(alone), rate(beside)
    rounds = [*alone, *beside]
    failed = sum(sum(each.errors.values()) for each in rounds)
    kept = now / before
    table = Table(
        "", "alone", "beside each other", "kept", title=f"{CLIENTS} clients, {ADAPTERS} adapters and the base; two jobs"
    )
    table.add_row("answers, tokens/s", f"{before:,.0f}", f"{now:,.0f}", f"{kept:.2f}")
    ratio = both / lone
    table.add_row("training, tokens/s", f"{lone:,.0f}", f"{both:,.0f}", f"{ratio:.2f}")
    console.print(table)
    console.print(f"{failed} requests failed of {sum(each.requests for each in rounds)}")
    console.print(f"target: answers keep {KEPT_TARGET:.0%}")
    figures: dict[str, Any] = {
        "answers_tokens_per_s": {"alone": before, "beside": now, "kept": kept},
        "training_tokens_per_s": {"alone": lone, "beside": both, "kept": ratio},
        "requests": sum(each.requests for each in rounds),
        "failed": failed,
        "wall_s": sum(each.wall_s for each in rounds),
    }
    console.print(f"written to {write_results('beside', figures, output)}")


if __name__ == "__main__":
    main()
