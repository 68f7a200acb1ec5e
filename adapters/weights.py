"""Reading PEFT LoRA files, strictly: every tensor lands on a module of the base or the adapter is refused.

An adapter that loads but does nothing is the worst failure there is, so nothing here is skipped in silence.
The scale (alpha / r) is folded into B once, at reading."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapters.errors import Invalid, NotFound
from adapters.manifest import CONFIG_FILE, WEIGHTS_FILE

LinearShapes = dict[str, tuple[int, int]]  # module path → (in_features, out_features)

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[A-Za-z0-9_-]+)?\.weight")

_CONFIG_BYTES = 1 << 20  # no real adapter_config.json comes near it

Scale = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
# PEFT takes any regular expression here and writes plain module paths. Without repetition and groups a match takes
# linear time; with them, one key can keep the process busy for ever.
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.^$\\-]+$")]

# Fields of adapter_config.json that change what the adapter computes in a way the engine does not do yet.
# Value: the way out, as the error message gives it.
_REFUSED = {
    "use_dora": "DoRA is not served; train with use_dora=False",
    "modules_to_save": "whole replaced modules are not served; train with LoRA on those modules instead",
    "trainable_token_indices": "retrained token embeddings are not served; train without trainable_token_indices",
    "target_parameters": "LoRA on expert parameters is not served; target linear layers",
    "lora_bias": "biases inside LoRA are not served; train with lora_bias=False",
    "layer_replication": "replicated layers are not served; train on the plain base",
    "alora_invocation_tokens": "activated LoRA is not served; train plain LoRA",
    "arrow_config": "Arrow routing is not served; use one of its adapters",
    "use_bdlora": "BD-LoRA is not served; train plain LoRA",
    "use_qalora": "QA-LoRA is not served; train plain LoRA",
    "kasa_config": "KaSA is not served; train plain LoRA",
    "velora_config": "VeLoRA is not served; train plain LoRA",
    "monteclora_config": "MonteCLoRA is not served; train plain LoRA",
}


class AdapterConfig(BaseModel):
    """What of PEFT's `adapter_config.json` decides the computation. Other fields are kept as extras."""

    model_config = ConfigDict(extra="allow", strict=True)

    peft_type: str | None = None
    r: Annotated[int, Field(ge=1, le=65536)]
    lora_alpha: Scale
    rank_pattern: dict[Pattern, Annotated[int, Field(ge=1, le=65536)]] | None = None
    alpha_pattern: dict[Pattern, Scale] | None = None
    use_rslora: bool | None = False
    bias: str = "none"


@dataclass(frozen=True)
class LoRAWeights:
    a: Tensor  # (rank, in_features)
    b: Tensor  # (out_features, rank), scale folded in

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True)
class AdapterWeights:
    modules: dict[str, LoRAWeights]  # by module path in the base model

    @property
    def nbytes(self) -> int:
        return sum(module.nbytes for module in self.modules.values())

    @property
    def rank(self) -> int:
        return max(module.a.shape[0] for module in self.modules.values())


def read_config(directory: Path) -> AdapterConfig:
    """`adapter_config.json` of a PEFT directory that this engine can serve. Raises NotFound when the files are
    not there, Invalid when they are something else (a pickle, another PEFT method, a variant not served)."""
    if not directory.is_dir():
        raise NotFound(f"no adapter directory at {directory}", param="lora_path")
    if not (directory / WEIGHTS_FILE).is_file():
        if (directory / "adapter_model.bin").is_file():
            raise Invalid(
                f"{directory}: adapter_model.bin is a pickle, which can run code when opened; only "
                f"{WEIGHTS_FILE} is loaded. Save it again with PEFT (safetensors is its default)",
                param="lora_path",
            )
        raise NotFound(f"{directory} has no {WEIGHTS_FILE}; is it a PEFT adapter directory?", param="lora_path")
    config = _parse_config(directory / CONFIG_FILE)
    if config.bias != "none":
        raise Invalid(f"{directory}: bias={config.bias!r} retrains the base's biases, which is not served; use 'none'")
    for field, way_out in _REFUSED.items():
        if (config.model_extra or {}).get(field):
            raise Invalid(f"{directory}: {field} is set; {way_out}")
    return config


def _parse_config(path: Path) -> AdapterConfig:
    if not path.is_file():
        raise NotFound(f"{path.parent} has no {CONFIG_FILE}; is it a PEFT adapter directory?", param="lora_path")
    if path.stat().st_size > _CONFIG_BYTES:
        raise Invalid(f"{path} is larger than {_CONFIG_BYTES >> 20} MiB; is it a PEFT configuration?")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors are ValueErrors
        raise Invalid(f"{path} is not JSON: {error}") from error
    kind = values.get("peft_type") if isinstance(values, dict) else type(values).__name__
    if kind != "LORA":
        raise Invalid(f"{path.parent}: peft_type is {str(kind)[:40]!r}; only LORA adapters are served")
    try:
        return AdapterConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"{path}: {where}: {first['msg']}") from error


def read_adapter(directory: Path, shapes: LinearShapes, dtype: torch.dtype, device: torch.device) -> AdapterWeights:
    """The adapter's tensors, checked against the base's linear layers, as `dtype` on `device`.

    The scale is folded into B in float32 before the cast. Raises Invalid naming the first tensor that does
    not fit, NotFound when files are missing."""
    config = read_config(directory)
    halves: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                match = _KEY.fullmatch(key)
                if not match:
                    raise Invalid(
                        f"{directory}: tensor '{key}' is not plain LoRA on a linear layer; it would be ignored"
                    )
                sides = halves.setdefault(match["module"], {})
                if match["side"] in sides:
                    raise Invalid(f"{directory}: {match['module']} has two tensors for lora_{match['side']}")
                sides[match["side"]] = file.get_tensor(key)
    except SafetensorError as error:
        raise Invalid(f"{directory / WEIGHTS_FILE} is not a readable safetensors file: {error}") from error
    if not halves:
        raise Invalid(f"{directory / WEIGHTS_FILE} holds no tensors")
    modules = {}
    for module, sides in halves.items():
        _check_module(directory, module, sides, shapes)
        scale = lora_scale(config, module, rank=sides["A"].shape[0])
        modules[module] = LoRAWeights(
            a=sides["A"].to(device, dtype).contiguous(),
            b=(sides["B"].float() * scale).to(device, dtype).contiguous(),
        )
    if not all(weights.b.isfinite().all() for weights in modules.values()):
        raise Invalid(f"{directory}: B times its scale is too large for {dtype}; the training diverged")
    return AdapterWeights(modules)


def _check_module(directory: Path, module: str, sides: dict[str, Tensor], shapes: LinearShapes) -> None:
    if set(sides) != {"A", "B"}:
        raise Invalid(f"{directory}: {module} has only lora_{''.join(sides)}; the file is incomplete")
    if module not in shapes:
        raise Invalid(
            f"{directory}: the base model has no linear layer '{module}'; the adapter was trained on another base"
        )
    for side, tensor in sides.items():
        if tensor.ndim != 2 or not tensor.is_floating_point() or 0 in tensor.shape:
            raise Invalid(
                f"{directory}: lora_{side} of {module} is {tensor.dtype} {tuple(tensor.shape)}; not a float matrix"
            )
        if not tensor.isfinite().all():
            raise Invalid(f"{directory}: lora_{side} of {module} holds NaN or infinity; the training diverged")
    rank, in_features = sides["A"].shape
    out_features, b_rank = sides["B"].shape
    if (in_features, out_features) != shapes[module] or b_rank != rank:
        raise Invalid(
            f"{directory}: {module} is {shapes[module][0]}→{shapes[module][1]} in the base, but the adapter has A "
            f"{tuple(sides['A'].shape)} and B {tuple(sides['B'].shape)}; it was trained on another base"
        )


def lora_scale(config: AdapterConfig, module: str, *, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with PEFT's per-module patterns: a key matches a whole dotted
    suffix of the module path, the first matching key wins (peft.utils.get_pattern_key)."""
    configured = _pattern_value(config.rank_pattern, module, config.r)
    if configured != rank:
        raise Invalid(f"adapter_config.json gives {module} rank {configured}, its tensors have {rank}")
    alpha = _pattern_value(config.alpha_pattern, module, config.lora_alpha)
    return float(alpha / math.sqrt(rank) if config.use_rslora else alpha / rank)


def _pattern_value(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
