"""CPU kernels: weights reordered once for oneDNN, decoding rows of all sequences in two matrix products over grouped
heads, prefill through SDPA, all adapters of a step in one product. Figures are in docs/decisions.md."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serving.engine.kernels import reference
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, DecodeGroup, Span
from serving.engine.kernels.reference import joined_bias, store_kv
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import LoRALinear, StepRows

__all__ = ["add_lora", "attend", "join_linears", "store_kv"]

# The layout hint of the reordering: any number of rows is correct, a few are what decoding has.
_EXPECTED_ROWS = 8


class PackedLinear(nn.Module):
    """A linear layer whose weight lies in oneDNN's own order; a product with few rows then reads memory about twice as
    fast as F.linear. No gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """A dense copy, (out_features, in_features)."""
        dense: Tensor = self.packed.to_dense()
        return dense

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out


def join_linears(linears: Sequence[nn.Linear]) -> nn.Module:
    dtype = linears[0].weight.dtype
    packs = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not packs or any(type(linear) is not nn.Linear for linear in linears):  # quantised layers stay as they are
        return reference.join_linears(linears)
    return PackedLinear(torch.cat([linear.weight.detach() for linear in linears]), joined_bias(linears))


def attend(query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor:
    if not spec.plain:
        return reference.attend(query, cache, plan, spec)
    if plan.decodes is not None and not plan.prefills:
        return _decode(query, cache, plan.decodes, spec.scale)  # the group's rows are all rows, in order
    out = query.new_empty(*query.shape[:2], cache.values.shape[2])
    for span in plan.prefills:
        rows = slice(span.row, span.row + span.count)
        out[rows] = _prefill(query[rows], cache, span, spec.scale)
    if plan.decodes is not None:
        out[plan.decodes.rows] = _decode(query[plan.decodes.rows], cache, plan.decodes, spec.scale)
    return out


def _prefill(query: Tensor, cache: LayerCache, span: Span, scale: float) -> Tensor:
    q, k, v = query.transpose(0, 1)[None], cache.keys[:, span.slots][None], cache.values[:, span.slots][None]
    # SDPA's own causal mask is aligned to the first key, so it fits only a sequence's first chunk.
    mask = None
    if span.count < span.length:
        mask = torch.ones(span.count, span.length, dtype=torch.bool).tril(span.length - span.count)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def _decode(query: Tensor, cache: LayerCache, group: DecodeGroup, scale: float) -> Tensor:
    """query (n, heads, key_dim). SDPA with one query a row costs several times the bytes it reads; heads that share a
    key head become the rows of one matrix product instead."""
    keys, values = group.gather(cache)  # (kv_heads, n, longest, dim)
    n, heads, dim = query.shape
    grouped = (query * scale).view(n, keys.shape[0], -1, dim).transpose(0, 1)  # (kv_heads, n, group, dim)
    scores = (grouped @ keys.transpose(2, 3)).float()
    scores.masked_fill_(group.hidden[:, None, :], float("-inf"))
    weights = scores.softmax(dim=-1).to(values.dtype)
    return (weights @ values).transpose(0, 1).reshape(n, heads, -1)


def add_lora(out: Tensor, x: Tensor, layer: LoRALinear, rows: StepRows) -> None:
    if rows.joins:
        _add_joined(out, x, layer, rows)
        return
    for segment in rows.segments:
        here = slice(segment.start, segment.end)
        for slot, scale in segment.slots:
            for columns, delta in layer.parts(slot):
                assert delta.a is not None and delta.b is not None
                out[here, columns].addmm_(x[here] @ delta.a.T, delta.b, alpha=scale)


def _add_joined(out: Tensor, x: Tensor, layer: LoRALinear, rows: StepRows) -> None:
    """All adapters at once: A x for every row and adapter, then a mask keeps each row's own."""
    joined = layer.joined(rows.slots)
    if joined is None:
        return
    low = F.linear(x, joined.a)
    mask = rows.mask(joined.layout, low)
    if mask is not None:
        low *= mask
    for columns, outputs, b in joined.members:
        out[:, outputs].addmm_(low[:, columns], b)
