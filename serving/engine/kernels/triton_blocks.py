"""The small operations of a decoder block, one launch each. They round where PyTorch's separate operations would."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from serving.engine.kv_cache import LayerCache

_BLOCK_GATE = 1024


def add_rms_norm(x: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As reference.add_rms_norm."""
    rows, width = x.shape
    total = x if added is None else torch.empty_like(x)
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _add_rms_norm[(rows,)](
        x,
        x if added is None else added,
        weight,
        total,
        out,
        epsilon,
        WIDTH=width,
        BLOCK=block,
        ADDS=added is not None,
        num_warps=min(16, max(1, block // 512)),
    )
    return total, out


def norm_and_rotate(heads: Tensor, norm: tuple[Tensor, float] | None, cos: Tensor, sin: Tensor) -> Tensor:
    """As reference.norm_and_rotate."""
    rows, count, dim = heads.shape
    out = torch.empty(rows, count, dim, dtype=heads.dtype, device=heads.device)
    weight, epsilon = norm or (heads, 0.0)
    _norm_and_rotate[(rows, count)](
        heads,
        heads.stride(0),
        weight,
        epsilon,
        cos,
        sin,
        cos.stride(0),
        out,
        HEADS=count,
        DIM=dim,
        BLOCK_HALF=triton.next_power_of_2(dim // 2),
        NORMS=norm is not None,
        num_warps=1,
    )
    return out


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """As reference.silu_and_multiply."""
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    _silu_and_multiply[(rows, triton.cdiv(width // 2, _BLOCK_GATE))](gate_up, out, width // 2, BLOCK=_BLOCK_GATE)
    return out


def store_kv(cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """As reference.store_kv."""
    rows, kv_heads, key_dim = keys.shape
    value_dim = values.shape[2]
    _store_kv[(rows, kv_heads)](
        keys,
        values,
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        slots,
        cache.keys,
        cache.values,
        cache.keys.stride(0),
        cache.values.stride(0),
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        BLOCK=triton.next_power_of_2(max(key_dim, value_dim)),
        num_warps=1,
    )


@triton.jit
def _add_rms_norm(x, added, weight, total, out, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    values = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(added + start + columns, mask=inside, other=0.0).to(tl.float32)
        values = values.to(out.dtype.element_ty).to(tl.float32)
        tl.store(total + start + columns, values.to(out.dtype.element_ty), mask=inside)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / WIDTH + epsilon)
    normed = (values * scale).to(out.dtype.element_ty).to(tl.float32)
    weights = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + columns, (weights * normed).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_and_rotate(
    heads,
    heads_stride,
    weight,
    epsilon,
    cos,
    sin,
    turn_stride,
    out,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NORMS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half: tl.constexpr = DIM // 2
    dims = tl.arange(0, BLOCK_HALF)
    inside = dims < half
    kind = out.dtype.element_ty
    here = heads + row * heads_stride + head * DIM + dims
    first = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(here + half, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        scale = tl.rsqrt((tl.sum(first * first, axis=0) + tl.sum(second * second, axis=0)) / DIM + epsilon)
        weights = weight + head * DIM + dims
        first = (first * scale).to(kind).to(tl.float32) * tl.load(weights, mask=inside, other=0.0).to(tl.float32)
        second = (second * scale).to(kind).to(tl.float32)
        second = second * tl.load(weights + half, mask=inside, other=0.0).to(tl.float32)
        first = first.to(kind).to(tl.float32)
        second = second.to(kind).to(tl.float32)
    turn = row * turn_stride + dims
    cos_first = tl.load(cos + turn, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + turn + half, mask=inside, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + turn, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + turn + half, mask=inside, other=0.0).to(tl.float32)
    there = out + (row * HEADS + head) * DIM + dims
    turned = (first * cos_first).to(kind).to(tl.float32) - (second * sin_first).to(kind).to(tl.float32)
    tl.store(there, turned.to(kind), mask=inside)
    turned = (second * cos_second).to(kind).to(tl.float32) + (first * sin_second).to(kind).to(tl.float32)
    tl.store(there + half, turned.to(kind), mask=inside)


@triton.jit
def _silu_and_multiply(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    kind = out.dtype.element_ty
    gate = tl.load(gate_up + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    gated = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(out + row * width + columns, (gated * up).to(kind), mask=inside)


@triton.jit
def _store_kv(
    keys,
    values,
    keys_row,
    keys_head,
    values_row,
    values_head,
    slots,
    kept_keys,
    kept_values,
    kept_keys_head,
    kept_values_head,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + row)
    dims = tl.arange(0, BLOCK)
    key = tl.load(keys + row * keys_row + head * keys_head + dims, mask=dims < KEY_DIM)
    tl.store(kept_keys + head * kept_keys_head + slot * KEY_DIM + dims, key, mask=dims < KEY_DIM)
    value = tl.load(values + row * values_row + head * values_head + dims, mask=dims < VALUE_DIM)
    tl.store(kept_values + head * kept_values_head + slot * VALUE_DIM + dims, value, mask=dims < VALUE_DIM)
