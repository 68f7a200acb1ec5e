"""`make bench`: our server over HTTP beside transformers and PEFT in process, and beside any other server.

Workload: prompts of 128 tokens, 64 tokens out, greedy, end of turn ignored, closed loop, streaming, prefix cache off;
and prefill, a prompt of 512 tokens with one token out. The systems take turns round by round, so that whatever else
the machine does meets them alike. Absolute figures hold for that machine and moment only; read the ratios, which are
medians of the rounds' own.

A peer is named with `--peer vllm=http://127.0.0.1:8000=base,a0,a1,a2,a3`: its address and its names for the base and
the adapters; without names, those in its /v1/models in that order. `--save DIR` leaves the base and the adapters there
for such a server to load, and uses them when they are there already."""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedModel, Qwen3ForCausalLM

from benchmarks.results import write_results
from benchmarks.server import Server
from benchmarks.shapes import SHAPES, build_adapter, build_base, prompts
from serving.load_client import Endpoint, Load, list_models, run_load

ADAPTERS = 4
RANK = 16
PREFILL_TOKENS = 512
MIXED_TARGET = 0.90  # throughput with mixed adapters over the base's, 8 clients
LANES_TARGET = 1.15  # wall time of two lanes over that of one


@dataclass(frozen=True)
class Workload:
    """One client an entry of `models`: 0 is the base, n the nth adapter."""

    name: str
    models: tuple[int, ...]
    prompt_tokens: int = 128
    max_tokens: int = 64
    requests_per_client: int = 2

    @property
    def is_prefill(self) -> bool:
        return self.max_tokens == 1

    def texts(self) -> tuple[str, ...]:
        return prompts(len(self.models), self.prompt_tokens)


BASE_8 = Workload("8 clients, base", (0,) * 8)
MIXED_8 = Workload("8 clients, base + 4 adapters", (0, 1, 2, 3, 4, 0, 1, 2))
WORKLOADS = (
    Workload("1 client, base", (0,)),
    Workload("1 client, one adapter", (1,)),
    Workload("2 clients, base + tuned", (0, 1)),
    BASE_8,
    Workload("8 clients, one adapter", (1,) * 8),
    MIXED_8,
    Workload("prefill, base", (0,), prompt_tokens=PREFILL_TOKENS, max_tokens=1, requests_per_client=4),
)


@dataclass(frozen=True)
class Measured:
    """One round of one system. Tokens out, or tokens in for prefill."""

    tokens_per_s: float
    ttft_s: float | None = None  # median; None in process, where nothing is streamed


class System(Protocol):
    name: str

    def measure(self, workload: Workload) -> Measured | None:
        """One round; None when the system lacks adapters for it."""


class HttpSystem:
    def __init__(self, name: str, url: str, models: list[str]):
        self.name = name
        self.endpoint = Endpoint(url)
        self.models = models

    def measure(self, workload: Workload) -> Measured | None:
        if max(workload.models) >= len(self.models):
            return None
        load = Load(
            self.endpoint,
            tuple(self.models[number] for number in workload.models),
            tuple(({"role": "user", "content": text},) for text in workload.texts()),
            requests=len(workload.models) * workload.requests_per_client,
            concurrency=len(workload.models),
            max_tokens=workload.max_tokens,
        )
        report = asyncio.run(run_load(load))
        if report.errors:
            raise RuntimeError(f"{self.name} failed in '{workload.name}': {report.messages}")
        tokens = report.prompt_tokens if workload.is_prefill else report.output_tokens
        return Measured(tokens / report.wall_s, report.ttft_s.p50 if report.ttft_s else None)


class InProcess:
    """transformers' generate on a static batch; with adapters PEFT's mixed batch (`adapter_names`)."""

    name = "transformers / PEFT"

    def __init__(self, base: Path, adapters: dict[str, Path]):
        self.tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
        # Loaded twice in the file's own dtype: both are the same pages of the file.
        self.plain: PreTrainedModel = Qwen3ForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
        self.names = ["__base__", *adapters]
        (first, path), *others = adapters.items()
        self.tuned = PeftModel.from_pretrained(
            Qwen3ForCausalLM.from_pretrained(base, dtype=torch.bfloat16), path, adapter_name=first
        )
        for name, path in others:
            self.tuned.load_adapter(path, name)
        self.tuned.eval()

    def measure(self, workload: Workload) -> Measured | None:
        chats = [[{"role": "user", "content": text}] for text in workload.texts()]
        batch = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        names = [self.names[number] for number in workload.models]
        model, options = (self.tuned, {"adapter_names": names}) if any(workload.models) else (self.plain, {})
        new = workload.max_tokens
        started = time.perf_counter()
        for _ in range(workload.requests_per_client):
            model.generate(**batch, max_new_tokens=new, min_new_tokens=new, do_sample=False, **options)
        wall = time.perf_counter() - started
        tokens = int(batch["attention_mask"].sum()) if workload.is_prefill else new * len(workload.models)
        return Measured(workload.requests_per_client * tokens / wall)


def compare_wall_s(system: HttpSystem, lanes: list[str]) -> float:
    """Wall time of one comparison of these models over HTTP, 64 tokens a lane."""
    body = {
        "messages": [{"role": "user", "content": BASE_8.texts()[0]}],
        "lanes": [{"model": name} for name in lanes],
        "temperature": 0,
        "max_tokens": BASE_8.max_tokens,
        "ignore_eos": True,
    }
    started = time.perf_counter()
    reply = httpx.post(f"{system.endpoint.root}/v1/compare", json=body, timeout=600)
    wall = time.perf_counter() - started
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    tokens = [event["completion_tokens"] for event in events if event["type"] == "end"]
    if tokens != [BASE_8.max_tokens] * len(lanes):
        raise RuntimeError(f"the comparison did not run to its end: {reply.text[-300:]}")
    return wall


@dataclass(frozen=True)
class Round:
    measured: dict[str, dict[str, Measured]]  # workload → system → figures
    one_lane_s: float  # the tuned one, the dearer of the two
    two_lanes_s: float


def run_round(
    systems: list[System], ours: HttpSystem, workloads: list[Workload], done: Callable[[], None], *, warm_up: bool
) -> Round:
    measured: dict[str, dict[str, Measured]] = {workload.name: {} for workload in workloads}
    for workload in workloads:
        short = replace(workload, max_tokens=min(workload.max_tokens, 8), requests_per_client=1)
        for system in systems:
            figures = system.measure(short if warm_up else workload)
            if figures is not None:
                measured[workload.name][system.name] = figures
            done()
    base, tuned = ours.models[:2]
    return Round(measured, compare_wall_s(ours, [tuned]), compare_wall_s(ours, [base, tuned]))


def derived(rounds: list[Round], ours: str) -> list[dict[str, Any]]:
    """What the project promises of itself, each against its target."""
    claims = []
    if BASE_8.name in rounds[0].measured and MIXED_8.name in rounds[0].measured:
        mixed = statistics.median(
            r.measured[MIXED_8.name][ours].tokens_per_s / r.measured[BASE_8.name][ours].tokens_per_s for r in rounds
        )
        claims.append(
            {
                "claim": "mixed adapters over base, 8 clients",
                "value": mixed,
                "target": f"≥ {MIXED_TARGET}",
                "met": mixed >= MIXED_TARGET,
            }
        )
    lanes = statistics.median(r.two_lanes_s / r.one_lane_s for r in rounds)
    claims.append(
        {
            "claim": "two lanes over one, wall time",
            "value": lanes,
            "target": f"≤ {LANES_TARGET}",
            "met": lanes <= LANES_TARGET,
        }
    )
    return claims


def summary(rounds: list[Round], workload: Workload, systems: list[System]) -> dict[str, Any]:
    """Medians over the rounds, and of each round's own ratio of ours (the first system) to every other."""
    row: dict[str, Any] = {"workload": workload.name, "systems": {}}
    ours = [r.measured[workload.name][systems[0].name].tokens_per_s for r in rounds]
    for system in systems:
        figures = [r.measured[workload.name][system.name] for r in rounds if system.name in r.measured[workload.name]]
        if not figures:
            continue
        speeds = [figure.tokens_per_s for figure in figures]
        firsts = [figure.ttft_s for figure in figures if figure.ttft_s is not None]
        row["systems"][system.name] = {
            "tokens_per_s": statistics.median(speeds),
            "ttft_ms": statistics.median(firsts) * 1000 if firsts else None,
            "ratio": statistics.median(mine / theirs for mine, theirs in zip(ours, speeds, strict=True)),
        }
    return row


def report(title: str, rows: list[dict[str, Any]], claims: list[dict[str, Any]], systems: list[System]) -> None:
    """Tokens a second, time to first token where the system streams, and ours over theirs."""
    table = Table("workload", title=title, caption="tokens/s (median time to first token); × is ours over theirs")
    for system in systems:
        table.add_column(system.name, justify="right")
    for row in rows:
        cells = []
        for number, system in enumerate(systems):
            figures = row["systems"].get(system.name)
            if figures is None:
                cells.append("—")
                continue
            text = f"{figures['tokens_per_s']:.1f}"
            text += f" ({figures['ttft_ms']:.0f} ms)" if figures["ttft_ms"] is not None else ""
            cells.append(text if number == 0 else f"{text}  {figures['ratio']:.2f} ×")
        table.add_row(row["workload"], *cells)
    console = Console()
    console.print(table)
    for claim in claims:
        mark = "[green]✓[/]" if claim["met"] else "[red]✗[/]"
        console.print(f"{mark} {claim['claim']}: {claim['value']:.2f} (target {claim['target']})", highlight=False)


def parse_peer(text: str) -> HttpSystem:
    name, _, rest = text.partition("=")
    url, _, models = rest.partition("=")
    if not name or not url.startswith(("http://", "https://")):
        raise SystemExit(f"--peer takes NAME=URL or NAME=URL=BASE,ADAPTER,..., not '{text}'")
    known = models.split(",") if models else asyncio.run(list_models(Endpoint(url)))
    return HttpSystem(name, url, known)


def built(shape: str, root: Path) -> tuple[Path, dict[str, Path]]:
    """The base and adapters under `root`, made if they are not there yet."""
    base = root / "bench-base"
    if not (base / "config.json").is_file():
        build_base(shape, base)
    adapters = {f"a{number}": root / f"a{number}" for number in range(ADAPTERS)}
    for seed, path in enumerate(adapters.values()):
        if not path.is_dir():
            build_adapter(base, path, rank=RANK, seed=seed)
    return base, adapters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--quantize", choices=("none", "8bit", "4bit"), default="none", help="of our base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL[=BASE,ADAPTER,...]")
    parser.add_argument("--no-in-process", action="store_true", help="leave out transformers and PEFT")
    parser.add_argument("--save", type=Path, help="keep base and adapters in this directory")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/serving-SHAPE.json")
    arguments = parser.parse_args()
    workloads = [workload for workload in WORKLOADS if arguments.only in workload.name]
    peers = [parse_peer(text) for text in arguments.peer]
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.save.resolve() if arguments.save else Path(scratch)
        base, adapters = built(arguments.shape, root)
        label = "bianlian" if arguments.quantize == "none" else f"bianlian {arguments.quantize}"
        with Server(base, Path(scratch) / "home", adapters=adapters, quantize=arguments.quantize) as server:
            ours = HttpSystem(label, server.url, [base.name, *adapters])
            systems: list[System] = [ours, *peers]
            if not arguments.no_in_process:
                systems.append(InProcess(base, adapters))
            rounds = []
            with Progress(transient=True) as progress:
                total = (arguments.rounds + 1) * len(workloads) * len(systems)
                task = progress.add_task("warming up", total=total)
                for number in range(arguments.rounds + 1):
                    result = run_round(systems, ours, workloads, lambda: progress.advance(task), warm_up=number == 0)
                    if number:
                        rounds.append(result)
                    progress.update(task, description=f"round {number + 1} of {arguments.rounds}")
    rows = [summary(rounds, workload, systems) for workload in workloads]
    claims = derived(rounds, ours.name)
    report(f"shape {arguments.shape}, median of {arguments.rounds}", rows, claims, systems)
    suffix = "" if arguments.quantize == "none" else f"-{arguments.quantize}"
    path = write_results(
        f"serving-{arguments.shape}{suffix}",
        {
            "shape": arguments.shape,
            "quantize": arguments.quantize,
            "figures": rows,
            "derived": claims,
            "rounds": [asdict(r) for r in rounds],
        },
        arguments.json,
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
