"""Grouped LoRA for CUDA: out += Σ strength · (x Aᵀ) B for adapters of any rank, side by side in one launch.

Two forms of the same two products. By rows: every row finds its own slots; the first product is split along the input
so that a few rows fill the device. By tiles: runs of rows with the same slots, on matrix units. The order of each sum
depends on the row's own adapter alone, never on what else is in the batch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from serving.engine.kernels.lora_tables import BLOCK_OUT, LayerTable, Tiles
from serving.engine.kernels.triton_product import INTERPRETED, matrix_product
from serving.engine.lora import DeviceRows

TILE_ROWS = 64
_BLOCK_RANK = 16
_SPLIT_IN = 512  # input features of one program, by rows
_BLOCK_IN = 64  # input features of one step, by tiles


def add_by_rows(out: Tensor, x: Tensor, table: LayerTable, rows: DeviceRows, rank: int) -> None:
    """out (rows, out_features), x (rows, in_features), rows contiguous. No slot in use has a rank above `rank`."""
    count, width = rows.slots_by_row.shape
    in_features = x.shape[1]
    splits = triton.cdiv(in_features, _SPLIT_IN)
    low = torch.empty(count, width, table.members, splits, rank, dtype=torch.float32, device=x.device)
    places = (table.places, table.num_slots + 1, rows.slots_by_row)
    shape = {"ADAPTERS": width, "MEMBERS": table.members, "SPLITS": splits, "RANK": rank, "BLOCK_RANK": _BLOCK_RANK}
    _shrink_rows[(count * width, table.members, splits)](
        x, x.stride(0), in_features, low, *places, rows.strengths, **shape, BLOCK_IN=_SPLIT_IN
    )
    _expand_rows[(count, len(table.blocks))](
        out,
        out.stride(0),
        low,
        *places,
        table.blocks,
        **shape,
        BLOCK_SPLITS=triton.next_power_of_2(splits),
        BLOCK_OUT=BLOCK_OUT,
        ALIGNED=table.aligned,
    )


def add_by_tiles(out: Tensor, x: Tensor, table: LayerTable, tiles: Tiles, rank: int) -> None:
    """As `add_by_rows`. Sums are float32; x Aᵀ is rounded to the inputs' type before it meets B, as PEFT does."""
    width = tiles.slots.shape[1]
    low = torch.empty(x.shape[0], width, table.members, rank, dtype=torch.float32, device=x.device)
    places = (table.places, table.num_slots + 1, tiles.slots)
    shape = {"ADAPTERS": width, "MEMBERS": table.members, "RANK": rank, "BLOCK_RANK": _BLOCK_RANK}
    shape |= {"TILE_ROWS": tiles.height, "WIDEN": INTERPRETED}
    _shrink_tiles[(len(tiles.spans), table.members, width)](
        x, x.stride(0), x.shape[1], low, *places, tiles.strengths, tiles.spans, **shape, BLOCK_IN=_BLOCK_IN
    )
    _expand_tiles[(len(tiles.spans), len(table.blocks))](
        out,
        out.stride(0),
        low,
        *places,
        table.blocks,
        tiles.spans,
        **shape,
        BLOCK_OUT=BLOCK_OUT,
        ALIGNED=table.aligned,
    )


# The kernels. `places` is (A, B, rank) x member x slot. Sums are float32. WIDEN: products are of float32 too.


@triton.jit
def _matrix(places, index, like):
    """The pointer at places[index], to elements like those of the pointer `like`."""
    # The hint must stand on the pointer: the compiler forgets the integer's when it becomes one.
    return tl.multiple_of(tl.load(places + index).to(tl.pointer_type(like.dtype.element_ty)), 16)


@triton.jit
def _shrink_rows(
    x,
    x_stride,
    in_features,
    low,
    places,
    places_width,
    slots,
    strengths,
    ADAPTERS: tl.constexpr,
    MEMBERS: tl.constexpr,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """low[row, adapter, member, split, :] = strength · A x over the split's input features."""
    use = tl.program_id(0)  # row · ADAPTERS + adapter
    member = tl.program_id(1)
    split = tl.program_id(2)
    slot = tl.load(slots + use)
    place = member * places_width + slot
    rank = tl.load(places + 2 * MEMBERS * places_width + place).to(tl.int32)
    strength = tl.load(strengths + use)
    a = _matrix(places, place, x)
    columns = split * BLOCK_IN + tl.arange(0, BLOCK_IN)
    inside = columns < in_features
    row = (use // ADAPTERS).to(tl.int64)
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    for start in range(0, rank, BLOCK_RANK):
        ranks = start + tl.arange(0, BLOCK_RANK)
        mask = (ranks < rank)[:, None] & inside[None, :]
        weights = tl.load(a + ranks[:, None] * in_features + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        sums = tl.sum(weights * values[None, :], axis=1) * strength
        tl.store(low + ((use * MEMBERS + member) * SPLITS + split) * RANK + ranks, sums, mask=ranks < rank)


@triton.jit
def _expand_rows(
    out,
    out_stride,
    low,
    places,
    places_width,
    slots,
    blocks,
    ADAPTERS: tl.constexpr,
    MEMBERS: tl.constexpr,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """out[row, block] += Σ over adapters of (Σ over splits of low) B."""
    row = tl.program_id(0)
    block = blocks + tl.program_id(1) * 4
    member = tl.load(block)
    begin = tl.multiple_of(tl.load(block + 2), ALIGNED)
    width = tl.multiple_of(tl.load(block + 3) - begin, ALIGNED)
    offset = tl.multiple_of(tl.load(block + 1) - begin, BLOCK_OUT)
    columns = offset + tl.arange(0, BLOCK_OUT)  # of the member
    inside = columns < width
    splits = tl.arange(0, BLOCK_SPLITS)
    total = tl.zeros((BLOCK_OUT,), dtype=tl.float32)
    ranks_used = 0
    for adapter in range(ADAPTERS):
        use = row * ADAPTERS + adapter
        place = member * places_width + tl.load(slots + use)
        rank = tl.load(places + 2 * MEMBERS * places_width + place).to(tl.int32)
        ranks_used += rank
        b = _matrix(places, MEMBERS * places_width + place, out)
        lows = low + (use * MEMBERS + member) * SPLITS * RANK
        for start in range(0, rank, BLOCK_RANK):
            ranks = start + tl.arange(0, BLOCK_RANK)
            valid = ranks < rank
            parts = lows + splits[:, None] * RANK + ranks[None, :]
            sums = tl.sum(tl.load(parts, mask=(splits < SPLITS)[:, None] & valid[None, :], other=0.0), axis=0)
            mask = valid[:, None] & inside[None, :]
            weights = tl.load(b + ranks[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(sums[:, None] * weights, axis=0)
    if ranks_used > 0:
        here = out + row.to(tl.int64) * out_stride + begin + columns
        before = tl.load(here, mask=inside, other=0.0).to(tl.float32)
        tl.store(here, (before + total).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _shrink_tiles(
    x,
    x_stride,
    in_features,
    low,
    places,
    places_width,
    slots,
    strengths,
    spans,
    ADAPTERS: tl.constexpr,
    MEMBERS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """low[rows of the tile, adapter, member, :] = strength · x Aᵀ."""
    tile = tl.program_id(0)
    member = tl.program_id(1)
    adapter = tl.program_id(2)
    use = tile * ADAPTERS + adapter
    place = member * places_width + tl.load(slots + use)
    rank = tl.load(places + 2 * MEMBERS * places_width + place).to(tl.int32)
    strength = tl.load(strengths + use)
    a = _matrix(places, place, x)
    lines = tl.arange(0, TILE_ROWS)
    present = lines < tl.load(spans + 2 * tile + 1)
    rows = (tl.load(spans + 2 * tile) + lines).to(tl.int64)
    for start in range(0, rank, BLOCK_RANK):
        ranks = start + tl.arange(0, BLOCK_RANK)
        valid = ranks < rank
        sums = tl.zeros((TILE_ROWS, BLOCK_RANK), dtype=tl.float32)
        for first in range(0, in_features, BLOCK_IN):
            columns = first + tl.arange(0, BLOCK_IN)
            inside = columns < in_features
            values = tl.load(
                x + rows[:, None] * x_stride + columns[None, :], mask=present[:, None] & inside[None, :], other=0.0
            )
            weights = tl.load(
                a + ranks[None, :] * in_features + columns[:, None], mask=valid[None, :] & inside[:, None], other=0.0
            )
            sums = matrix_product(values, weights, sums, WIDEN)
        lows = low + ((rows * ADAPTERS + adapter) * MEMBERS + member)[:, None] * RANK + ranks[None, :]
        tl.store(lows, sums * strength, mask=present[:, None] & valid[None, :])


@triton.jit
def _expand_tiles(
    out,
    out_stride,
    low,
    places,
    places_width,
    slots,
    blocks,
    spans,
    ADAPTERS: tl.constexpr,
    MEMBERS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """out[rows of the tile, block] += Σ over adapters of low B."""
    tile = tl.program_id(0)
    block = blocks + tl.program_id(1) * 4
    member = tl.load(block)
    begin = tl.multiple_of(tl.load(block + 2), ALIGNED)
    width = tl.multiple_of(tl.load(block + 3) - begin, ALIGNED)
    offset = tl.multiple_of(tl.load(block + 1) - begin, BLOCK_OUT)
    columns = offset + tl.arange(0, BLOCK_OUT)
    inside = columns < width
    lines = tl.arange(0, TILE_ROWS)
    present = lines < tl.load(spans + 2 * tile + 1)
    rows = (tl.load(spans + 2 * tile) + lines).to(tl.int64)
    total = tl.zeros((TILE_ROWS, BLOCK_OUT), dtype=tl.float32)
    ranks_used = 0
    for adapter in range(ADAPTERS):
        place = member * places_width + tl.load(slots + tile * ADAPTERS + adapter)
        rank = tl.load(places + 2 * MEMBERS * places_width + place).to(tl.int32)
        ranks_used += rank
        b = _matrix(places, MEMBERS * places_width + place, out)
        lows = low + ((rows * ADAPTERS + adapter) * MEMBERS + member) * RANK
        for start in range(0, rank, BLOCK_RANK):
            ranks = start + tl.arange(0, BLOCK_RANK)
            valid = ranks < rank
            sums = tl.load(lows[:, None] + ranks[None, :], mask=present[:, None] & valid[None, :], other=0.0)
            mask = valid[:, None] & inside[None, :]
            weights = tl.load(b + ranks[:, None] * width + columns[None, :], mask=mask, other=0.0)
            total = matrix_product(sums.to(weights.dtype), weights, total, WIDEN)
    if ranks_used > 0:
        here = out + rows[:, None] * out_stride + begin + columns[None, :]
        mask = present[:, None] & inside[None, :]
        before = tl.load(here, mask=mask, other=0.0).to(tl.float32)
        tl.store(here, (before + total).to(out.dtype.element_ty), mask=mask)
