"""The operations whose speed depends on the device, each with the same signature in every file: `reference` says
plainly what is computed and is the oracle for the others."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from serving.engine.kernels import cpu, reference
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import LoRALinear, StepRows

if TYPE_CHECKING:
    from serving.engine.attention import StepInput
    from serving.engine.fused import FusedStack

log = logging.getLogger(__name__)


class Kernels(Protocol):
    def join_linears(self, linears: Sequence[nn.Linear], bits: int | None = None) -> nn.Module: ...

    def add_rms_norm(
        self, x: Tensor, added: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]: ...

    def norm_and_rotate(self, heads: Tensor, norm: tuple[Tensor, float] | None, cos: Tensor, sin: Tensor) -> Tensor: ...

    def silu_and_multiply(self, gate_up: Tensor) -> Tensor: ...

    def store_kv(self, cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None: ...

    def attend(self, query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor: ...

    def add_lora(self, out: Tensor, x: Tensor, layer: LoRALinear, rows: StepRows) -> None: ...


@runtime_checkable
class CapturingKernels(Kernels, Protocol):
    """Kernels that can be told by device memory alone where everything is, so that a decoding step can be captured once
    and repeated: their `attend` takes PagedDecodes, their `add_lora` DeviceRows."""

    rank: int  # room for adapters' ranks that a step captured now will have

    def prepare(self, layers: Sequence[LoRALinear]) -> None:
        """Before a captured step is repeated: make known what was loaded into `layers` in the meantime."""


@runtime_checkable
class StackKernels(Kernels, Protocol):
    """Kernels that can run all fused layers of a decoding step at once."""

    def decode_layers(
        self, stack: "FusedStack", hidden: Tensor, rotary: tuple[Tensor, Tensor], step: "StepInput"
    ) -> bool: ...


def kernels_for(device: torch.device, num_slots: int) -> Kernels:
    """The fastest kernels for the device. `num_slots` adapters may be on it at once."""
    if device.type == "cpu":
        return cpu
    try:
        from serving.engine.kernels.cuda import CudaKernels  # Triton; CPU installations need not have it
    except ImportError as error:
        log.warning("serving with the plain kernels, which are slow: %s", error)
        return reference
    return CudaKernels(device, num_slots)
