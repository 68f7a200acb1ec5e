"""How the transformers model's attention becomes ours: the hook, and what travels to it through the forward pass."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from serving.engine.kernels import Kernels
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec
from serving.engine.kv_cache import KVCache, LayerShape

ATTENTION = "bianlian"


@dataclass
class StepInput:
    """What every layer of a step needs; the model's forward hands it on as the keyword `step_input`."""

    kernels: Kernels
    cache: KVCache
    plan: AttentionPlan
    slots: Tensor  # (rows,) int64: where each row's keys and values go

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """query (rows, heads, key_dim), key and value (rows, kv_heads, dim), rotary applied → (rows, heads, value_dim).
        Keeps key and value on the way."""
        cache = self.cache.layers[layer]
        self.kernels.store_kv(cache, key, value, self.slots)
        return self.kernels.attend(query, cache, self.plan, spec)


@dataclass
class LayerProbe:
    """Takes StepInput's place in one forward at start, to learn what each layer keeps for a token."""

    shapes: dict[int, LayerShape]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[2], value.shape[2])
        return query.new_zeros(*query.shape[:2], value.shape[2])


def _hook(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    step_input: StepInput | LayerProbe,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' signature. query (1, heads, rows, key_dim); key and value likewise with kv_heads; returns
    (1, rows, heads, value_dim)."""
    spec = AttentionSpec(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    # Contiguous, as transformers' own functions return it: some models take a view of it (JetMoE).
    return step_input.attend(module.layer_idx, q, k, v, spec)[None].contiguous(), None


AttentionInterface.register(ATTENTION, _hook)
