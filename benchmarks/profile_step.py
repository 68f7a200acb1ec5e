"""Where a step's time goes: our engine in process, without server or clients, by operation.

Decoding with 1 and with 8 rows, base and mixed adapters, and prompts. Operations are timed one by one; a plain decoding
step really runs all its layers in one call of the compiled kernels, and the last row says how long it then takes. The
memory's time for the base's weights is measured in the same run by reading as many bytes."""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from adapters.base_model import load_base
from adapters.manifest import AdapterVersion, digest_of
from adapters.settings import Quantization, Settings
from benchmarks.bench_serving import built
from benchmarks.results import write_results
from benchmarks.shapes import SHAPES
from serving.engine import model_runner
from serving.engine.engine import Engine
from serving.engine.kernels import cpu
from serving.engine.lora import LoRALinear
from serving.engine.sequence import Request, SamplingParams

WARM_UP = 4
PRODUCTS, HEAD, REST, TOTAL, ONE_CALL = "products", "output layer", "the rest", "total", "in one call"
OPERATIONS = {
    "attend": "attention",
    "store_kv": "attention",
    "add_lora": "adapters",
    "add_rms_norm": "norms, rotary, silu",
    "norm_and_rotate": "norms, rotary, silu",
    "silu_and_multiply": "norms, rotary, silu",
}
OUTSIDE = "outside products"
ROWS = (PRODUCTS, HEAD, *dict.fromkeys(OPERATIONS.values()), "sampling")


@dataclass(frozen=True)
class Case:
    name: str
    models: tuple[int, ...]  # one row or prompt an entry: 0 is the base, n the nth adapter
    prompt_tokens: int = 128
    prefill: bool = False


CASES = (
    Case("decode, 1 row, base", (0,)),
    Case("decode, 1 row, one adapter", (1,)),
    Case("decode, 2 rows, base + one adapter", (0, 1)),
    Case("decode, 8 rows, base", (0,) * 8),
    Case("decode, 8 rows, one adapter", (1,) * 8),
    Case("decode, 8 rows, base + 4 adapters", (0, 1, 2, 3, 4, 0, 1, 2)),
    Case("prefill of 256, base", (0,), 256, prefill=True),
    Case("prefill of 256, one adapter", (1,), 256, prefill=True),
)


class Clock:
    """Seconds by operation, of everything wrapped with it. Nothing wrapped calls anything wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return run


class TimedKernels:
    """The CPU kernels, each call on the clock."""

    one_call = False
    join_linears = staticmethod(cpu.join_linears)

    def __init__(self, clock: Clock):
        for function, operation in OPERATIONS.items():
            setattr(self, function, clock.timed(operation, getattr(cpu, function)))

    def decode_layers(self, *args: Any) -> bool:
        return self.one_call and cpu.decode_layers(*args)


class TimedEngine:
    def __init__(self, base: Path, adapters: list[Path], quantize: Quantization):
        self.clock = Clock()
        settings = Settings(device="cpu", prefix_cache=False, max_running=8, kv_cache_memory=0.5, quantize=quantize)
        self.kernels = TimedKernels(self.clock)
        self.engine = Engine(load_base(str(base), device="cpu"), settings, kernels=self.kernels)  # type: ignore[arg-type]
        self.layers = [layer for layer in self.engine.base.model.modules() if isinstance(layer, LoRALinear)]
        for layer in self.layers:
            name = HEAD if layer.is_head else PRODUCTS
            layer.base.forward = self.clock.timed(name, layer.base.forward)  # type: ignore[method-assign]
        model_runner.sample = self.clock.timed("sampling", model_runner.sample)
        self.adapters = [AdapterVersion(path.name, 1, digest_of(path), path, None) for path in adapters]
        for adapter in self.adapters:
            self.engine.bank.warm(adapter)

    @property
    def weight_bytes(self) -> int:
        """What of the base a decoding step must read."""
        held = (x for layer in self.layers for x in vars(layer.base).values() if isinstance(x, Tensor))
        return sum(x.numel() * x.element_size() for x in held)

    def measure(self, case: Case, count: int) -> dict[str, Any]:
        """Medians of `count` steps in ms, and the share of what is neither a product nor the output layer. Steps by
        operation and in one call alternate: the machine's speed changes from second to second."""
        run = self._prefill if case.prefill else self._decode
        steps = run(case, 2 * (WARM_UP + count))[2 * WARM_UP :]
        by_operation, in_one_call = steps[0::2], steps[1::2]
        ms = {name: statistics.median(step.get(name, 0.0) for step in by_operation) * 1000 for name in (*ROWS, TOTAL)}
        ms[REST] = ms[TOTAL] - sum(ms[name] for name in ROWS)
        ms[ONE_CALL] = statistics.median(step[TOTAL] for step in in_one_call) * 1000
        return {"case": case.name, "ms": ms, OUTSIDE: 1 - (ms[PRODUCTS] + ms[HEAD]) / ms[ONE_CALL]}

    def _decode(self, case: Case, count: int) -> list[dict[str, float]]:
        ids = self._add(case, max_tokens=512)
        sequences = self.engine.scheduler.running
        while self.engine.num_waiting or not all(sequence.num_output for sequence in sequences):
            self.engine.step()
        taken = self._alternating(count)
        for request_id in ids:
            self.engine.abort(request_id)
        return taken

    def _prefill(self, case: Case, count: int) -> list[dict[str, float]]:
        return self._alternating(count, before=lambda: self._add(case, max_tokens=1))

    def _alternating(self, count: int, before: Callable[[], object] = lambda: None) -> list[dict[str, float]]:
        """Seconds by operation of each step, their total under TOTAL."""
        taken = []
        for number in range(count):
            self.kernels.one_call = number % 2 == 1
            before()
            taken.append(self._step())
        return taken

    def _add(self, case: Case, max_tokens: int) -> list[str]:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        dice = torch.Generator().manual_seed(0)
        for number, model in enumerate(case.models):
            prompt = torch.randint(300, 8000, (case.prompt_tokens,), generator=dice).tolist()
            mix = ((self.adapters[model - 1].digest, 1.0),) if model else ()
            self.engine.add(Request(str(number), tuple(prompt), params, mix))
        return [str(number) for number in range(len(case.models))]

    def _step(self) -> dict[str, float]:
        self.clock.seconds.clear()
        started = time.perf_counter()
        self.engine.step()
        return dict(self.clock.seconds) | {TOTAL: time.perf_counter() - started}


def read_bandwidth() -> float:
    """Bytes a second that the machine reads, median of several passes over half a GiB."""
    held = torch.ones(2**27)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        held.sum()
        seconds.append(time.perf_counter() - started)
    return held.nbytes / statistics.median(seconds)


def report(title: str, figures: list[dict[str, Any]], weights_ms: float) -> None:
    caption = f"ms a step, medians; memory delivers the base's weights in {weights_ms:.1f} ms"
    table = Table("", title=title, caption=caption)
    for row in figures:
        table.add_column(row["case"].replace(", ", "\n", 1), justify="right")
    for name in (*ROWS, REST, TOTAL):
        table.add_row(name, *(f"{row['ms'][name]:.1f}" for row in figures))
    table.add_row(ONE_CALL, *(f"{row['ms'][ONE_CALL]:.1f}" for row in figures))
    table.add_row(OUTSIDE, *(f"{row[OUTSIDE]:.0%}" for row in figures))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--quantize", choices=("none", "8bit", "4bit"), default="none")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--save", type=Path, help="keep base and adapters in this directory")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/steps-SHAPE.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base, adapters = built(arguments.shape, arguments.save.resolve() if arguments.save else Path(scratch))
        timed = TimedEngine(base, list(adapters.values()), arguments.quantize)
        with Progress(transient=True) as progress:
            figures, bandwidths = [], []
            for case in progress.track(CASES, description="profiling"):
                bandwidths.append(read_bandwidth())
                figures.append(timed.measure(case, arguments.steps if not case.prefill else arguments.steps // 4))
        bandwidth = statistics.median(bandwidths)
    weights_ms = timed.weight_bytes / bandwidth * 1000
    suffix = "" if arguments.quantize == "none" else f"-{arguments.quantize}"
    report(f"shape {arguments.shape}{suffix}", figures, weights_ms)
    found = {
        "shape": arguments.shape,
        "quantize": arguments.quantize,
        "read_bandwidth_gb_s": bandwidth / 1e9,
        "weights_ms": weights_ms,
        "figures": figures,
    }
    print(f"written to {write_results(f'steps-{arguments.shape}{suffix}', found, arguments.json)}")


if __name__ == "__main__":
    main()
