"""The base model: where it is found, what identifies it, how it is loaded in 16, 8 or 4 bits."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from adapters.errors import Invalid, NotFound
from adapters.hub import base_directory, parse_reference
from adapters.lending import Loan, borrow, terms_of
from adapters.mapped_base import cached_form, holds
from adapters.settings import BUNDLED, Device, DType, Quantization
from adapters.weights import LinearShapes

BUNDLED_BASE = "bianlian-mini"

# Fields of config.json that decide which computation the weights belong to.
_IDENTITY_FIELDS = (
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
_SAMPLED_VALUES = 256  # values of each tensor that enter the fingerprint


@dataclass
class BaseModel:
    """A loaded base: frozen weights, its tokenizer, and who it is."""

    name: str
    directory: Path
    fingerprint: str
    model: Any  # transformers.PreTrainedModel; its attributes differ by architecture
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    dtype: torch.dtype
    device: torch.device
    quantize: Quantization = "none"
    loan: Loan | None = None  # whose the weights are, when they are not this process's own

    @cached_property
    def linear_shapes(self) -> LinearShapes:
        """Every linear layer an adapter may target, by module path."""
        return {
            name: (module.in_features, module.out_features)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
        }

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end a turn: the generation config's and the tokenizer's."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    @property
    def max_model_len(self) -> int:
        return int(self.model.config.get_text_config().max_position_embeddings)


def locate_base(name: str) -> Path:
    """Bundled name, local directory, or hub id (downloaded into the hub's cache) → directory with config.json."""
    if (BUNDLED / name / "config.json").is_file():
        return BUNDLED / name
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        raise Invalid(f"{path} has no config.json; is it a transformers model directory?", param="base")
    if reference := parse_reference(name):
        return base_directory(reference)
    raise NotFound(
        f"no base model at {path}; give '{BUNDLED_BASE}', a directory, or a hub id like org/model or "
        "modelscope:org/model as --base",
        param="base",
    )


def base_name(name: str) -> str:
    """What the base at `name` is called: the last part of its path or hub id."""
    reference = None if Path(name).expanduser().is_dir() else parse_reference(name)
    return reference.id.split("/")[1] if reference else Path(name).name


def fingerprint_of(directory: Path) -> str:
    """sha256 over the architecture and a sample of every weight, in bfloat16: the same for a checkpoint saved
    in another precision or sharding, different after any training step."""
    from safetensors import safe_open

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(json.dumps({key: config.get(key) for key in _IDENTITY_FIELDS}, sort_keys=True).encode())
    samples: dict[str, bytes] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                tensor = file.get_slice(key)
                shape = tensor.get_shape()
                part = (tensor[:1] if shape else file.get_tensor(key)).flatten()[:_SAMPLED_VALUES]
                values = (
                    part.to(torch.bfloat16).view(torch.uint8).numpy().tobytes() if part.is_floating_point() else b""
                )
                samples[key] = str(shape).encode() + values
    if not samples:
        raise Invalid(f"{directory} has no safetensors weights; pickled checkpoints are refused", param="base")
    for key in sorted(samples):
        digest.update(key.encode() + b"\0" + samples[key])
    return digest.hexdigest()


def pick_device(device: Device) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise Invalid("device 'cuda' was asked for, but torch sees no CUDA GPU; use --device cpu", param="device")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it, else float32 (float16 on older GPUs)."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def load_base(
    name: str = BUNDLED_BASE,
    *,
    device: Device = "auto",
    dtype: DType = "auto",
    quantize: Quantization = "none",
    cache: Path | None = None,
    lenders: Path | None = None,
) -> BaseModel:
    """Load the base, frozen and in eval mode. Blocks for the time the weights take to read.

    A server of the home `lenders` that has just this base on the same GPU lends its weights, until it ends (`loan`). On
    a CPU the weights stay mapped from a file and cost this process nothing of its own: from the base's files, or, if
    they are of another type or to be quantised to 4 bits, from a copy in `cache`. Without a `cache` those are private.

    Raises NotFound or Invalid when `name` is no model, or a tokenizer without a chat template comes with it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    directory = locate_base(name)
    where = pick_device(device)
    precision = pick_dtype(dtype, where)
    options: dict[str, Any] = {"dtype": precision, "trust_remote_code": False, "use_safetensors": True}
    if quantize != "none":
        options["quantization_config"] = _quantization(quantize, precision)
        options["device_map"] = {"": where}
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise Invalid(
                f"base '{name}' ({config.model_type}) is an encoder-decoder model; "
                "give one that only decodes, such as Llama, Qwen or Gemma",
                param="base",
            )
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        fingerprint = fingerprint_of(directory)
        loan = borrow(lenders, terms_of(fingerprint, precision, quantize, where), where) if lenders else None
        with _quiet_below(directory, 2**30):

            def load() -> Any:
                return AutoModelForCausalLM.from_pretrained(directory, **options)

            as_it_is = quantize == "none" and holds(directory, precision)
            weights: Path | Mapping[str, torch.Tensor] | None = loan.weights if loan else None
            if not loan and cache and where.type == "cpu" and quantize != "8bit" and not as_it_is:
                weights = cached_form(cache, fingerprint, precision, quantize, load)
            if weights is None:
                model = load()
            else:
                model = _with_weights(weights, directory, config, {"device_map": {"": where}} | options)
    except (OSError, ValueError, ImportError) as error:
        raise Invalid(f"base '{name}' cannot be loaded: {str(error).strip().splitlines()[0]}", param="base") from error
    if not tokenizer.chat_template:
        raise Invalid(
            f"base '{name}' has no chat template; serve a chat model, or add chat_template.jinja", param="base"
        )
    if quantize == "none":
        model.to(where)
    elif where.type == "cpu":
        _keep_4bit_portable(model)
    model.requires_grad_(False)
    model.eval()
    return BaseModel(
        name=base_name(name),
        directory=directory,
        fingerprint=fingerprint,
        model=model,
        tokenizer=tokenizer,
        dtype=precision,
        device=where,
        quantize=quantize,
        loan=loan,
    )


def _with_weights(
    weights: Path | Mapping[str, torch.Tensor], directory: Path, config: Any, options: dict[str, Any]
) -> Any:
    """The model that `directory` describes, with weights from another directory, or with these very tensors, named as
    in a loaded model's `state_dict`. Both are quantised already if they are to be."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

    if quantization := options.get("quantization_config"):
        config.quantization_config = quantization.to_dict()  # as a checkpoint says that its weights are quantised
        options = {name: value for name, value in options.items() if name != "quantization_config"}
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if isinstance(weights, Path):
        model = kind.from_pretrained(weights, config=config, **options)
    else:
        model = kind.from_pretrained(None, config=config, state_dict=dict(weights), **options)
    with suppress(OSError):  # the directory has none, and the model its own
        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model


@contextmanager
def _quiet_below(directory: Path, size: int) -> Iterator[None]:
    """No loading bar for weights of fewer bytes: it would be gone before it could be read."""
    from transformers.utils import logging

    small = sum(path.stat().st_size for path in directory.glob("*.safetensors")) < size
    if small and logging.is_progress_bar_enabled():
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.enable_progress_bar()
    else:
        yield


def _quantization(quantize: Quantization, compute: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def dense_weight(linear: nn.Module) -> torch.Tensor:
    """The weight that a linear layer multiplies by, (out_features, in_features); bitsandbytes layers are dequantised
    into a new tensor, as PEFT does it."""
    weight: Any = linear.weight
    kind = type(weight).__name__
    if kind not in ("Params4bit", "Int8Params"):
        plain: torch.Tensor = weight.detach()
        return plain
    from bitsandbytes import functional as bnb

    if kind == "Params4bit":
        return cast(torch.Tensor, bnb.dequantize_4bit(weight.data, weight.quant_state))
    state: Any = linear.state
    scales = weight.SCB if state.SCB is None else state.SCB  # they move there at the first forward
    return cast(torch.Tensor, bnb.int8_vectorwise_dequant(weight.data, scales))


def _keep_4bit_portable(model: nn.Module) -> None:
    # On AVX512-BF16 machines bitsandbytes repacks Linear4bit at the first forward and then computes wrong
    # gradients and wrong dequantised weights, without a word.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (no such attribute on nn.Module)
