"""CUDA kernels: Triton for what reads the KV cache through tables and for the adapters, FlashAttention (torch's own) or
SDPA for prompts. Nothing a decoding step does here depends on values the host must read, so it can be captured."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from serving.engine.kernels import reference, triton_blocks
from serving.engine.kernels.lora_tables import LayerTable, Tiles, rows_of, tiles_of
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, PagedDecodes, Span
from serving.engine.kernels.triton_attention import attend_decodes
from serving.engine.kernels.triton_lora import TILE_ROWS, add_by_rows, add_by_tiles
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import DeviceRows, LoRALinear, StepRows

# Up to this many rows each finds its own adapter; beyond, runs of rows share the reading of A and B.
_ROWS_ALONE = 32
# torch 2.11 takes fewer key heads than query heads without being told.
_GQA: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


class CudaKernels:
    """The kernels for one engine on one device. They keep a table of adapters for each layer."""

    def __init__(self, device: torch.device, num_slots: int):
        self.device = device
        self.num_slots = num_slots
        self.rank = _rounded(0)  # room for every adapter loaded anywhere
        self._tables: dict[LoRALinear, LayerTable] = {}
        self._prepared: list[int] = []  # the layers' versions
        self._step: tuple[StepRows, DeviceRows | Tiles] | None = None  # the last rows seen, as device memory
        # Twice the multiprocessors: enough programs to fill them while some wait for memory.
        self._programs = 1
        if device.type == "cuda":
            self._programs = 2 * torch.cuda.get_device_properties(device).multi_processor_count

    join_linears = staticmethod(reference.join_linears)
    add_rms_norm = staticmethod(triton_blocks.add_rms_norm)
    norm_and_rotate = staticmethod(triton_blocks.norm_and_rotate)
    silu_and_multiply = staticmethod(triton_blocks.silu_and_multiply)
    store_kv = staticmethod(triton_blocks.store_kv)

    def attend(self, query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor:
        if isinstance(plan, PagedDecodes):
            return attend_decodes(query, cache, plan.blocks, plan.lengths, plan.block_size, spec, self._programs)
        out = query.new_empty(*query.shape[:2], cache.values.shape[2])
        if plan.prefills:
            _prefill(query, cache, plan, spec, out)
        group = plan.decodes
        if group is not None:  # the table of single tokens is one of blocks of size 1
            alone = attend_decodes(query[group.rows], cache, group.slots, group.lengths, 1, spec, self._programs)
            out[group.rows] = alone
        return out

    def add_lora(self, out: Tensor, x: Tensor, layer: LoRALinear, rows: StepRows) -> None:
        table = self._refreshed(layer)
        if isinstance(rows, DeviceRows):
            add_by_rows(out, x, table, rows, self.rank)
        elif table.max_rank:
            here = self._on_device(rows, len(x))
            rank = _rounded(table.max_rank)
            if isinstance(here, Tiles):
                add_by_tiles(out, x, table, here, rank)
            else:
                add_by_rows(out, x, table, here, rank)

    def prepare(self, layers: Sequence[LoRALinear]) -> None:
        """Bring the tables of all `layers` up to date, as steps told by DeviceRows need it."""
        versions = [layer.version for layer in layers]
        if versions != self._prepared:
            self.rank = _rounded(max(self._refreshed(layer).max_rank for layer in layers))
            self._prepared = versions

    def _refreshed(self, layer: LoRALinear) -> LayerTable:
        table = self._tables.get(layer)
        if table is None:
            table = self._tables[layer] = LayerTable(layer, self.num_slots, self.device)
        table.refresh(layer)
        return table

    def _on_device(self, rows: StepRows, count: int) -> DeviceRows | Tiles:
        if self._step is None or self._step[0] is not rows:
            if count <= _ROWS_ALONE:
                self._step = (rows, rows_of(rows.segments, count, self.device))
            else:
                self._step = (rows, tiles_of(rows.segments, TILE_ROWS, self.device))
        return self._step[1]


def _rounded(rank: int) -> int:
    """Up to a power of two, so that few variants of the kernels and graphs are made."""
    return max(16, 1 << (rank - 1).bit_length())


def _prefill(query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec, out: Tensor) -> None:
    """Fill the rows of `out` that belong to chunks of several tokens."""
    if spec.softcap is not None or spec.sinks is not None:
        for span in plan.prefills:
            rows, keys, values = _past(span, cache)
            out[rows] = reference.attend_span(query[rows], keys, values, span, spec)
    elif _flash_can(query, cache):
        group = plan.prefill_group
        keys = cache.keys[:, group.slots].transpose(0, 1)  # (tokens, kv_heads, dim)
        values = cache.values[:, group.slots].transpose(0, 1)
        # FlashAttention counts the tokens to the left of the query's own; we count the visible ones.
        window = (-1, 0) if spec.window is None else (spec.window - 1, 0)
        attended: Any = varlen_attn(
            query[group.rows],
            keys,
            values,
            group.query_ends,
            group.key_ends,
            group.most_queries,
            group.most_keys,
            scale=spec.scale,
            window_size=window,
            **_GQA,
        )
        out[group.rows] = attended
    else:
        for span in plan.prefills:
            rows, keys, values = _past(span, cache)
            out[rows] = _sdpa(query[rows], keys, values, span, spec)


def _flash_can(query: Tensor, cache: LayerCache) -> bool:
    key_dim, value_dim = cache.keys.shape[2], cache.values.shape[2]
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and key_dim == value_dim and key_dim % 8 == 0 and key_dim <= 256


def _past(span: Span, cache: LayerCache) -> tuple[slice, Tensor, Tensor]:
    rows = slice(span.row, span.row + span.count)
    return rows, cache.keys[:, span.slots], cache.values[:, span.slots]


def _sdpa(query: Tensor, keys: Tensor, values: Tensor, span: Span, spec: AttentionSpec) -> Tensor:
    at = torch.arange(span.length - span.count, span.length, device=query.device)[:, None]
    seen = torch.arange(span.length, device=query.device)[None, :]
    visible = seen <= at
    if spec.window is not None:
        visible &= seen > at - spec.window
    q = query.transpose(0, 1)[None]
    out = F.scaled_dot_product_attention(
        q, keys[None], values[None], attn_mask=visible, scale=spec.scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)
