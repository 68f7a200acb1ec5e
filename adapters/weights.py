"""Reading PEFT LoRA files, strictly: every tensor lands on a module of the base or the adapter is refused.

An adapter that loads but does nothing is the worst failure there is, so nothing here is skipped in silence.
The scale (alpha / r) is folded into B once, at reading. The base's shapes are known here, its values are not: what
needs those (DoRA's norms, changed biases) is left to who serves the base."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from adapters.errors import Invalid, NotFound
from adapters.manifest import WEIGHTS_FILE
from adapters.peft_config import AdapterConfig, lora_scale, names_module, read_config
from adapters.peft_targets import require_agreement

LinearShapes = dict[str, tuple[int, int]]  # module path → (in_features, out_features)
EmbeddingShapes = dict[str, tuple[int, int]]  # module path → (vocabulary, width)

_NAME = r"(?:\.[A-Za-z0-9_-]+)?"  # older versions of PEFT left the adapter's name in the key
_PARTS = {
    "a": rf"lora_A{_NAME}\.weight",
    "b": rf"lora_B{_NAME}\.weight",
    "bias": rf"lora_B{_NAME}\.bias",
    "magnitude": rf"lora_magnitude_vector{_NAME}(?:\.weight)?",
    "embedding_a": rf"lora_embedding_A{_NAME}",
    "embedding_b": rf"lora_embedding_B{_NAME}",
    "tokens": rf"token_adapter\.trainable_tokens_delta{_NAME}",
    "base_weight": r"base_layer\.weight",
    "base_bias": r"base_layer\.bias",
    "own_weight": rf"(?:modules_to_save{_NAME}\.)?weight",
    "own_bias": rf"(?:modules_to_save{_NAME}\.)?bias",
}
_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)\.(?:" + "|".join(f"(?P<{part}>{key})" for part, key in _PARTS.items()) + ")"
)
_LORA_PARTS = {"a", "b", "bias", "magnitude"}
_VECTORS = {"bias", "magnitude", "base_bias", "own_bias"}


@dataclass(frozen=True)
class LoRAWeights:
    """y += B A x + bias. On an embedding x is the one-hot token: `in_features` is the vocabulary. With a magnitude
    (DoRA, Liu et al. 2024) the rows of W + BA are scaled to it."""

    a: Tensor  # (rank, in_features)
    b: Tensor  # (out_features, rank), scale folded in
    bias: Tensor | None = None  # (out_features,) float32, scale folded in
    magnitude: Tensor | None = None  # (out_features,) float32


@dataclass(frozen=True)
class Replacement:
    """Values that stand in place of the base's own."""

    weight: Tensor | None = None  # (rows, in_features); of an embedding (rows, width)
    bias: Tensor | None = None  # (out_features,) float32
    tokens: Tensor | None = None  # (rows,) int64: which rows of the base's weight these are; None: all

    @property
    def empty(self) -> bool:
        return self.weight is None and self.bias is None


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter's tensors by module path in the base model."""

    modules: dict[str, LoRAWeights]
    replaced: dict[str, Replacement] = field(default_factory=dict)
    # Weights of the base that the file repeats. They must equal the base's, or the adapter belongs to another one.
    repeated: dict[str, Replacement] = field(default_factory=dict)
    ties_head: bool = False  # a replaced input embedding is the output layer's weight too, where the base ties them


def read_adapter(
    directory: Path,
    shapes: LinearShapes,
    dtype: torch.dtype,
    device: torch.device,
    *,
    embeddings: EmbeddingShapes | None = None,
) -> AdapterWeights:
    """The adapter's tensors, checked against the base's linear layers and input embedding, as `dtype` on `device`.

    The scale is folded into B in float32 before the cast. Raises Invalid naming the first tensor that does
    not fit, NotFound when files are missing."""
    config = read_config(directory)
    embeddings = embeddings or {}
    modules: dict[str, LoRAWeights] = {}
    replaced: dict[str, Replacement] = {}
    repeated: dict[str, Replacement] = {}
    try:
        for module, parts in _read_parts(directory).items():
            _require_present(config, module, parts, shapes, embeddings)
            lora = _rename_embedding(module, parts, embeddings)
            own = _own_values(config, module, parts)
            if lora and own.weight is not None:
                raise Invalid(f"{module} is both adapted by LoRA and replaced; train it in one of the two ways")
            in_features, out_features = shapes.get(module) or embeddings[module]
            if lora:
                modules[module] = _lora(config, module, lora, (in_features, out_features))
            if not own.empty:
                replaced[module] = own
            base = _repeated_values(module, parts, own)
            if not base.empty:
                repeated[module] = base
            rows = (in_features, out_features) if module in embeddings else (out_features, in_features)
            for values in (own, base):
                _check_replacement(module, values, rows, out_features)
        _require_complete(config, replaced)
        require_agreement(config, modules, [*shapes, *embeddings])
    except Invalid as error:
        raise Invalid(f"{directory}: {error.message}") from error
    cast = AdapterWeights(
        {module: _cast_lora(weights, dtype, device) for module, weights in modules.items()},
        {module: _cast_replacement(values, dtype, device) for module, values in replaced.items()},
        repeated,
        ties_head=bool(config.ensure_weight_tying),
    )
    scaled = [weights.b for weights in cast.modules.values()]
    whole = [values.weight for values in cast.replaced.values() if values.weight is not None]
    if not all(_is_finite(tensor) for tensor in scaled + whole):
        raise Invalid(f"{directory}: B times its scale is too large for {dtype}; the training diverged")
    return cast


def _read_parts(directory: Path) -> dict[str, dict[str, Tensor]]:
    """Module path → part (see _PARTS) → tensor."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        # Read, not mapped: in one go, and a file that somebody shortens meanwhile is an error and not the end of us.
        tensors = load((directory / WEIGHTS_FILE).read_bytes())
    except SafetensorError as error:
        raise Invalid(f"{WEIGHTS_FILE} is not a readable safetensors file: {error}") from error
    except FileNotFoundError as error:  # deleted a moment ago
        raise NotFound(f"{directory} has no {WEIGHTS_FILE} any more") from error
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if not match:
            raise Invalid(f"tensor '{key}' is not LoRA on a layer of the base; it would be ignored")
        parts = found.setdefault(match["module"], {})
        part = str(match.lastgroup)
        if part in parts:
            raise Invalid(f"{match['module']} has two tensors for {key.rpartition(match['module'])[2][1:]}")
        parts[part] = _checked(key, part, tensor)
    if not found:
        raise Invalid(f"{WEIGHTS_FILE} holds no tensors")
    return found


def _checked(key: str, part: str, tensor: Tensor) -> Tensor:
    ndim = 1 if part in _VECTORS else tensor.ndim if part == "own_weight" else 2  # a norm's weight is a vector
    if tensor.ndim != ndim or not tensor.is_floating_point() or 0 in tensor.shape:
        kind = "matrix" if ndim == 2 else "vector"
        raise Invalid(f"'{key}' is {tensor.dtype} {tuple(tensor.shape)}; not a float {kind}")
    if tensor.dtype.itemsize < 2:
        raise Invalid(f"'{key}' is {tensor.dtype}; save the adapter in 16 or 32 bits")
    if not _is_finite(tensor):
        raise Invalid(f"'{key}' holds NaN or infinity; the training diverged")
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    # NaN is the smallest and the largest of all. A seventh of the time that isfinite().all() takes.
    return all(math.isfinite(bound.item()) for bound in torch.aminmax(tensor))


def _require_present(
    config: AdapterConfig,
    module: str,
    parts: Mapping[str, Tensor],
    shapes: LinearShapes,
    embeddings: EmbeddingShapes,
) -> None:
    if module in shapes or module in embeddings:
        return
    if ".experts." in module:
        raise Invalid(f"LoRA on single experts ('{module}') is not served; target attention and dense layers")
    if {"own_weight", "own_bias"} & set(parts):
        if names_module(config.modules_to_save, module):
            raise Invalid(
                f"modules_to_save replaces '{module}'; only linear layers and the input embedding can be replaced. "
                "Train without it"
            )
        if config.bias == "all":
            raise Invalid(f"bias='all' retrains the bias of '{module}', which is no linear layer; use bias='lora_only'")
        raise Invalid(f"'{module}' is not LoRA on a layer of the base; it would be ignored")
    raise Invalid(f"the base model has no linear layer '{module}'; the adapter was trained on another base")


def _rename_embedding(module: str, parts: dict[str, Tensor], embeddings: EmbeddingShapes) -> dict[str, Tensor]:
    """The LoRA parts, with A and B of an embedding under the names that linear layers have."""
    lora = {part: parts[part] for part in parts if part in _LORA_PARTS or part.startswith("embedding_")}
    if not lora:
        return {}
    prefix = "embedding_" if module in embeddings else ""
    for part in lora:
        if part not in (prefix + "a", prefix + "b", "bias", "magnitude"):
            kind = "the embedding" if prefix else "a linear layer"
            raise Invalid(f"{module} is {kind} in the base, but the file has lora_{part}; trained on another base")
    missing = [side.upper() for side in "ab" if prefix + side not in lora]
    if missing:
        raise Invalid(f"{module} has no lora_{missing[0]}; the file is incomplete")
    return {part.removeprefix("embedding_"): tensor for part, tensor in lora.items()}


def _own_values(config: AdapterConfig, module: str, parts: Mapping[str, Tensor]) -> Replacement:
    """What the adapter replaces of the base's values: a module saved whole, retrained tokens, retrained biases."""
    # With ensure_weight_tying PEFT stores the output layer, too, which modules_to_save does not name.
    saved = names_module(config.modules_to_save, module) or (config.modules_to_save and config.ensure_weight_tying)
    weight = parts.get("own_weight") if saved else None
    retrained = "base_bias" if "base_bias" in parts else "own_bias"
    bias = parts.get(retrained) if saved or config.bias != "none" else None
    if "tokens" not in parts:
        return Replacement(weight, bias)
    if weight is not None:
        raise Invalid(f"{module} is in modules_to_save and in trainable_token_indices; PEFT allows one of them")
    return Replacement(parts["tokens"], bias, _token_indices(config, module, len(parts["tokens"])))


def _repeated_values(module: str, parts: Mapping[str, Tensor], own: Replacement) -> Replacement:
    weights = [parts[part] for part in ("base_weight", "own_weight") if part in parts and parts[part] is not own.weight]
    biases = [parts[part] for part in ("base_bias", "own_bias") if part in parts and parts[part] is not own.bias]
    if len(weights) > 1 or len(biases) > 1:
        raise Invalid(f"{module} has two tensors for its weight or bias")
    return Replacement(weights[0] if weights else None, biases[0] if biases else None)


def _token_indices(config: AdapterConfig, module: str, rows: int) -> Tensor:
    indices = config.trainable_token_indices
    if isinstance(indices, dict):
        indices = next((indices[name] for name in indices if names_module([name], module)), None)
    if indices is None:
        raise Invalid(f"the file has retrained tokens of {module}, trainable_token_indices does not name it")
    if len(indices) != rows or len(set(indices)) != rows:
        raise Invalid(f"{module} has {rows} retrained tokens, trainable_token_indices names {len(set(indices))}")
    return torch.tensor(indices, dtype=torch.int64)


def _lora(config: AdapterConfig, module: str, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> LoRAWeights:
    a, b, bias, magnitude = (parts.get(part) for part in ("a", "b", "bias", "magnitude"))
    assert a is not None and b is not None
    if (a.shape[1], b.shape[0]) != shape or a.shape[0] != b.shape[1]:
        raise Invalid(
            f"{module} is {shape[0]}→{shape[1]} in the base, but the adapter has A {tuple(a.shape)} and B "
            f"{tuple(b.shape)}; it was trained on another base"
        )
    for name, vector, wanted in (("lora_bias", bias, config.lora_bias), ("use_dora", magnitude, config.use_dora)):
        if (vector is not None) != bool(wanted):
            state = "set, but the file has nothing for it" if wanted else "not set, but the file has its tensor"
            raise Invalid(f"{name} is {state} in {module}; the file is incomplete or the configuration another's")
        if vector is not None and vector.shape[0] != shape[1]:
            raise Invalid(f"{module} has {shape[1]} outputs in the base, the adapter's {name} has {vector.shape[0]}")
    scale = lora_scale(config, module, rank=a.shape[0])
    return LoRAWeights(
        a,
        b.float() * scale,
        bias.float() * scale if bias is not None else None,
        magnitude.float() if magnitude is not None else None,
    )


def _check_replacement(module: str, values: Replacement, shape: tuple[int, int], out_features: int) -> None:
    """`shape` is that of the base's weight."""
    if values.weight is not None:
        rows = shape[0] if values.tokens is None else values.weight.shape[0]
        if tuple(values.weight.shape) != (rows, shape[1]):
            raise Invalid(
                f"the weight of {module} is {shape} in the base and {tuple(values.weight.shape)} in the adapter; it "
                "was trained on another base or with another vocabulary"
            )
    if values.tokens is not None and not 0 <= int(values.tokens.min()) <= int(values.tokens.max()) < shape[0]:
        raise Invalid(f"trainable_token_indices of {module} must lie below the vocabulary's {shape[0]}")
    if values.bias is not None and values.bias.shape[0] != out_features:
        raise Invalid(f"{module} has {out_features} outputs in the base, the adapter's bias {values.bias.shape[0]}")


def _require_complete(config: AdapterConfig, replaced: Mapping[str, Replacement]) -> None:
    """Invalid when the configuration names what the file does not hold."""
    indices = config.trainable_token_indices
    retrained = list(indices) if isinstance(indices, dict) else []
    saved = [module for module, values in replaced.items() if values.weight is not None]
    for name in [*(config.modules_to_save or []), *retrained]:
        if not any(names_module([name], module) for module in saved):
            # A tied output layer follows the embedding; PEFT then stores its rows once.
            if name in retrained and any(replaced[module].tokens is not None for module in saved):
                continue
            raise Invalid(f"'{name}' is to be replaced, but the file holds nothing for it; the file is incomplete")
    if indices and not any(values.tokens is not None for values in replaced.values()):
        raise Invalid("trainable_token_indices is set, but the file holds no retrained tokens; the file is incomplete")


def _cast_lora(weights: LoRAWeights, dtype: torch.dtype, device: torch.device) -> LoRAWeights:
    return LoRAWeights(
        weights.a.to(device, dtype).contiguous(),
        weights.b.to(device, dtype).contiguous(),
        weights.bias.to(device) if weights.bias is not None else None,
        weights.magnitude.to(device) if weights.magnitude is not None else None,
    )


def _cast_replacement(values: Replacement, dtype: torch.dtype, device: torch.device) -> Replacement:
    return Replacement(
        values.weight.to(device, dtype).contiguous() if values.weight is not None else None,
        values.bias.to(device, torch.float32) if values.bias is not None else None,
        values.tokens.to(device) if values.tokens is not None else None,
    )
