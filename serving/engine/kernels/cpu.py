"""CPU kernels: weights reordered once for oneDNN, everything between the products in the compiled kernels of `native`
where they can be had, in PyTorch's operations otherwise. Figures are in docs/decisions.md."""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serving.engine.kernels import native, reference
from serving.engine.kernels.packed_linear import PackedLinear
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, DecodeGroup, Span
from serving.engine.kernels.quantized import Int4Linear, Int8Linear
from serving.engine.kernels.reference import joined_bias
from serving.engine.kernels.slot_table import slot_table
from serving.engine.kernels.stack import decode_layers
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import LoRALinear, RowSegment, StepRows

__all__ = [
    "add_lora",
    "add_rms_norm",
    "attend",
    "decode_layers",
    "join_linears",
    "norm_and_rotate",
    "silu_and_multiply",
    "store_kv",
]

# oneDNN compiles a product for every shape it meets, a quarter of a MiB each or more, and keeps 1,024; PyTorch's
# wrapper keeps as many more alive. Steps differ in rows and prompts in length, so a server grew by hundreds of MiB
# before any were dropped. A step needs about ten. Both are read at the first product; the environment goes first.
_COMPILED_PRODUCTS = 128
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, str(_COMPILED_PRODUCTS))

# Scores of a prompt's chunk, in elements, that are worth writing down; beyond that SDPA, which does not.
_MOST_SCORES = 1 << 24


def join_linears(linears: Sequence[nn.Linear], bits: int | None = None) -> nn.Module:
    """One layer for all of them, packed for this processor. `bits` 8 or 4 quantises it; a layer whose size the 4-bit
    kernel does not take gets 8."""
    if any(type(linear) is not nn.Linear for linear in linears):  # quantised at loading: stays as it is
        return reference.join_linears(linears)
    weight, bias = torch.cat([linear.weight.detach() for linear in linears]), joined_bias(linears)
    if bits is not None:
        return Int4Linear(weight, bias) if bits == 4 and Int4Linear.fits(weight) else Int8Linear(weight, bias)
    if weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return PackedLinear(weight, bias)
    return reference.join_linears(linears)


def add_rms_norm(x: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    kernels = native.load()
    if kernels is None or not kernels.fits(x, x.shape[1]):
        return reference.add_rms_norm(x, added, weight, epsilon)
    return x, kernels.add_rms_norm(x, added, weight, epsilon)


def norm_and_rotate(heads: Tensor, norm: tuple[Tensor, float] | None, cos: Tensor, sin: Tensor) -> Tensor:
    kernels = native.load()
    if kernels is None or not kernels.fits(heads, heads.shape[2] // 2):
        return reference.norm_and_rotate(heads, norm, cos, sin)
    kernels.norm_and_rotate(heads, norm, cos, sin)
    return heads


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    kernels = native.load()
    if kernels is None or not kernels.fits(gate_up, gate_up.shape[1] // 2):
        return reference.silu_and_multiply(gate_up)
    return kernels.silu_and_multiply(gate_up)


def store_kv(cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    kernels = native.load()
    if kernels is None or not kernels.fits(keys):
        reference.store_kv(cache, keys, values, slots)
        return
    for kept, x in ((cache.keys, keys), (cache.values, values)):
        heads_adjacent = x.stride(2) == 1 and x.stride(1) == x.shape[2]
        kernels.store_kv(kept, x if heads_adjacent else x.contiguous(), slots)


def attend(query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor:
    out = query.new_empty(*query.shape[:2], cache.values.shape[2])
    for span in plan.prefills:
        rows = slice(span.row, span.row + span.count)
        out[rows] = _prefill(query[rows], cache, span, spec)
    group = plan.decodes
    if group is None:
        return out
    if not plan.prefills:  # the group's rows are all rows, in order
        _decode(out, query, cache, group, spec)
    else:
        decoded = out.new_empty(len(group.spans), *out.shape[1:])
        _decode(decoded, query[group.rows], cache, group, spec)
        out[group.rows] = decoded
    return out


def _prefill(query: Tensor, cache: LayerCache, span: Span, spec: AttentionSpec) -> Tensor:
    """query (count, heads, key_dim) → (count, heads, value_dim)."""
    keys, values = (torch.index_select(kept, 1, span.slots) for kept in (cache.keys, cache.values))
    if not spec.plain:
        return reference.attend_span(query, keys, values, span, spec)
    count, heads, dim = query.shape
    kernels = native.load()
    if kernels is None or not kernels.fits(query) or heads * count * span.length > _MOST_SCORES:
        # SDPA's own causal mask is aligned to the first key, so it fits only a sequence's first chunk.
        mask = None
        if span.count < span.length:
            mask = torch.ones(span.count, span.length, dtype=torch.bool).tril(span.length - span.count)
        q = query.transpose(0, 1)[None]
        attended = F.scaled_dot_product_attention(
            q, keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=spec.scale, enable_gqa=True
        )
        return attended[0].transpose(0, 1)
    # Heads that share a key head are the rows of one matrix product.
    grouped = query.view(count, len(keys), -1, dim).permute(1, 2, 0, 3).reshape(len(keys), -1, dim)
    scores = torch.bmm(grouped, keys.transpose(1, 2))
    kernels.causal_softmax(scores.view(heads, count, span.length), spec.scale)
    return torch.bmm(scores, values).view(heads, count, -1).transpose(0, 1)


def _decode(out: Tensor, query: Tensor, cache: LayerCache, group: DecodeGroup, spec: AttentionSpec) -> None:
    """query (n, heads, key_dim) → out (n, heads, value_dim)."""
    kernels = native.load()
    if kernels is not None and kernels.fits(query, query.shape[2], out.shape[2]):
        heads_adjacent = query.stride(2) == 1 and query.stride(1) == query.shape[2]
        query = query if heads_adjacent else query.contiguous()
        kernels.attend(out, query, cache, group.addresses, group.lengths, spec)
    elif spec.plain:
        out.copy_(_decode_grouped(query, cache, group, spec.scale))
    else:
        for row, span in enumerate(group.spans):
            keys, values = cache.keys[:, span.slots], cache.values[:, span.slots]
            out[row] = reference.attend_span(query[row, None], keys, values, span, spec)[0]


def _decode_grouped(query: Tensor, cache: LayerCache, group: DecodeGroup, scale: float) -> Tensor:
    """SDPA with one query a row costs several times the bytes it reads; heads that share a key head become the rows of
    one matrix product instead."""
    keys, values = group.gather(cache)  # (kv_heads, n, longest, dim)
    n, heads, dim = query.shape
    grouped = (query * scale).view(n, keys.shape[0], -1, dim).transpose(0, 1)  # (kv_heads, n, group, dim)
    scores = (grouped @ keys.transpose(2, 3)).float()
    scores.masked_fill_(group.hidden[:, None, :], float("-inf"))
    weights = scores.softmax(dim=-1).to(values.dtype)
    return (weights @ values).transpose(0, 1).reshape(n, heads, -1)


def add_lora(out: Tensor, x: Tensor, layer: LoRALinear, rows: StepRows) -> None:
    table = slot_table(layer, rows)
    kernels = native.load()
    if kernels is not None and table.fits:
        kernels.add_lora(out, x, rows.entries, table.members)
    else:
        _add_segments(out, x, layer, rows.segments)


def _add_segments(out: Tensor, x: Tensor, layer: LoRALinear, segments: Sequence[RowSegment]) -> None:
    for segment in segments:
        here = slice(segment.start, segment.end)
        for slot, scale in segment.slots:
            for columns, delta in layer.parts(slot):
                assert delta.a is not None and delta.b is not None
                out[here, columns].addmm_(x[here] @ delta.a.T, delta.b, alpha=scale)
