"""CPU kernels: decoding rows of all sequences in two matrix products over grouped heads, prefill through SDPA."""

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.engine.kernels import reference
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, DecodeGroup, LoRASegment, Span
from serving.engine.kernels.reference import store_kv
from serving.engine.kv_cache import LayerCache

__all__ = ["add_lora", "attend", "store_kv"]


def attend(query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor:
    if not spec.plain:
        return reference.attend(query, cache, plan, spec)
    out = query.new_empty(*query.shape[:2], cache.values.shape[2])
    for span in plan.prefills:
        rows = slice(span.row, span.row + span.count)
        out[rows] = _prefill(query[rows], cache, span, spec.scale)
    if plan.decodes is not None:
        out[plan.decodes.rows] = _decode(query[plan.decodes.rows], cache, plan.decodes, spec.scale)
    return out


def _prefill(query: Tensor, cache: LayerCache, span: Span, scale: float) -> Tensor:
    q, k, v = (t.transpose(0, 1)[None] for t in (query, cache.keys[span.slots], cache.values[span.slots]))
    # SDPA's own causal mask is aligned to the first key, so it fits only a sequence's first chunk.
    mask = None
    if span.count < span.length:
        mask = torch.ones(span.count, span.length, dtype=torch.bool).tril(span.length - span.count)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def _decode(query: Tensor, cache: LayerCache, group: DecodeGroup, scale: float) -> Tensor:
    """query (n, heads, key_dim). SDPA with one query a row costs several times the bytes it reads; heads that
    share a key head become the rows of one matrix product instead."""
    keys = cache.keys[group.slots]  # (n, longest, kv_heads, key_dim)
    values = cache.values[group.slots]
    n, _, kv_heads, _ = keys.shape
    grouped = query.view(n, kv_heads, -1, query.shape[2]) * scale  # (n, kv_heads, group, key_dim)
    scores = (grouped @ keys.permute(0, 2, 3, 1)).float()
    scores.masked_fill_(group.hidden[:, None, None, :], float("-inf"))
    weights = scores.softmax(dim=-1).to(values.dtype)
    return (weights @ values.transpose(1, 2)).reshape(n, query.shape[1], -1)


def add_lora(out: Tensor, x: Tensor, segments: list[LoRASegment]) -> None:
    for segment in segments:
        rows = slice(segment.start, segment.end)
        out[rows].addmm_(x[rows] @ segment.a.T, segment.b.T, alpha=segment.scale)
