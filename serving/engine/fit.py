"""Fitting an adapter to the base it will run on: what PEFT's file says, turned into what the layers add. Here is what
needs the base's own values: DoRA's norms, changed biases, a tied output layer, repeated weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from adapters.errors import Invalid
from adapters.weights import AdapterWeights, LinearShapes, LoRAWeights, Replacement, read_adapter
from serving.engine.embedding import LoRAEmbedding
from serving.engine.lora import Delta, LoRALinear

Layers = Mapping[str, LoRALinear | LoRAEmbedding]  # by module path

_HOST = torch.device("cpu")
_ROUNDING = 0.02  # what 8-bit weights may differ from those they stand for, by norm


def read_deltas(directory: Path, layers: Layers, shapes: LinearShapes, dtype: torch.dtype) -> dict[str, Delta]:
    """The adapter in `directory` as the layers take it, by module path, in host memory. Invalid or NotFound when it
    does not fit the base. Blocks."""
    embeddings = {
        name: (layer.weight.shape[0], layer.weight.shape[1])
        for name, layer in layers.items()
        if isinstance(layer, LoRAEmbedding)
    }
    weights = read_adapter(directory, shapes, dtype, _HOST, embeddings=embeddings)
    for name, repeated in weights.repeated.items():
        _require_equal(directory, name, repeated, layers[name], dtype)
    replaced = _with_tied_head(weights, layers)
    names = [*weights.modules, *(name for name in replaced if name not in weights.modules)]
    return {name: _fit(directory, name, layers[name], weights.modules.get(name), replaced.get(name)) for name in names}


def _with_tied_head(weights: AdapterWeights, layers: Layers) -> dict[str, Replacement]:
    """The replaced values, also for an output layer that shares the embedding's weight: retrained tokens always change
    both, a whole new embedding only where the adapter says so (PEFT's ensure_weight_tying)."""
    replaced = dict(weights.replaced)
    for name, values in weights.replaced.items():
        layer = layers[name]
        if isinstance(layer, LoRAEmbedding) and layer.head and (values.tokens is not None or weights.ties_head):
            replaced.setdefault(layer.head, values)
    return replaced


def _fit(
    directory: Path,
    name: str,
    layer: LoRALinear | LoRAEmbedding,
    lora: LoRAWeights | None,
    replaced: Replacement | None,
) -> Delta:
    if lora and replaced and replaced.weight is not None:
        raise Invalid(f"{directory}: {name} has LoRA and retrained tokens; train it in one of the two ways")
    a = b = gain = bias = weight = tokens = None
    if lora:
        a, b, bias = lora.a, lora.b, lora.bias
        if lora.magnitude is not None:
            gain = _gain(lora, layer.base_weight(name))
            if not gain.isfinite().all():
                raise Invalid(f"{directory}: DoRA on {name} scales a row of zeros; it was trained on another base")
            b = (b.float() * gain[:, None]).to(b.dtype)
    if replaced:
        weight, tokens = replaced.weight, replaced.tokens
        if replaced.bias is not None:
            bias = _changed_bias(directory, name, layer, replaced.bias, bias)
    return Delta(a, b.T.contiguous() if b is not None else None, gain, bias, weight, tokens)


def _gain(lora: LoRAWeights, base: Tensor) -> Tensor:
    """m / ‖W + sBA‖ by rows (DoRA, Liu et al. 2024, eq. 5)."""
    assert lora.magnitude is not None
    a, b = lora.a.to(base.device).float(), lora.b.to(base.device).float()
    norm = torch.linalg.vector_norm(base + b @ a, dim=1)
    gain: Tensor = lora.magnitude / norm.cpu()
    return gain


def _changed_bias(
    directory: Path, name: str, layer: LoRALinear | LoRAEmbedding, bias: Tensor, lora_bias: Tensor | None
) -> Tensor:
    base = layer.base_bias(name)
    if base is None:
        raise Invalid(f"{directory}: {name} has no bias in the base, but one in the adapter; trained on another base")
    change = bias - base.to(bias)
    return change if lora_bias is None else change + lora_bias


def _require_equal(
    directory: Path, name: str, values: Replacement, layer: LoRALinear | LoRAEmbedding, dtype: torch.dtype
) -> None:
    if isinstance(layer, LoRAEmbedding):
        weight, worst = layer.weight, 0.0
    else:
        weight, worst = layer.base_weight(name), _ROUNDING if layer.quantised else 0.0
    for part, stored, base in (("weight", values.weight, weight), ("bias", values.bias, layer.base_bias(name))):
        if stored is not None and not (base is not None and _same(stored, base.cpu().to(dtype), worst)):
            raise Invalid(
                f"{directory}: the file holds a {part} for {name} that differs from the base's, and modules_to_save "
                "does not name it; serve the base it was trained on, or train with modules_to_save"
            )


def _same(stored: Tensor, base: Tensor, worst: float) -> bool:
    """Equal in the coarser of the two precisions: an adapter may have been trained on the base in another one."""
    if worst:
        return bool((stored.float() - base.float()).norm() <= worst * base.float().norm())
    return torch.equal(stored.to(base.dtype), base) or torch.equal(base.to(stored.dtype), stored)
