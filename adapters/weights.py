"""Reading PEFT LoRA files, strictly: every tensor lands on a module of the base or the adapter is refused.

An adapter that loads but does nothing is the worst failure there is, so nothing here is skipped in silence.
The scale (alpha / r) is folded into B once, at reading."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapters.errors import Invalid, NotFound
from adapters.manifest import CONFIG_FILE, WEIGHTS_FILE

LinearShapes = dict[str, tuple[int, int]]  # module path → (in_features, out_features)

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[A-Za-z0-9_-]+)?\.weight")

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


def read_config(directory: Path) -> dict[str, Any]:
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
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{directory} has no {CONFIG_FILE}; is it a PEFT adapter directory?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{directory / CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise Invalid(f"{directory}: peft_type is {kind!r}; only LORA adapters are served")
    if config.get("bias", "none") != "none":
        raise Invalid(
            f"{directory}: bias={config['bias']!r} retrains the base's biases, which is not served; use 'none'"
        )
    for field, way_out in _REFUSED.items():
        if config.get(field):
            raise Invalid(f"{directory}: {field} is set; {way_out}")
    return config


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
                halves.setdefault(match["module"], {})[match["side"]] = file.get_tensor(key)
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
    return AdapterWeights(modules)


def _check_module(directory: Path, module: str, sides: dict[str, Tensor], shapes: LinearShapes) -> None:
    if set(sides) != {"A", "B"}:
        raise Invalid(f"{directory}: {module} has only lora_{''.join(sides)}; the file is incomplete")
    if module not in shapes:
        raise Invalid(
            f"{directory}: the base model has no linear layer '{module}'; the adapter was trained on another base"
        )
    rank, in_features = sides["A"].shape
    out_features, b_rank = sides["B"].shape
    if (in_features, out_features) != shapes[module] or b_rank != rank:
        raise Invalid(
            f"{directory}: {module} is {shapes[module][0]}→{shapes[module][1]} in the base, but the adapter has A "
            f"{tuple(sides['A'].shape)} and B {tuple(sides['B'].shape)}; it was trained on another base"
        )


def lora_scale(config: dict[str, Any], module: str, *, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with PEFT's per-module patterns: a key matches a whole dotted
    suffix of the module path, the first matching key wins (peft.utils.get_pattern_key)."""
    configured = _pattern_value(config.get("rank_pattern"), module, config["r"])
    if configured != rank:
        raise Invalid(f"adapter_config.json gives {module} rank {configured}, its tensors have {rank}")
    alpha = _pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _pattern_value(pattern: dict[str, float] | None, module: str, default: float) -> float:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
