"""One section of the GPU acceptance: its shape, its device, and where its figures go."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """A Qwen3 of random weights, and how much work it is given."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    prompt: int = 128
    new_tokens: int = 128
    clients: int = 64  # rows of the throughput comparisons
    length: int = 2048  # tokens of a training row


SHAPES = {
    "8b": Shape(4096, 12288, 36, 32, 8, 128, 151_936),
    "0.6b": Shape(1024, 3072, 28, 16, 8, 128, 151_936),
    "6b": Shape(4096, 13696, 28, 32, 2, 128, 65_024),  # for training memory
    "tiny": Shape(64, 128, 2, 4, 2, 32, 512, prompt=12, new_tokens=6, clients=8, length=64),
}


@dataclass(frozen=True)
class Figure:
    section: str
    name: str
    value: float | str
    unit: str = ""
    target: str = ""
    holds: bool | None = None  # None: no target, or nothing to compare with


class Run:
    """One section's surroundings; figures are on disk as soon as they are known."""

    def __init__(self, section: str, shape: str, device: str, out: Path):
        self.section = section
        self.shape_name = shape
        self.shape = SHAPES[shape]
        self.device = torch.device(device)
        self.dtype = torch.bfloat16
        self.out = out

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def report(
        self, name: str, value: float | str, unit: str = "", *, least: float | None = None, most: float | None = None
    ) -> None:
        """A figure, with the least or the most it should be. Only the real shape on a GPU is held to it."""
        target = f"≥ {least:g}" if least is not None else f"≤ {most:g}" if most is not None else ""
        holds = None
        if target and not isinstance(value, str) and self.on_cuda and self.shape_name == "8b":
            holds = value >= least if least is not None else value <= (most or 0.0)
        value = value if isinstance(value, str) else float(f"{value:.4g}")
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Figure(self.section, name, value, unit, target, holds))) + "\n")

    def check(self, name: str, holds: bool, value: float | str = "") -> None:
        """A claim that is right or wrong on any device."""
        with self.out.open("a", encoding="utf-8") as file:
            figure = Figure(self.section, name, value or ("yes" if holds else "NO"), "", "holds", holds)
            file.write(json.dumps(asdict(figure)) + "\n")

    def wait(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """Median time of `work`, after one warm-up."""
        times = []
        for _ in range(repeats + 1):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])
