"""The kernels in plain PyTorch, one sequence at a time: what the fast ones must agree with."""

import torch
from torch import Tensor

from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, LoRASegment, Span
from serving.engine.kv_cache import LayerCache


def store_kv(cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """keys (rows, kv_heads, key_dim), values (rows, kv_heads, value_dim) → the cache at `slots` (rows,)."""
    cache.keys.index_copy_(0, slots, keys)
    cache.values.index_copy_(0, slots, values)


def attend(query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor:
    """query (rows, heads, key_dim) → (rows, heads, value_dim). Each sequence sees its own past only."""
    out = query.new_empty(*query.shape[:2], cache.values.shape[2])
    for span in plan.spans:
        rows = slice(span.row, span.row + span.count)
        out[rows] = attend_span(query[rows], cache.keys[span.slots], cache.values[span.slots], span, spec)
    return out


def attend_span(query: Tensor, keys: Tensor, values: Tensor, span: Span, spec: AttentionSpec) -> Tensor:
    """Softmax attention over grouped heads, in float32: query head h reads key head h // group."""
    heads, kv_heads = query.shape[1], keys.shape[1]
    keys = keys.repeat_interleave(heads // kv_heads, dim=1).float()
    values = values.repeat_interleave(heads // kv_heads, dim=1).float()
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * spec.scale
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
    return torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)


def add_lora(out: Tensor, x: Tensor, segments: list[LoRASegment]) -> None:
    """out (rows, out_features) += scale · (x Aᵀ) Bᵀ on each segment's rows; x (rows, in_features). In place."""
    for segment in segments:
        rows = slice(segment.start, segment.end)
        delta = (x[rows].float() @ segment.a.float().T) @ segment.b.float().T
        out[rows] += (segment.scale * delta).to(out.dtype)
