"""Decoding attention on CUDA: one query a row, its past found through a block table (flash decoding; Dao et al. 2023).

The past is cut into chunks of fixed length. Each chunk is summed up alone and the chunks are then put together in
order, so that a row's result depends neither on the rest of the batch nor on how many programs shared the work."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from serving.engine.kernels.plan import AttentionSpec
from serving.engine.kernels.triton_product import INTERPRETED, matrix_product
from serving.engine.kv_cache import LayerCache

CHUNK = 256  # tokens
_BLOCK_TOKENS = 64
_BLOCK_CHUNKS = 16
_FEWEST_ROWS = 16  # of a matrix-unit product


def attend_decodes(
    query: Tensor,
    cache: LayerCache,
    table: Tensor,
    lengths: Tensor,
    block_size: int,
    spec: AttentionSpec,
    programs: int,
) -> Tensor:
    """query (n, heads, key_dim) → (n, heads, value_dim). table (n, blocks): the blocks of `block_size` tokens that
    hold each row's past in order, itself included; lengths (n,) int32. `programs` is how many fill the device."""
    rows, heads, key_dim = query.shape
    kv_heads, _, value_dim = cache.values.shape
    query = query.contiguous()
    chunks = triton.cdiv(table.shape[1] * block_size, CHUNK)
    sharing = min(chunks, triton.cdiv(programs, rows * kv_heads))
    sums = torch.empty(rows, heads, chunks, value_dim, dtype=torch.float32, device=query.device)
    scales = torch.empty(rows, heads, chunks, 2, dtype=torch.float32, device=query.device)  # largest score, weight
    out = torch.empty(rows, heads, value_dim, dtype=query.dtype, device=query.device)
    _sum_chunks[(rows, kv_heads, sharing)](
        query,
        cache.keys,
        cache.values,
        cache.keys.stride(0),
        cache.values.stride(0),
        table,
        table.stride(0),
        lengths,
        sums,
        scales,
        spec.scale,
        spec.softcap or 0.0,
        spec.window or 0,
        sharing,
        CHUNKS=chunks,
        CHUNK=CHUNK,
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        BLOCK_GROUP=max(_FEWEST_ROWS, triton.next_power_of_2(heads // kv_heads)),
        KEY_DIM=key_dim,
        BLOCK_KEY=max(16, triton.next_power_of_2(key_dim)),
        VALUE_DIM=value_dim,
        BLOCK_VALUE=max(16, triton.next_power_of_2(value_dim)),
        BLOCK_TOKENS=_BLOCK_TOKENS,
        BLOCK_SIZE=block_size,
        WIDEN=INTERPRETED,
    )
    _join_chunks[(rows, heads)](
        sums,
        scales,
        lengths,
        query if spec.sinks is None else spec.sinks,
        out,
        spec.window or 0,
        CHUNKS=chunks,
        CHUNK=CHUNK,
        HEADS=heads,
        VALUE_DIM=value_dim,
        BLOCK_VALUE=max(16, triton.next_power_of_2(value_dim)),
        BLOCK_CHUNKS=_BLOCK_CHUNKS,
        HAS_SINKS=spec.sinks is not None,
    )
    return out


@triton.jit
def _sum_chunks(
    query,
    keys,
    values,
    keys_stride,
    values_stride,
    table,
    table_stride,
    lengths,
    sums,
    scales,
    scale,
    softcap,
    window,
    sharing,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """For the heads that share one key head, and every `sharing`-th chunk: Σ exp(score - largest) · value, with the
    largest score and Σ exp(score - largest) beside it."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + row)
    first_seen = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    group = tl.arange(0, BLOCK_GROUP)
    heads = row * KV_HEADS * GROUP + kv_head * GROUP + group  # of all rows
    key_dims = tl.arange(0, BLOCK_KEY)
    value_dims = tl.arange(0, BLOCK_VALUE)
    in_group = group < GROUP
    asked = tl.load(
        query + heads[:, None] * KEY_DIM + key_dims[None, :],
        mask=in_group[:, None] & (key_dims < KEY_DIM)[None, :],
        other=0.0,
    )
    keys += kv_head * keys_stride
    values += kv_head * values_stride
    for chunk in range(first_seen // CHUNK + tl.program_id(2), tl.cdiv(length, CHUNK), sharing):
        largest = tl.full((BLOCK_GROUP,), float("-inf"), dtype=tl.float32)
        weight = tl.zeros((BLOCK_GROUP,), dtype=tl.float32)
        total = tl.zeros((BLOCK_GROUP, BLOCK_VALUE), dtype=tl.float32)
        # From the first block with a visible token on: a block without one would have -inf as its largest score.
        begin = tl.maximum(chunk * CHUNK, first_seen // BLOCK_TOKENS * BLOCK_TOKENS)
        for start in range(begin, tl.minimum((chunk + 1) * CHUNK, length), BLOCK_TOKENS):
            tokens = start + tl.arange(0, BLOCK_TOKENS)
            seen = (tokens < length) & (tokens >= first_seen)
            block = tl.load(table + row * table_stride + tokens // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
            places = block * BLOCK_SIZE + tokens % BLOCK_SIZE
            key = tl.load(
                keys + places[None, :] * KEY_DIM + key_dims[:, None],
                mask=seen[None, :] & (key_dims < KEY_DIM)[:, None],
                other=0.0,
            )
            scores = tl.zeros((BLOCK_GROUP, BLOCK_TOKENS), dtype=tl.float32)
            scores = matrix_product(asked, key, scores, WIDEN) * scale
            if softcap > 0:
                scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)  # tanh
            scores = tl.where(seen[None, :], scores, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(scores, axis=1))
            shrink = tl.exp(largest - new_largest)
            weights = tl.exp(scores - new_largest[:, None])
            value = tl.load(
                values + places[:, None] * VALUE_DIM + value_dims[None, :],
                mask=seen[:, None] & (value_dims < VALUE_DIM)[None, :],
                other=0.0,
            )
            total = matrix_product(weights.to(value.dtype), value, total * shrink[:, None], WIDEN)
            weight = weight * shrink + tl.sum(weights, axis=1)
            largest = new_largest
        part = heads * CHUNKS + chunk
        mask = in_group[:, None] & (value_dims < VALUE_DIM)[None, :]
        tl.store(sums + part[:, None] * VALUE_DIM + value_dims[None, :], total, mask=mask)
        tl.store(scales + part * 2, largest, mask=in_group)
        tl.store(scales + part * 2 + 1, weight, mask=in_group)


@triton.jit
def _join_chunks(
    sums,
    scales,
    lengths,
    sinks,
    out,
    window,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """One head's chunks, put on a common scale and added up. A sink takes part in the softmax without a value."""
    row = tl.program_id(0).to(tl.int64)
    head = row * HEADS + tl.program_id(1)
    length = tl.load(lengths + row)
    first = tl.where(window > 0, tl.maximum(length - window, 0), 0) // CHUNK
    last = tl.cdiv(length, CHUNK)
    dims = tl.arange(0, BLOCK_VALUE)
    largest = tl.full((1,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((1,), dtype=tl.float32)
    if HAS_SINKS:
        largest = tl.zeros((1,), dtype=tl.float32) + tl.load(sinks + tl.program_id(1)).to(tl.float32)
        weight += 1.0
    total = tl.zeros((BLOCK_VALUE,), dtype=tl.float32)
    for start in range(first, last, BLOCK_CHUNKS):
        chunks = start + tl.arange(0, BLOCK_CHUNKS)
        valid = chunks < last
        part = head * CHUNKS + chunks
        tops = tl.load(scales + part * 2, mask=valid, other=float("-inf"))
        new_largest = tl.maximum(largest, tl.max(tops, axis=0))
        shrink = tl.exp(largest - new_largest)
        factors = tl.exp(tops - new_largest)
        values = tl.load(
            sums + part[:, None] * VALUE_DIM + dims[None, :],
            mask=valid[:, None] & (dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        total = total * shrink + tl.sum(values * factors[:, None], axis=0)
        weight = weight * shrink + tl.sum(tl.load(scales + part * 2 + 1, mask=valid, other=0.0) * factors, axis=0)
        largest = new_largest
    tl.store(out + head * VALUE_DIM + dims, (total / weight).to(out.dtype.element_ty), mask=dims < VALUE_DIM)
