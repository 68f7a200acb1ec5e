"""CPU kernels: weights reordered once for oneDNN, everything between the products in the compiled kernels of `native`
where they can be had, in PyTorch's operations otherwise. Figures are in docs/decisions.md."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serving.engine.kernels import native, reference
from serving.engine.kernels.native import NativeKernels
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, DecodeGroup, Span
from serving.engine.kernels.quantized import Int4Linear, Int8Linear
from serving.engine.kernels.reference import joined_bias
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import LoRALinear, RowSegment, StepRows

__all__ = ["add_lora", "add_rms_norm", "attend", "join_linears", "norm_and_rotate", "silu_and_multiply", "store_kv"]

# The layout hint of the reordering: any number of rows is correct, and this one was the fastest for 1 to 1,024.
_EXPECTED_ROWS = 128
# Segments of up to this many rows read the adapter's weights once for all of them in the compiled kernel; longer ones
# are matrix products.
_SHORT_ROWS = 16
# Two orders of the same sum may differ by this much of its length, in bfloat16.
_ROUNDING = 2**-7
# Scores of a prompt's chunk, in elements, that are worth writing down; beyond that SDPA, which does not.
_MOST_SCORES = 1 << 24


class PackedLinear(nn.Module):
    """A linear layer whose weight lies in oneDNN's own order: a product with few rows then reads memory about twice as
    fast as F.linear, and our own kernel, which knows that order, as fast as memory allows. No gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.width, self.size = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        self.bias = bias
        self.native = self._own_kernel()
        self.address: int = torch.ops.mkldnn.data_ptr(self.packed) if self.native else 0

    @property
    def weight(self) -> Tensor:
        """A dense copy, (out_features, in_features)."""
        dense: Tensor = self.packed.to_dense()
        return dense

    def forward(self, x: Tensor) -> Tensor:
        if self.native is not None and x.numel() <= self.native.most_rows * self.size:
            rows = x.reshape(-1, self.size).contiguous()
            return self.native.multiply_packed(rows, self.address, self.bias, self.width).view(*x.shape[:-1], -1)
        return self._onednn(x)

    def _onednn(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out

    def _own_kernel(self) -> NativeKernels | None:
        """The kernels, if theirs reads this weight as oneDNN does: the order is oneDNN's business, so it is asked."""
        kernels = native.load()
        if self.packed.dtype != torch.bfloat16 or not kernels or not kernels.most_rows or self.width % native.LANES:
            return None
        panels = -(-self.width // native.PANEL) * native.PANEL
        if torch.ops.mkldnn._nbytes(self.packed) != panels * self.size * self.packed.element_size():
            return None
        x = torch.randn(1, self.size, generator=torch.Generator().manual_seed(0)).to(self.packed.dtype)
        ours = kernels.multiply_packed(x, torch.ops.mkldnn.data_ptr(self.packed), self.bias, self.width)
        theirs = self._onednn(x)
        return kernels if (ours - theirs).float().norm() <= _ROUNDING * theirs.float().norm() else None


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
    table = _table(layer, rows)
    kernels = native.load()
    if kernels is None or not table.fits:
        _add_segments(out, x, layer, rows.segments)
        return
    entries = rows.entries(_SHORT_ROWS)
    if len(entries):
        kernels.add_lora(out, x, entries, table.members)
    _add_segments(out, x, layer, rows.longer_than(_SHORT_ROWS))


def _add_segments(out: Tensor, x: Tensor, layer: LoRALinear, segments: Sequence[RowSegment]) -> None:
    for segment in segments:
        here = slice(segment.start, segment.end)
        for slot, scale in segment.slots:
            for columns, delta in layer.parts(slot):
                assert delta.a is not None and delta.b is not None
                out[here, columns].addmm_(x[here] @ delta.a.T, delta.b, alpha=scale)


class _SlotTable:
    """Where the adapters' weights of one layer lie, by slot, as the compiled kernel reads it."""

    def __init__(self, layer: LoRALinear, num_slots: int):
        self.version = layer.version
        self.num_slots = num_slots
        widths = [columns.stop - columns.start for columns in layer.columns.values()]
        parts = [delta for slot in layer.slots for _, delta in layer.parts(slot)]
        self.fits = all(
            delta.a is not None and NativeKernels.fits(delta.a, delta.a.shape[1], *widths) for delta in parts
        )
        kept = torch.zeros(len(layer.columns), 3, num_slots, dtype=torch.int64)  # a, b, rank
        numbers = {columns.start: number for number, columns in enumerate(layer.columns.values())}
        for slot in layer.slots:
            for columns, delta in layer.parts(slot):
                assert delta.a is not None and delta.b is not None
                row = kept[numbers[columns.start]]
                row[0, slot], row[1, slot], row[2, slot] = delta.a.data_ptr(), delta.b.data_ptr(), len(delta.a)
        self._kept = kept
        self.members = torch.tensor(
            [
                [columns.start, columns.stop - columns.start, *(part.data_ptr() for part in kept[number])]
                for number, columns in enumerate(layer.columns.values())
            ]
        )


_tables: WeakKeyDictionary[LoRALinear, _SlotTable] = WeakKeyDictionary()


def _table(layer: LoRALinear, rows: StepRows) -> _SlotTable:
    table = _tables.get(layer)
    needed = rows.slots[-1] + 1
    if table is None or table.version != layer.version or table.num_slots < needed:
        table = _tables[layer] = _SlotTable(layer, max(needed, max(layer.slots, default=0) + 1))
    return table
