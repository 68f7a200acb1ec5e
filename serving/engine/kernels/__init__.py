"""The operations whose speed depends on the device, each with the same signature in every file: `reference` says
plainly what is computed and is the oracle for the others."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from serving.engine.kernels import cpu, reference
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import LoRALinear, StepRows


class Kernels(Protocol):
    def join_linears(self, linears: Sequence[nn.Linear], bits: int | None = None) -> nn.Module: ...

    def add_rms_norm(self, x: Tensor, add: Tensor | None, weight: Tensor, epsilon: float) -> Tensor: ...

    def rotate(self, heads: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, epsilon: float) -> None: ...

    def silu_mul(self, gate_up: Tensor) -> Tensor: ...

    def store_kv(self, cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None: ...

    def attend(self, query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor: ...

    def add_lora(self, out: Tensor, x: Tensor, layer: LoRALinear, rows: StepRows) -> None: ...


def kernels_for(device: torch.device) -> Kernels:
    return cpu if device.type == "cpu" else reference
