"""Decoder blocks of Llama's kind with their linear layers joined: one product for q, k and v, one for gate and up,
fewer small operations between them. The arithmetic, its order and its roundings are transformers' own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from serving.engine.attention import LayerProbe, StepInput
from serving.engine.kernels import Kernels, StackKernels
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


class FusedStack(nn.Module):
    """All decoder layers of a model, each fused, in the place of the first."""

    def __init__(self, layers: Sequence["FusedLayer"]):
        super().__init__()
        self.fused = tuple(layers)
        self.layers = nn.ModuleList(layers)
        kernels = layers[0].kernels
        self._kernels = kernels if isinstance(kernels, StackKernels) else None

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        step_input: StepInput | LayerProbe,
        **_: Any,
    ) -> Tensor:
        """hidden_states (1, rows, hidden) → the same shape."""
        if self._kernels and isinstance(step_input, StepInput):
            cos, sin = position_embeddings
            if self._kernels.decode_layers(self, hidden_states[0], (cos[0], sin[0]), step_input):
                return hidden_states
        for layer in self.fused:
            hidden_states = layer(hidden_states, position_embeddings=position_embeddings, step_input=step_input)
        return hidden_states


class FusedLayer(nn.Module):
    """Stands in the place of a decoder layer; `path` is that place, `join` makes the joined linear layers. May change
    the hidden states it is given in place."""

    def __init__(self, layer: Any, path: str, join: Join, kernels: Kernels):
        super().__init__()
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
        self.kernels = kernels
        self.input_norm = _weight_and_epsilon(layer.input_layernorm)
        self.mlp_norm = _weight_and_epsilon(layer.post_attention_layernorm)
        self.qk_norm: tuple[Tensor, float] | None = None
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm, attention.k_norm
            weight = torch.cat([q.weight.expand(self.heads, -1), k.weight.expand(self.kv_heads, -1)])
            self.qk_norm = (weight.detach(), q.variance_epsilon)
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
        x = self.kernels.add_rms_norm(hidden, None, *self.input_norm)[1]
        attended = self._attention(x, position_embeddings, step_input)
        hidden, x = self.kernels.add_rms_norm(hidden, attended, *self.mlp_norm)
        hidden += self._mlp(x)
        return hidden[None]

    def _attention(self, x: Tensor, rotary: tuple[Tensor, Tensor], step_input: StepInput | LayerProbe) -> Tensor:
        rows = x.shape[0]
        heads = self.qkv(x).view(rows, -1, self.head_dim)  # query, key and value heads, in this order
        qk, value = heads[:, : -self.kv_heads], heads[:, -self.kv_heads :]
        qk = self.kernels.norm_and_rotate(qk, self.qk_norm, rotary[0][0], rotary[1][0])
        query, key = qk[:, : self.heads], qk[:, self.heads :]
        attended = step_input.attend(self.layer_idx, query, key, value, self.spec)
        out: Tensor = self.out(attended.reshape(rows, -1))
        return out

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.kernels.silu_and_multiply(self.gate_up(x)))
        return out


def _weight_and_epsilon(norm: Any) -> tuple[Tensor, float]:
    return norm.weight.detach(), norm.variance_epsilon
