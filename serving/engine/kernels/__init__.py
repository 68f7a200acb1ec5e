"""The three operations whose speed depends on the device, each with the same signature in every file:
`reference` says plainly what is computed and is the oracle for the others."""

from typing import Protocol

import torch
from torch import Tensor

from serving.engine.kernels import cpu, reference
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, LoRASegment
from serving.engine.kv_cache import LayerCache


class Kernels(Protocol):
    def store_kv(self, cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None: ...

    def attend(self, query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor: ...

    def add_lora(self, out: Tensor, x: Tensor, segments: list[LoRASegment]) -> None: ...


def kernels_for(device: torch.device) -> Kernels:
    return cpu if device.type == "cpu" else reference
