"""PEFT's `adapter_config.json`: what of it decides the computation, and which kinds of adapter are refused by name."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from adapters.errors import Invalid, NotFound
from adapters.manifest import CONFIG_FILE, WEIGHTS_FILE

_CONFIG_BYTES = 1 << 20  # no real adapter_config.json comes near it

Scale = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
# PEFT takes any regular expression here and writes plain module paths. Without repetition and groups a match takes
# linear time; with them, one key can keep the process busy for ever.
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.^$\\-]+$")]

# Fields of adapter_config.json that change what the adapter computes in a way the engine does not do.
# Value: the way out, as the error message gives it.
_REFUSED = {
    "target_parameters": "LoRA on expert parameters is not served; target linear layers",
    "layer_replication": "replicated layers are not served; train on the plain base",
    "alora_invocation_tokens": "activated LoRA is not served; train plain LoRA",
    "arrow_config": "Arrow routing is not served; use one of its adapters",
    "use_bdlora": "BD-LoRA is not served; train plain LoRA",
    "use_qalora": "QA-LoRA is not served; train plain LoRA",
    "kasa_config": "KaSA is not served; train plain LoRA",
    "velora_config": "VeLoRA is not served; train plain LoRA",
    "monteclora_config": "MonteCLoRA is not served; train plain LoRA",
    "fan_in_fan_out": "it is for bases of Conv1D layers (GPT-2), and this one has linear layers; serve its own base",
    "enable_lora": "MergedLinear of PEFT before 0.3 is not served; load and save the adapter with a newer PEFT",
}
# Initialisations that also change the base's weights: without that change the file's A and B mean something else.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _whole(value: Any) -> Any:
    """16.0 → 16: older tools wrote ranks as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Rank = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=65536)]


class AdapterConfig(BaseModel):
    """What of PEFT's `adapter_config.json` decides the computation. Other fields are kept as extras; older versions of
    PEFT wrote fewer."""

    model_config = ConfigDict(extra="allow", strict=True)

    peft_type: str | None = None
    r: Rank
    lora_alpha: Scale
    rank_pattern: dict[Pattern, Rank] | None = None
    alpha_pattern: dict[Pattern, Scale] | None = None
    use_rslora: bool | None = False
    use_dora: bool | None = False
    lora_bias: bool | None = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[TokenId] | dict[str, list[TokenId]] | None = None
    ensure_weight_tying: bool | None = False
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None


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
    if config.bias not in ("none", "all", "lora_only"):
        raise Invalid(f"{directory}: bias is {config.bias[:40]!r}; PEFT has 'none', 'all' and 'lora_only'")
    unread = config.model_extra or {}
    for name, way_out in _REFUSED.items():
        if unread.get(name):
            raise Invalid(f"{directory}: {name} is set; {way_out}")
    for name in unread:
        if name.startswith("use_") and unread[name]:  # a variant of LoRA that PEFT had not when this was written
            raise Invalid(f"{directory}: {name[:40]} is set, which is not known here; train plain LoRA")
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower().startswith(_CHANGES_BASE):
        raise Invalid(
            f"{directory}: init_lora_weights={config.init_lora_weights[:40]!r} also changed the base's weights; save "
            "the adapter as plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if config.use_dora and config.lora_bias:
        raise Invalid(f"{directory}: use_dora and lora_bias are both set; PEFT has no such adapter. Use one of them")
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


def names_module(names: Iterable[str] | None, module: str) -> bool:
    """Whether one of PEFT's module names means `module` or something that it lies in: the end of its path."""
    parents = [module[: dot.start()] for dot in re.finditer(r"\.", module)]
    return any(path.endswith(name) for name in names or () for path in (module, *parents))
