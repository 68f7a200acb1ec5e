"""LoRALinear: a linear layer of the base plus, for each row, the deltas of the adapters that row asked for."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from adapters.weights import LoRAWeights
from serving.engine.kernels import Kernels
from serving.engine.kernels.plan import LoRASegment


@dataclass(frozen=True)
class RowSegment:
    """Rows `start` to `end` of a step use these slots of the bank, at these strengths."""

    start: int
    end: int
    slots: tuple[tuple[int, float], ...]


@dataclass
class StepAdapters:
    """Which rows of the running step belong to which adapters. One object is shared by all layers; the runner
    replaces its segments at every step, so no row can inherit an adapter from an earlier one."""

    segments: list[RowSegment] = field(default_factory=list)


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Module, step: StepAdapters, kernels: Kernels):
        super().__init__()
        self.base = base
        self.step = step
        self.kernels = kernels
        self.slots: dict[int, LoRAWeights] = {}  # bank slot → this layer's part of the adapter in it

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        segments = self._segments()
        if segments:
            self.kernels.add_lora(out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1]), segments)
        return out

    def _segments(self) -> list[LoRASegment]:
        return [
            LoRASegment(rows.start, rows.end, weights.a, weights.b, scale)
            for rows in self.step.segments
            for slot, scale in rows.slots
            if (weights := self.slots.get(slot)) is not None  # an adapter need not target every layer
        ]


def install_lora(model: nn.Module, names: Iterable[str], step: StepAdapters, kernels: Kernels) -> dict[str, LoRALinear]:
    """Replace the named linear layers of `model` by LoRALinear; returns them by name."""
    layers = {}
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layers[name] = LoRALinear(model.get_submodule(name), step, kernels)
        setattr(parent, child, layers[name])
    return layers
