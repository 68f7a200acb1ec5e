"""A decoding step of all fused layers in one call of the compiled kernels: stack.cpp's structs, filled from the layers.

They are built once for a model; what the adapters' slots hold is written into them when it has changed."""

from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from serving.engine.kernels import native
from serving.engine.kernels.native import NativeKernels
from serving.engine.kernels.packed_linear import PackedLinear
from serving.engine.kernels.quantized import Int4Linear
from serving.engine.kernels.slot_table import SlotTable, slot_table
from serving.engine.lora import LoRALinear, StepRows

if TYPE_CHECKING:
    from serving.engine.attention import StepInput
    from serving.engine.fused import FusedLayer, FusedStack
    from serving.engine.kv_cache import KVCache


class _Product(Structure):
    _fields_ = (
        ("packed", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("in_features", c_int64),
        ("width", c_int64),
        ("members", c_void_p),
        ("num_members", c_int64),
    )


class _Layer(Structure):
    _fields_ = (
        *((name, _Product) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "mlp_norm", "head_norm", "keys", "values")),
        *((name, c_double) for name in ("input_epsilon", "mlp_epsilon", "head_epsilon", "scale")),
        ("window", c_int64),
    )


class _Stack(Structure):
    _fields_ = (
        ("layers", POINTER(_Layer)),
        *((name, c_int64) for name in ("num_layers", "heads", "kv_heads", "head_dim", "tokens")),
    )


class _Step(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("hidden", "cos", "sin", "slots", "addresses", "lengths", "entries")),
        *((name, c_int64) for name in ("num_entries", "rows")),
        ("scratch", c_void_p),
    )


class _NativeStack:
    """The structs of one model's layers, on one cache."""

    def __init__(self, layers: Sequence["FusedLayer"], cache: "KVCache", kernels: NativeKernels):
        self.cache = cache
        self.kernels = kernels
        self.layers = layers
        first = layers[0]
        self._structs = (_Layer * len(layers))(*(_layer_struct(layer, cache) for layer in layers))
        tokens = cache.layers[0].keys.shape[1]
        self._stack = _Stack(self._structs, len(layers), first.heads, first.kv_heads, first.head_dim, tokens)
        self._linears = [linear for layer in layers for linear in _linears(layer)]
        self._versions: list[int] = []  # of the linear layers, when last looked at
        self._tables: list[SlotTable] = []
        self._dense: set[int] = set()  # slots with more than a low-rank part somewhere
        self._fits = True  # what is in the slots

    @staticmethod
    def can_be(layers: Sequence["FusedLayer"]) -> bool:
        """Whether stack.cpp takes layers like these."""
        first = layers[0]
        shape = (first.heads, first.kv_heads, first.head_dim)
        return (
            all(_reads_packed(linear) for layer in layers for linear in _linears(layer))
            and all((layer.heads, layer.kv_heads, layer.head_dim) == shape for layer in layers)
            and all(layer.spec.softcap is None and layer.spec.sinks is None for layer in layers)
            and NativeKernels.fits(first.input_norm[0], first.head_dim // 2, *(_base(x).size for x in _linears(first)))
        )

    @cached_property
    def _scratch_per_row(self) -> int:
        """Values."""
        first = self._structs[0]
        attended = self._stack.heads * self._stack.head_dim
        widths = first.qkv.width, attended, first.gate_up.width, first.down.in_features
        return int(2 * first.qkv.in_features + sum(widths))

    def run(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], step: "StepInput", rows: StepRows) -> bool:
        """hidden (rows, hidden) bfloat16 in place. False, and nothing done, when the adapters need more than stack.cpp
        can."""
        entries = None
        if rows.segments:
            self._note_changes(rows)
            if not self._fits or not self._dense.isdisjoint(rows.slots):
                return False
            entries = rows.entries
        group = step.plan.decodes
        assert group is not None
        scratch = hidden.new_empty(len(hidden) * self._scratch_per_row)
        self.kernels.decode_layers(
            self._stack,
            _Step(
                hidden.data_ptr(),
                rotary[0].data_ptr(),
                rotary[1].data_ptr(),
                step.slots.data_ptr(),
                group.addresses.data_ptr(),
                group.lengths.data_ptr(),
                entries.data_ptr() if entries is not None else None,
                len(entries) if entries is not None else 0,
                len(hidden),
                scratch.data_ptr(),
            ),
        )
        return True

    def _note_changes(self, rows: StepRows) -> None:
        """Learn what was loaded and unloaded since the last step."""
        versions = [linear.version for linear in self._linears]
        if versions == self._versions:
            return
        self._versions = versions
        self._tables = [slot_table(linear, rows) for linear in self._linears]
        self._dense = {slot for linear in self._linears for slot in linear.dense_slots}
        self._fits = all(table.fits for table in self._tables)
        products = (product for struct in self._structs for product in _products(struct))
        for product, table, linear in zip(products, self._tables, self._linears, strict=True):
            product.members = table.members.data_ptr()
            product.num_members = len(table.members) if linear.slots else 0


_stacks: WeakKeyDictionary["FusedStack", _NativeStack | None] = WeakKeyDictionary()


def decode_layers(stack: "FusedStack", hidden: Tensor, rotary: tuple[Tensor, Tensor], step: "StepInput") -> bool:
    """Run a decoding step of few rows through all layers, on hidden (rows, hidden) in place; rotary's cosines and sines
    (rows, head_dim). False, and nothing done, when the step or the model is not one for this."""
    kernels = native.load()
    if kernels is None or hidden.dtype != torch.bfloat16 or step.plan.prefills or len(hidden) > kernels.most_rows:
        return False
    if stack not in _stacks or _is_for_another(_stacks[stack], step.cache):
        fits = _NativeStack.can_be(stack.fused)
        _stacks[stack] = _NativeStack(stack.fused, step.cache, kernels) if fits else None
    built = _stacks[stack]
    return built is not None and built.run(hidden, rotary, step, stack.fused[0].qkv.step.rows)


def _is_for_another(built: _NativeStack | None, cache: "KVCache") -> bool:
    return built is not None and built.cache is not cache


def _linears(layer: "FusedLayer") -> tuple[LoRALinear, ...]:
    return layer.qkv, layer.out, layer.gate_up, layer.down


def _products(struct: _Layer) -> tuple[_Product, ...]:
    return struct.qkv, struct.out, struct.gate_up, struct.down


def _reads_packed(linear: LoRALinear) -> bool:
    return isinstance(linear.base, PackedLinear | Int4Linear) and linear.base.native is not None


def _base(linear: LoRALinear) -> PackedLinear | Int4Linear:
    assert isinstance(linear.base, PackedLinear | Int4Linear)
    return linear.base


def _layer_struct(layer: "FusedLayer", cache: "KVCache") -> _Layer:
    kept = cache.layers[layer.layer_idx]
    head_norm, head_epsilon = layer.qk_norm or (None, 0.0)
    return _Layer(
        *(_product_struct(_base(linear)) for linear in _linears(layer)),
        layer.input_norm[0].data_ptr(),
        layer.mlp_norm[0].data_ptr(),
        head_norm.data_ptr() if head_norm is not None else None,
        kept.keys.data_ptr(),
        kept.values.data_ptr(),
        layer.input_norm[1],
        layer.mlp_norm[1],
        head_epsilon,
        layer.spec.scale,
        layer.spec.window or 0,
    )


def _product_struct(base: PackedLinear | Int4Linear) -> _Product:
    if isinstance(base, PackedLinear):
        packed, scales = base.address, None
    else:
        packed, scales = base.packed.data_ptr(), base.scales.data_ptr()
    bias = base.bias.data_ptr() if base.bias is not None else None
    return _Product(packed, scales, bias, base.size, base.width, None, 0)
