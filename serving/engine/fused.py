"""Decoder blocks of Llama's kind with their linear layers joined: one product for q, k and v, one for gate and up,
fewer small operations between them. The arithmetic, its order and its roundings are transformers' own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from serving.engine.attention import LayerProbe, StepInput
from serving.engine.kernels import Kernels
from serving.engine.kernels.plan import AttentionSpec
from serving.engine.lora import LoRALinear

# Classes whose forward was compared with the one below, line by line. Others run as transformers wrote them.
FUSED_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}

Join = Callable[[list[str]], LoRALinear]  # names of linear layers → one LoRALinear that stands for them


def can_fuse(layer: Any) -> bool:
    """Whether FusedLayer computes what `layer` does: its class is known and its layers are plain."""
    if type(layer).__name__ not in FUSED_LAYERS:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linears = [getattr(attention, f"{x}_proj") for x in "qkvo"] + [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return all(type(linear) is nn.Linear for linear in linears) and mlp.config.hidden_act == "silu"


class FusedLayer(nn.Module):
    """Stands in the place of a decoder layer; `path` is that place, `join` makes the joined linear layers. Changes the
    hidden states it is given in place."""

    def __init__(self, layer: Any, path: str, join: Join, kernels: Kernels):
        super().__init__()
        self.kernels = kernels
        attention = layer.self_attn
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        config = attention.config
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        window = getattr(attention, "sliding_window", None)
        if type(layer).__name__ == "MistralDecoderLayer":
            window = config.sliding_window
        self.spec = AttentionSpec(attention.scaling, window)
        self.input_norm = _norm(layer.input_layernorm)
        self.mlp_norm = _norm(layer.post_attention_layernorm)
        self.qk_weight: Tensor | None = None
        self.qk_epsilon = 0.0
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm, attention.k_norm
            weight = torch.cat([q.weight.expand(self.heads, -1), k.weight.expand(self.kv_heads, -1)])
            self.qk_weight, self.qk_epsilon = weight.detach(), q.variance_epsilon
        self.qkv = join([f"{path}.self_attn.{x}_proj" for x in "qkv"])
        self.out = join([f"{path}.self_attn.o_proj"])
        self.gate_up = join([f"{path}.mlp.gate_proj", f"{path}.mlp.up_proj"])
        self.down = join([f"{path}.mlp.down_proj"])

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        step_input: StepInput | LayerProbe,
        **_: Any,
    ) -> Tensor:
        """hidden_states (1, rows, hidden) → the same shape."""
        hidden = hidden_states[0]
        cos, sin = position_embeddings
        attended = self._attention(
            self.kernels.add_rms_norm(hidden, None, *self.input_norm), cos[0], sin[0], step_input
        )
        x = self.kernels.add_rms_norm(hidden, attended, *self.mlp_norm)
        hidden += self.down(self.kernels.silu_mul(self.gate_up(x)))
        return hidden[None]

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor, step_input: StepInput | LayerProbe) -> Tensor:
        rows = x.shape[0]
        heads = self.qkv(x).view(rows, -1, self.head_dim)  # query, key and value heads, in this order
        rotated, value = heads[:, : -self.kv_heads], heads[:, -self.kv_heads :]
        self.kernels.rotate(rotated, self.qk_weight, cos, sin, self.qk_epsilon)
        query, key = rotated[:, : self.heads], rotated[:, self.heads :]
        attended = step_input.attend(self.layer_idx, query, key, value, self.spec)
        out: Tensor = self.out(attended.reshape(rows, -1))
        return out


def _norm(norm: Any) -> tuple[Tensor, float]:
    return norm.weight.detach(), norm.variance_epsilon
