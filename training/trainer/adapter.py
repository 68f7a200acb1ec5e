"""What is trained: an adapter on the frozen base, or the base itself; how it is saved, and loaded again."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import set_seed

from adapters.base_model import BaseModel, pick_dtype
from adapters.errors import Invalid, nearest
from adapters.manifest import WEIGHTS_FILE
from training.config import Plan, TrainConfig
from training.trainer.quiet import quiet

_FAST_SVD_WIDTH = 1024  # beyond it, PiSSA's exact decomposition takes minutes; 16 rounds of the fast one are as good


def trainable(base: BaseModel, config: TrainConfig, plan: Plan) -> Any:
    """The model to train: a fresh adapter on `base`, or with method full the base with all its weights set free."""
    if config.method != "full":
        return add_adapter(base, config, plan)
    set_seed(config.seed)
    base.model.requires_grad_(True)
    return base.model


def add_adapter(base: BaseModel, config: TrainConfig, plan: Plan) -> PeftModel:
    """A fresh adapter on `base`, whose modules are wrapped in place. It changes nothing until it is trained.

    Raises Invalid for targets the base does not have, and for a rank its layers have not."""
    set_seed(config.seed)
    targets = pick_targets(base, config.targets)
    changes_base = config.init in ("pissa", "olora")
    if changes_base:
        _check_rank(base, targets, config)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=plan.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=_initialisation(config, base),
    )
    with quiet():
        model = get_peft_model(base.model, lora)
    saved = model.peft_config["default"]
    # A path of this machine means nothing where the adapter goes; PEFT put it there.
    saved.base_model_name_or_path = base.name
    # PEFT keeps a set, whose order differs between processes: equal runs would make unequal files.
    saved.target_modules = lora.target_modules = targets
    if changes_base:
        # PEFT reads this field wherever it copies or loads an adapter, and would take the principal part out of the
        # base a second time.
        saved.init_lora_weights = True
        model.weights_before_training = {
            name: weight.detach().cpu().clone()
            for name, weight in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        }
    return model


def _initialisation(config: TrainConfig, base: BaseModel) -> bool | str:
    if config.init == "default":
        return True
    wide = base.model.config.get_text_config().hidden_size > _FAST_SVD_WIDTH
    return "pissa_niter_16" if config.init == "pissa" and wide else config.init


def _check_rank(base: BaseModel, targets: Sequence[str], config: TrainConfig) -> None:
    narrowest = min(min(shape) for path, shape in base.linear_shapes.items() if path.rsplit(".", 1)[-1] in targets)
    if config.lora_r > narrowest:
        raise Invalid(
            f"lora-r {config.lora_r} is more than the {narrowest} directions of the narrowest layer, and init "
            f"{config.init} takes its start from them; use at most {narrowest}, or init default",
            param="lora_r",
        )


def pick_targets(base: BaseModel, wanted: Sequence[str]) -> list[str]:
    """Names of linear layers in the decoder blocks: those `wanted`, or all of them."""
    known = {path.rsplit(".", 1)[-1] for path in base.linear_shapes if any(part.isdigit() for part in path.split("."))}
    for name in wanted:
        if name not in known:
            raise Invalid(f"the base has no linear layer '{name}' in its blocks{nearest(name, known)}", param="targets")
    return sorted(wanted or known)


def compute_dtype(base: BaseModel, config: TrainConfig) -> torch.dtype:
    """What products are computed in. A base whose own weights are trained keeps them in float32 (a step is smaller
    than bfloat16 can add), and computes in what the hardware multiplies."""
    return pick_dtype("auto", base.device) if config.method == "full" else base.dtype


# --- on disk ---


def save_adapter(model: PeftModel, directory: Path) -> None:
    """PEFT files of a plain LoRA adapter for the base as it was, whatever it was initialised with. May be called
    between steps: it leaves model and dice as they are.

    PiSSA and OLoRA move a part of the base into the adapter: W = R + sB₀A₀. What was learned, R + sBA - W, is
    sBA - sB₀A₀: an adapter of twice the rank. PEFT computes the same, but for that it loads a second adapter into the
    model, draws random numbers and looks the base up on the hub."""
    before: dict[str, Tensor] | None = getattr(model, "weights_before_training", None)
    if before is None:
        save_weights(model, directory)
        return
    learned: dict[str, Tensor] = {}
    for name, now in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        now, then = now.detach().cpu(), before[name]
        learned[name] = torch.cat([now, then]) if "lora_A" in name else torch.cat([now, -then], dim=1)
    config = copy.deepcopy(model.peft_config["default"])
    config.r *= 2
    config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2  # the scale is alpha / r, or alpha / sqrt(r)
    config.inference_mode = True
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    save_file(learned, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def save_weights(model: Any, directory: Path) -> None:
    """The weights just as they are trained, for `load_weights` on an equally prepared model."""
    if isinstance(model, PeftModel):
        # False, not PEFT's "auto": that looks the base up on the hub, over the network, at every save.
        model.save_pretrained(directory, save_embedding_layers=False)
    else:
        model.save_pretrained(directory)


def load_weights(model: Any, checkpoint: Path) -> None:
    """Take the weights of a checkpoint into `model`, in place."""
    state: dict[str, Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        state |= load_file(path)
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, state)
    else:
        model.load_state_dict(state, strict=False)  # a tied head is in no file


def save_model(model: Any, tokenizer: Any, directory: Path, dtype: torch.dtype) -> None:
    """A whole base as transformers reads it, in `dtype`; `model` is converted in place."""
    frozen: nn.Module = model.requires_grad_(False)
    model = frozen.to(dtype)
    model.config.use_cache = True
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
