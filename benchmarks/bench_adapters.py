"""What many adapters cost: 1,000 registered, 16 slots, Zipf traffic over HTTP; and what one swap costs.

Time to first token under churn is held against the *warm median*: the median under the same load (same clients, same
prompts, same server) when every adapter asked for is in a slot already. It is measured with traffic over as many names
as there are slots, in rounds that alternate with the churn. The target: under churn no request waits longer than three
warm medians. Because a burst of clients makes some wait for each other without any churn, the longest wait of the warm
rounds is printed beside it; what lies between the two is the adapters' share. Within the churn, a request is cold when
it is the first for its adapter (read from the system's file cache) and warm otherwise (in memory, maybe in a slot)."""

import argparse
import asyncio
import itertools
import os
import random
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Qwen3Config

from adapters.manifest import WEIGHTS_FILE
from adapters.store import AdapterStore
from adapters.weights import LinearShapes, read_adapter
from benchmarks.results import write_results
from benchmarks.server import Server
from benchmarks.shapes import BUNDLED_BASE, SHAPES, build_adapter, prompts, randomise_adapter
from serving.load_client import Endpoint, Load, Sample, run_load

RANK = 8
SLOTS = 16
FEW = 10
WAIT_TARGET = 3.0  # longest time to first token over the warm median
REGISTERED_TARGET = 1.05  # time per token with 1,000 registered over that with 10: measuring noise
SWAP_TARGET_MS = 5.0
DISK_TARGET_MS = 150.0


def publish_many(home: Path, count: int) -> list[str]:
    """`count` adapters for the bundled base, all with weights of their own, in the store under `home`."""
    store = AdapterStore(home / "store")
    names = [f"face{number:04}" for number in range(count)]
    source = build_adapter(BUNDLED_BASE, home / "source", rank=RANK, seed=0)
    with safe_open(source / WEIGHTS_FILE, framework="pt") as file:
        shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for seed, name in enumerate(names):
        randomise_adapter(source, shapes, seed)
        store.publish(source, name)
    shutil.rmtree(source)
    os.sync()  # written and in the system's cache: what is measured is the server, not the disk
    for file in store.root.rglob(WEIGHTS_FILE):
        file.read_bytes()
    return names


def zipf(names: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """The name of rank k with a probability proportional to 1/k."""
    weights = [1 / rank for rank in range(1, len(names) + 1)]
    return tuple(random.Random(seed).choices(names, weights, k=count))


def send(url: str, models: Sequence[str], *, clients: int, prompt_tokens: int, max_tokens: int) -> list[Sample]:
    """One request an entry of `models`, in that order; ordered by their start. RuntimeError when any fails."""
    load = Load(
        Endpoint(url),
        tuple(models),
        tuple(({"role": "user", "content": text},) for text in prompts(16, prompt_tokens)),
        requests=len(models),
        concurrency=clients,
        max_tokens=max_tokens,
    )
    report = asyncio.run(run_load(load))
    if report.errors:
        raise RuntimeError(f"requests failed: {report.messages}")
    return sorted(report.samples, key=lambda sample: sample.started_s)


def waits_ms(samples: Sequence[Sample]) -> list[float]:
    return sorted(sample.ttft_s * 1000 for sample in samples if sample.ttft_s is not None)


def spread(waits: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(waits),
        "p99": waits[-(-len(waits) * 99 // 100) - 1],
        "max": waits[-1],
        "requests": len(waits),
    }


@dataclass(frozen=True)
class Traffic:
    requests: int
    clients: int
    rounds: int
    prompt_tokens: int = 64
    max_tokens: int = 16

    def send(self, url: str, models: Sequence[str]) -> list[Sample]:
        return send(url, models, clients=self.clients, prompt_tokens=self.prompt_tokens, max_tokens=self.max_tokens)


def churn(url: str, names: list[str], traffic: Traffic) -> dict[str, Any]:
    """Zipf traffic over all names, in rounds that alternate with traffic over as many as there are slots."""
    calm: list[Sample] = []
    storm: list[Sample] = []
    share = traffic.requests // traffic.rounds
    order = zipf(names, share * traffic.rounds, seed=1)
    resident = names[:SLOTS]
    for number in range(traffic.rounds):
        traffic.send(url, resident)  # back into their slots; not counted
        calm += traffic.send(url, list(itertools.islice(itertools.cycle(resident), share // 2)))
        storm += traffic.send(url, order[number * share : (number + 1) * share])
    seen = set(resident)
    cold, warm = [], []
    for sample in storm:
        (warm if sample.model in seen else cold).append(sample)
        seen.add(sample.model)
    median = statistics.median(waits_ms(calm))
    longest = waits_ms(storm)[-1]
    return {
        "warm_median_ms": median,
        "all_in_slots_ms": spread(waits_ms(calm)),
        "churn_ms": spread(waits_ms(storm)),
        "churn_warm_ms": spread(waits_ms(warm)),
        "churn_cold_ms": spread(waits_ms(cold)) if cold else None,
        "adapters_used": len(seen),
        "longest_over_warm_median": longest / median,
        "longest_over_warm_median_all_in_slots": waits_ms(calm)[-1] / median,
    }


def registered_ratio(few_url: str, many_url: str, names: list[str], traffic: Traffic) -> dict[str, float]:
    """Time per token on the same ten adapters, where only they are registered and where all are."""
    gaps: dict[str, list[float]] = {few_url: [], many_url: []}
    order = list(itertools.islice(itertools.cycle(names[:FEW]), traffic.clients * 4))
    for number in range(traffic.rounds + 1):
        for url, found in gaps.items():
            samples = traffic.send(url, order)
            if number:  # the first is warm-up
                found.append(statistics.median(gap for sample in samples for gap in sample.gaps_s))
    few, many = gaps.values()
    return {
        "few_ms": statistics.median(few) * 1000,
        "many_ms": statistics.median(many) * 1000,
        "ratio": statistics.median(b / a for a, b in zip(few, many, strict=True)),
    }


def swap_extra_ms(url: str, names: list[str], pairs: int) -> dict[str, float]:
    """Time to first token of an adapter in host memory but in no slot, less that of one in a slot. One client; the two
    alternate: going round more names than there are slots evicts each before its next turn, asking again finds it."""
    around = names[: SLOTS + 4]
    send(url, around, clients=1, prompt_tokens=64, max_tokens=1)
    order = [name for name in itertools.islice(itertools.cycle(around), pairs) for _ in range(2)]
    waits = [sample.ttft_s or 0.0 for sample in send(url, order, clients=1, prompt_tokens=64, max_tokens=1)]
    swapped, stayed = waits[0::2], waits[1::2]
    return {
        "in_host_memory_ms": statistics.median(swapped) * 1000,
        "in_slot_ms": statistics.median(stayed) * 1000,
        "extra_ms": statistics.median(a - b for a, b in zip(swapped, stayed, strict=True)) * 1000,
    }


def disk_to_ready_ms(root: Path, shape: str, rank: int, count: int) -> dict[str, float]:
    """Reading an adapter of that shape as the server does before its first request: read, check, convert. The files
    have just been written, so they come from the system's cache."""
    hidden, mlp, layers, heads, kv_heads, head_dim, vocabulary = SHAPES[shape]
    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary or 8192,
    )
    base = root / "shape"
    config.save_pretrained(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes: LinearShapes = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    times = []
    for seed in range(count):
        directory = build_adapter(base, root / f"large{seed}", rank=rank, seed=seed)
        started = time.perf_counter()
        read_adapter(directory, shapes, torch.bfloat16, torch.device("cpu"))
        times.append(time.perf_counter() - started)
        shutil.rmtree(directory)
    return {"median_ms": statistics.median(times) * 1000, "max_ms": max(times) * 1000}


def models_latency_ms(url: str, times: int = 9) -> float:
    """Median time of GET /v1/models on an idle server."""
    waits = []
    with httpx.Client(base_url=url, timeout=60) as http:
        for _ in range(times):
            started = time.perf_counter()
            http.get("/v1/models").raise_for_status()
            waits.append(time.perf_counter() - started)
    return statistics.median(waits) * 1000


def activations(url: str) -> int:
    """How often the server has brought an adapter into a slot."""
    scraped = httpx.get(f"{url}/metrics", timeout=60).raise_for_status().text
    [count] = re.findall(r"^bianlian_adapter_activations_total (\S+)$", scraped, re.M)
    return int(float(count))


def measure(root: Path, registered: int, traffic: Traffic) -> dict[str, Any]:
    names = publish_many(root / "many", registered)
    publish_many(root / "few", FEW)
    environment = {"BIANLIAN_ADAPTER_SLOTS": str(SLOTS)}
    few_server = Server(BUNDLED_BASE, root / "few", environment=environment)
    many_server = Server(BUNDLED_BASE, root / "many", environment=environment)
    with few_server as few, many_server as many:
        figures: dict[str, Any] = {
            "models_ms": {"10": models_latency_ms(few.url), str(registered): models_latency_ms(many.url)},
            "churn": churn(many.url, names, traffic),
            "swap": swap_extra_ms(many.url, names, pairs=60),
            "per_token": registered_ratio(few.url, many.url, names, traffic),
            "activations": activations(many.url),
        }
    figures["disk_to_ready"] = {"shape": "0.6b", "rank": 16} | disk_to_ready_ms(root, "0.6b", 16, 5)
    return figures


def claims_of(figures: dict[str, Any], registered: int) -> list[dict[str, Any]]:
    rows = (
        ("longest wait over the warm median", figures["churn"]["longest_over_warm_median"], WAIT_TARGET),
        (f"time per token, {registered} registered over 10", figures["per_token"]["ratio"], REGISTERED_TARGET),
        ("warm adapter → first token adds, ms", figures["swap"]["extra_ms"], SWAP_TARGET_MS),
        ("disk → ready, rank 16 at shape 0.6B, ms", figures["disk_to_ready"]["median_ms"], DISK_TARGET_MS),
    )
    return [
        {"claim": claim, "value": value, "target": f"≤ {target:g}", "met": value <= target}
        for claim, value, target in rows
    ]


def report(figures: dict[str, Any], claims: list[dict[str, Any]], registered: int, traffic: Traffic) -> None:
    title = f"{registered} adapters, {SLOTS} slots, {traffic.clients} clients"
    table = Table("time to first token, ms", "requests", "median", "p99", "max", title=title)
    rows = {
        "all in slots": "all_in_slots_ms",
        "churn": "churn_ms",
        "· warm": "churn_warm_ms",
        "· cold": "churn_cold_ms",
    }
    for label, key in rows.items():
        if found := figures["churn"][key]:
            table.add_row(label, str(found["requests"]), *(f"{found[k]:.0f}" for k in ("median", "p99", "max")))
    console = Console()
    console.print(table)
    churned = figures["churn"]
    console.print(
        f"{figures['activations']} activations, {churned['adapters_used']} adapters used; the longest wait with "
        f"all in slots is {churned['longest_over_warm_median_all_in_slots']:.2f} warm medians; GET /v1/models takes "
        + ", ".join(f"{value:.0f} ms with {count} registered" for count, value in figures["models_ms"].items()),
        highlight=False,
    )
    for claim in claims:
        mark = "[green]✓[/]" if claim["met"] else "[red]✗[/]"
        console.print(f"{mark} {claim['claim']}: {claim['value']:.2f} (target {claim['target']})", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registered", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1500, help="under churn")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/adapters.json")
    arguments = parser.parse_args()
    if arguments.registered < SLOTS + 4:
        raise SystemExit(f"--registered must be at least {SLOTS + 4}, not {arguments.registered}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    traffic = Traffic(arguments.requests, arguments.clients, arguments.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), arguments.registered, traffic)
    claims = claims_of(figures, arguments.registered)
    report(figures, claims, arguments.registered, traffic)
    document = {"registered": arguments.registered, "slots": SLOTS, "clients": traffic.clients} | figures
    print(f"written to {write_results('adapters', document | {'derived': claims}, arguments.json)}")


if __name__ == "__main__":
    main()
