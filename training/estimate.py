"""What a run will take: steps, time and memory, before it starts.

Steps are exact. Memory is a formula over the base's parameters, the optimizer and one step's activations. Time is
measured on the base's own layers where a few of them are small enough to build, else a formula over the arithmetic;
each says which. Weights are random or not there at all: none are read."""

import copy
import math
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_args

import torch
from pydantic import BaseModel
from torch import nn

from adapters.base_model import pick_device, pick_dtype
from adapters.settings import Device
from training.config import Method, Plan, TrainConfig

METHODS: tuple[Method, ...] = get_args(Method)
_MEASURED_PARAMETERS = 100_000_000  # above it building a few layers takes longer than it is worth
_MEASURED_LAYERS = 3
_MEASURED_TOKENS = 512  # in one step
# Of the speed of a plain product: what a step reaches beside attention, norms, loss and optimizer.
_EFFICIENCY = 0.5
_NF4_BYTES = 0.516  # half a byte, and a doubly quantised scale for every 64
_NF4_TIME = 1.3  # unpacking


class Memory(BaseModel):
    """Bytes, by what they are for."""

    weights: int
    trained: int  # adapter weights, or none more where the base itself is trained
    gradients: int
    optimizer: int
    activations: int  # of one micro batch of the longest row

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.gradients + self.optimizer + self.activations


class Estimate(BaseModel):
    """One method's cost."""

    method: Method
    steps: int
    trained_parameters: int
    seconds: float
    seconds_by: str  # how the time was found
    memory: Memory
    memory_total: int


@dataclass(frozen=True)
class Work:
    """What there is to learn from: rows, and tokens in them."""

    rows: int
    tokens: int  # in all rows
    longest: int
    learned_share: float  # of the tokens

    def steps(self, config: TrainConfig, plan: Plan) -> int:
        """Optimizer steps, as the trainer counts them."""
        if config.max_steps:
            return config.max_steps
        micro = math.ceil(self.rows / plan.micro_batch_size)
        an_epoch = max(1, math.ceil(micro * plan.micro_batch_size / plan.batch_size))
        return max(1, math.ceil(config.epochs * an_epoch))


def estimate(
    base_config: Any, config: TrainConfig, plan: Plan, work: Work, *, device: Device = "auto"
) -> list[Estimate]:
    """What each method would take, in the order of METHODS. Blocks for a second or two of measuring."""
    text = base_config.get_text_config()
    where = pick_device(device)
    dtype = pick_dtype("auto", where)
    with torch.device("meta"):
        model = _model(base_config, dtype)
    parameters = sum(weight.numel() for weight in model.parameters())
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in name.split("."))
    }
    adapter = sum(
        config.lora_r * (linear.in_features + linear.out_features)
        for name, linear in linears.items()
        if not config.targets or name.rsplit(".", 1)[-1] in config.targets
    )
    quantised = sum(linear.weight.numel() for linear in linears.values())
    steps = work.steps(config, plan)
    tokens = steps * plan.batch_size * work.tokens / max(1, work.rows)
    base = _Base(text.to_json_string(), text)
    speeds = _speeds(
        base, min(plan.max_length, 128), plan.gradient_checkpointing, config.lora_r, parameters, dtype, where
    )
    found = []
    for method in METHODS:
        per_token, by = speeds[method]
        trained = parameters if method == "full" else adapter
        memory = _memory(method, text, plan, work, parameters, quantised, trained, dtype.itemsize)
        found.append(
            Estimate(
                method=method,
                steps=steps,
                trained_parameters=trained,
                seconds=tokens * per_token,
                seconds_by=by,
                memory=memory,
                memory_total=memory.total,
            )
        )
    return found


def _model(config: Any, dtype: torch.dtype) -> nn.Module:
    """The base's own architecture, with random weights."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return model


def _shortened(text: Any, layers: int) -> Any:
    """The base's configuration with so many layers."""
    config = copy.deepcopy(text)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def _memory(
    method: Method, text: Any, plan: Plan, work: Work, parameters: int, quantised: int, trained: int, size: int
) -> Memory:
    """`size` is bytes of a weight. Adapters and their optimizer are float32; a base that is trained keeps its type."""
    weights = parameters * size
    if method == "qlora":
        weights = round(quantised * _NF4_BYTES) + (parameters - quantised) * size
    state = size if method == "full" else 4
    tokens = plan.micro_batch_size * work.longest
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    # Kept for the way back: inputs of the products and norms, and what stands between them.
    layer = tokens * size * (10 * hidden + 3 * inner)
    kept = tokens * size * hidden if plan.gradient_checkpointing else layer
    logits = tokens * work.learned_share * text.vocab_size * (size + 8)  # as they are, in float32, and their gradient
    return Memory(
        weights=weights,
        trained=0 if method == "full" else trained * state,
        gradients=trained * state,
        optimizer=2 * trained * state,
        activations=round(text.num_hidden_layers * kept + layer + logits),
    )


# --- time ---


@dataclass(frozen=True)
class _Base:
    """A base's configuration; two are equal when all of it is."""

    described: str
    text: Any = field(compare=False)


@lru_cache(maxsize=64)
def _speeds(
    base: _Base,
    length: int,
    checkpointing: bool,
    rank: int,
    parameters: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[Method, tuple[float, str]]:
    """Seconds a token for each method, and how they were found. Measured once: whoever turns a knob on a form is not to
    wait for the same again."""
    text = base.text
    layers = min(_MEASURED_LAYERS, text.num_hidden_layers)
    try:
        with torch.device("meta"):
            small = sum(weight.numel() for weight in _model(_shortened(text, layers), dtype).parameters())
    except (ValueError, IndexError, TypeError, AttributeError):  # layers that cannot stand alone: hybrids, some MoE
        small = _MEASURED_PARAMETERS + 1
    again = 4 / 3 if checkpointing else 1.0  # a second way forward
    frozen: float
    full: float
    if small <= _MEASURED_PARAMETERS:
        by = "measured: forward and backward through some of the base's layers"
        frozen = _measured(text, layers, length, dtype, device, rank) * again
        full = _measured(text, layers, length, dtype, device, None) * again
    else:
        by = "formula: arithmetic of all parameters, at the measured speed of a product of the base's width"
        rate = _product_rate(text, dtype, device) * _EFFICIENCY
        frozen, full = 4 * parameters * again / rate, 6 * parameters * again / rate
    return {
        "lora": (frozen, by),
        "qlora": (frozen * _NF4_TIME, f"{by}; {_NF4_TIME} times for unpacking 4 bits"),
        "full": (full, by),
    }


def _measured(text: Any, layers: int, length: int, dtype: torch.dtype, device: torch.device, rank: int | None) -> float:
    """Seconds a token: those of one layer, and the difference that more layers make. Adapters of `rank` are trained, or
    without one the base itself."""

    def seconds(layers: int) -> float:
        model = _model(_shortened(text, layers), dtype)
        if rank is not None:
            model.requires_grad_(False)
            _adapt(model, rank)
        return _step_time(model.to(device), text.vocab_size, length)

    one = seconds(1)
    if layers == 1:
        return one
    return one + max(0.0, seconds(layers) - one) * int(text.num_hidden_layers - 1) / (layers - 1)


class _Adapted(nn.Module):
    """A linear layer with an adapter in float32, the arithmetic that PEFT does."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.linear = linear
        self.a = nn.Linear(linear.in_features, rank, bias=False, dtype=torch.float32)
        self.b = nn.Linear(rank, linear.out_features, bias=False, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.linear(x) + self.b(self.a(x.float()))
        return added.to(x.dtype)


def _adapt(model: nn.Module, rank: int) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in path.split(".")):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _Adapted(module, rank))


def _step_time(model: nn.Module, vocab_size: int, length: int) -> float:
    """Seconds a token of one forward and backward pass over rows of `length` tokens, the better of two after one to
    warm up."""
    model.train()
    device = next(model.parameters()).device
    ids = torch.randint(vocab_size, (max(1, _MEASURED_TOKENS // length), length), device=device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        model.zero_grad()
    return float(min(times[1:]) / ids.numel())


def _product_rate(text: Any, dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a product as wide as the base."""
    width = min(8192, getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    a = torch.ones(_MEASURED_TOKENS, text.hidden_size, dtype=dtype, device=device)
    b = torch.ones(text.hidden_size, width, dtype=dtype, device=device)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(2 * a.shape[0] * a.shape[1] * width / min(times[1:]))
