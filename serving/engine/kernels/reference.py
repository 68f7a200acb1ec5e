"""The kernels in plain PyTorch, one sequence at a time: what the fast ones must agree with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, Span
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import LoRALinear, StepRows


def join_linears(linears: Sequence[nn.Linear], bits: int | None = None) -> nn.Module:
    """One layer that computes all of them side by side; they read the same input. `bits`: quantise its weights, where
    the device's kernels do that and not the loading of the base."""
    if len(linears) == 1:
        return linears[0]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = joined_bias(linears)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        joined.bias = nn.Parameter(bias, requires_grad=False)
    return joined


def joined_bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    """Their biases side by side, zeros for layers without; None when none has one."""
    if all(linear.bias is None for linear in linears):
        return None
    zeros = [linear.weight.new_zeros(linear.out_features) for linear in linears]
    return torch.cat(
        [zero if linear.bias is None else linear.bias.detach() for linear, zero in zip(linears, zeros, strict=True)]
    )


def add_rms_norm(x: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x + added (or x), and its root-mean-square norm as Llama's family rounds it: normalised in float32, cast, then
    weighted. x and added (rows, width), weight (width,)."""
    total = x if added is None else x + added
    return total, weight * F.rms_norm(total, (total.shape[-1],), None, epsilon)


def norm_and_rotate(heads: Tensor, norm: tuple[Tensor, float] | None, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, halves as in GPT-NeoX) of heads (rows, heads, dim), each normed before when
    `norm` gives weights (heads, dim) and epsilon; cos and sin (rows, dim)."""
    if norm is not None:
        heads = norm[0] * F.rms_norm(heads, (heads.shape[-1],), None, norm[1])
    half = heads.shape[-1] // 2
    turned = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
    return heads * cos[:, None] + turned * sin[:, None]


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """(rows, 2 · width), gates first → (rows, width)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def store_kv(cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """keys (rows, kv_heads, key_dim), values (rows, kv_heads, value_dim) → the cache at `slots` (rows,)."""
    cache.keys.index_copy_(1, slots, keys.transpose(0, 1))
    cache.values.index_copy_(1, slots, values.transpose(0, 1))


def attend(query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor:
    """query (rows, heads, key_dim) → (rows, heads, value_dim). Each sequence sees its own past only."""
    out = query.new_empty(*query.shape[:2], cache.values.shape[2])
    for span in plan.spans:
        rows = slice(span.row, span.row + span.count)
        out[rows] = attend_span(query[rows], cache.keys[:, span.slots], cache.values[:, span.slots], span, spec)
    return out


def attend_span(query: Tensor, keys: Tensor, values: Tensor, span: Span, spec: AttentionSpec) -> Tensor:
    """Softmax attention over grouped heads, in float32: query head h reads key head h // group. query (count, heads,
    dim), keys and values (kv_heads, length, dim)."""
    heads, kv_heads = query.shape[1], keys.shape[0]
    keys = keys.repeat_interleave(heads // kv_heads, dim=0).float()
    values = values.repeat_interleave(heads // kv_heads, dim=0).float()
    scores = torch.einsum("qhd,hkd->hqk", query.float(), keys) * spec.scale
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    at = torch.arange(span.length - span.count, span.length, device=query.device)[:, None]
    seen = torch.arange(span.length, device=query.device)[None, :]
    visible = seen <= at
    if spec.window is not None:
        visible &= seen > at - spec.window
    scores = scores.masked_fill(~visible, float("-inf"))
    if spec.sinks is not None:
        # A sink takes part in the softmax but contributes no value (GPT-OSS).
        sinks = spec.sinks.float()[:, None, None].expand(-1, span.count, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return torch.einsum("hqk,hkd->qhd", weights, values).to(query.dtype)


def add_lora(out: Tensor, x: Tensor, layer: LoRALinear, rows: StepRows) -> None:
    """out (rows, out_features) += scale · (x Aᵀ) Bᵀ on each segment's rows; x (rows, in_features). In place."""
    for segment in rows.segments:
        here = slice(segment.start, segment.end)
        for slot, scale in segment.slots:
            for columns, delta in layer.parts(slot):
                assert delta.a is not None and delta.b is not None
                change = (x[here].float() @ delta.a.float().T) @ delta.b.float()
                out[here, columns] += (scale * change).to(out.dtype)
