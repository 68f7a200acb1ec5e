"""TrainConfig: what one run is asked to do, and the values that `auto` stands for on a given base.

No torch here: the command line, the HTTP side and the queue build and check configurations without it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from adapters.errors import Invalid, input_path, nearest
from adapters.manifest import PersonaCard
from training.data.formats import Format

Method = Literal["lora", "qlora", "full"]
Objective = Literal["sft", "pretrain", "dpo", "kto", "orpo"]
Initialisation = Literal["default", "gaussian", "pissa", "olora"]
Schedule = Literal["cosine", "cosine_with_min_lr", "linear", "constant", "constant_with_warmup"]
Optimizer = Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw"]

PREFERENCES: frozenset[Objective] = frozenset({"dpo", "kto", "orpo"})
_MAX_LENGTH = 2048  # tokens, where nobody says
# More than anybody means, and far below what a float or a counter of some library cannot hold.
_MOST = 10**9
Count = Annotated[int, Field(ge=1, le=_MOST)]
_KTO_BATCH = 8
_BETA = 0.1
# ORPO's beta is no leash, but the weight of the odds beside the likelihood of the chosen answer, which is 1. Where a
# model prefers neither answer, half of it reaches the gradient: at 0.1 one part in twenty, and narrow bases spend the
# rest on learning chosen answers by heart. Measured: docs/decisions.md.
_ORPO_BETA = 1.0


class TrainConfig(BaseModel):
    """One run. None means: chosen from the base and the data when the run starts, and then written down."""

    # No infinite numbers: JSON, which runs are kept in, cannot write them.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # What is learned from
    data: tuple[Path, ...] = ()  # files; or dataset names with `dataset`
    dataset: tuple[str, ...] = ()  # names in `dataset_dir`/dataset_info.json, after LLaMA-Factory
    dataset_dir: Path | None = None
    # Shares of the training rows, one for each of `data` and `dataset`; empty: as they are.
    data_weights: tuple[Annotated[float, Field(gt=0, le=_MOST)], ...] = ()
    validation_data: tuple[Path, ...] = ()  # used in place of a split
    format: Format | Literal["auto"] = "auto"
    system: str | None = None
    mask_history: bool = False  # learn only the last answer of each conversation
    thinking: bool | None = None  # learn thoughts where template and rows have them; None: if rows have them
    max_length: int | None = Field(default=None, ge=16, le=_MOST)
    max_samples: Count | None = None  # rows taken from each file, the first ones
    packing: bool = False
    val_split: float = Field(default=0.1, ge=0, le=0.5)
    replay_data: tuple[Path, ...] = ()  # mixed in against forgetting
    replay_share: float = Field(default=0.1, gt=0, lt=1)  # of the training rows, when there is replay_data
    strict: bool = False

    # How
    name: str
    base: str = "bianlian-mini"
    method: Method = "lora"
    objective: Objective = "sft"
    beta: float | None = Field(default=None, gt=0, le=100)  # of dpo, kto and orpo
    lora_r: int = Field(default=16, ge=1, le=1024)
    lora_alpha: int | None = Field(default=None, ge=1, le=65536)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ()  # empty: every linear layer of the decoder blocks
    use_rslora: bool = False
    use_dora: bool = False
    init: Initialisation = "default"
    loraplus_ratio: float | None = Field(default=None, ge=1, le=1000)  # learning rate of B over that of A
    neftune_alpha: float | None = Field(default=None, gt=0, le=1000)

    # The optimizer
    epochs: float = Field(default=3.0, gt=0, le=1000)
    max_steps: Count | None = None  # replaces epochs
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    learning_rate_multiplier: float = Field(default=1.0, gt=0, le=100)  # of the chosen learning rate
    schedule: Schedule = "cosine"
    warmup: float = Field(default=0.05, ge=0, le=_MOST)  # below 1: a share of all steps
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0, le=_MOST)
    batch_size: int | None = Field(default=None, ge=1, le=4096)  # rows an optimizer step learns from
    micro_batch_size: int | None = Field(default=None, ge=1, le=4096)  # rows in one forward pass
    gradient_checkpointing: bool | None = None
    optimizer: Optimizer = "auto"
    seed: int = Field(default=0, ge=0, lt=2**32)

    # Meanwhile
    save_steps: Count | None = None  # None: at the end of each epoch
    eval_steps: Count | None = None  # None: at the end of each epoch, where there is validation data
    early_stopping: Count | None = None  # evaluations in a row without a better validation loss
    keep_best: bool | None = None  # publish the lowest validation loss, not the last; None: with early_stopping
    snapshot_steps: int | None = Field(default=None, ge=0, le=_MOST)  # 0: none; None: about eight a run
    demo_prompts: tuple[str, ...] = ()  # answered by every snapshot; empty: the card's samples, or four of our own
    card: PersonaCard = PersonaCard()

    @field_validator("name", "base", "system", "demo_prompts", "dataset")
    @classmethod
    def writable(cls, value: Any) -> Any:
        """JSON can spell half a surrogate pair, which is no text and cannot be encoded."""
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError("the text contains half of a surrogate pair, which is not valid Unicode")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python and YAML count true as 1."""
        assert info.field_name is not None
        if "bool" not in str(cls.model_fields[info.field_name].annotation):
            require_no_bool(value)
        return value

    @property
    def publishes_best(self) -> bool:
        return self.early_stopping is not None if self.keep_best is None else self.keep_best


def require_no_bool(value: object) -> None:
    """Raises ValueError for true and false, also within a list."""
    for one in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(one, bool):
            raise ValueError(f"{str(one).lower()} is no number")


def parse_config(values: dict[str, object]) -> TrainConfig:
    """`values` checked. Raises Invalid naming the first wrong one and its limit."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = input_path(first["loc"], values)
        if first["type"] == "extra_forbidden":
            raise Invalid(f"unknown option '{name}'{nearest(name, TrainConfig.model_fields)}", param=name) from error
        message = first["msg"].removeprefix("Value error, ")
        raise Invalid(f"{name}: {message} (got {_shown(first['input'])})", param=name) from error


def _shown(value: object) -> str:
    """A value that may be as long as somebody likes."""
    try:
        text = repr(value)
    except ValueError:  # of an integer with thousands of digits
        return "a number with too many digits"
    return text if len(text) <= 80 else f"{text[:80]}…"


@dataclass(frozen=True)
class Plan:
    """The numbers a run trains with, none of them `auto`. `reasons` has a sentence for each that was chosen here."""

    learning_rate: float
    batch_size: int  # rows an optimizer step learns from
    micro_batch_size: int  # rows in one forward pass; divides batch_size
    lora_alpha: int
    max_length: int
    gradient_checkpointing: bool
    packing: bool = False
    optimizer: str = "adamw"
    beta: float = 0.1
    reasons: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """What was chosen and why, as text."""
        for name, reason in self.reasons.items():
            value = getattr(self, name)
            shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
            yield f"{name} {shown}: {reason}"


def plan_for(
    config: TrainConfig,
    *,
    hidden_size: int,
    max_model_len: int,
    rows: int,
    packed_rows: int | None = None,
    on_cuda: bool = False,
) -> Plan:
    """`config` on a base of `hidden_size`, with `rows` training rows. `packed_rows` is how many they make when packed,
    None where the base cannot keep packed rows apart. Raises Invalid for what this base or machine cannot do."""
    packing, packing_reason = _packing(config, packed_rows)
    seen = packed_rows if packing and packed_rows else rows
    length, length_reason = max_length_for(config, max_model_len), _length_reason(config, max_model_len)
    rate, rate_reason = _learning_rate(config, hidden_size)
    batch, batch_reason = _batch_size(config, seen)
    micro, micro_reason = _micro_batch_size(config, batch, hidden_size)
    if config.objective == "kto" and micro < 2:
        raise Invalid(
            f"kto measures its reference over the rows of a pass, and batch-size {batch} would pass one at a time; "
            "use an even batch-size",
            param="batch_size",
        )
    alpha, alpha_reason = _alpha(config)
    beta, beta_reason = _beta(config)
    optimizer, optimizer_reason = _optimizer(config, on_cuda)
    checkpointing, checkpointing_reason = _checkpointing(config, hidden_size)
    reasons = {
        "learning_rate": rate_reason,
        "batch_size": batch_reason,
        "micro_batch_size": micro_reason,
        "lora_alpha": alpha_reason if config.method != "full" else "",
        "max_length": length_reason,
        "packing": packing_reason,
        "optimizer": optimizer_reason,
        "gradient_checkpointing": checkpointing_reason,
        "beta": beta_reason,
    }
    return Plan(
        learning_rate=rate,
        batch_size=batch,
        micro_batch_size=micro,
        lora_alpha=alpha,
        max_length=length,
        gradient_checkpointing=checkpointing,
        packing=packing,
        optimizer=optimizer,
        beta=beta,
        reasons={name: reason for name, reason in reasons.items() if reason},
    )


def max_length_for(config: TrainConfig, max_model_len: int) -> int:
    """Tokens a row may have. Raises Invalid when more are asked for than the base can read."""
    if config.max_length and config.max_length > max_model_len:
        raise Invalid(
            f"max-length {config.max_length} is more than the base '{config.base}' reads ({max_model_len})",
            param="max_length",
        )
    return config.max_length or min(max_model_len, _MAX_LENGTH)


def auto_learning_rate(hidden_size: int) -> float:
    """2e-4 at hidden size 2048, rising as the width shrinks to the power 1.5; between 1e-4 and 4e-3.

    Gives 3.2e-3 for hidden 320 and 1e-4 for 4096. Narrow models need, and bear, larger steps."""
    return float(f"{min(4e-3, max(1e-4, 2e-4 * (2048 / hidden_size) ** 1.5)):.2g}")


def chosen_learning_rate(config: TrainConfig, hidden_size: int) -> float:
    """What `auto` stands for, whatever `config` asks for."""
    return _learning_rate(
        config.model_copy(update={"learning_rate": None, "learning_rate_multiplier": 1.0}), hidden_size
    )[0]


def auto_batch_size(rows: int, epochs: float) -> int:
    """16, or as few as 4 where 16 would leave fewer than 150 optimizer steps."""
    return next((size for size in (16, 8) if rows * epochs / size >= 150), 4)


# --- one value each, with its reason; no reason where the value was asked for ---


def _length_reason(config: TrainConfig, max_model_len: int) -> str:
    if config.max_length:
        return ""
    return "what the base reads" if max_model_len <= _MAX_LENGTH else "memory grows with it; the base reads more"


def _learning_rate(config: TrainConfig, hidden_size: int) -> tuple[float, str]:
    rate, reasons = config.learning_rate or auto_learning_rate(hidden_size), []
    if not config.learning_rate:
        reasons.append(f"for hidden size {hidden_size} (narrower bases bear larger steps)")
        for applies, share, why in (
            (config.method == "full", 0.1, "a tenth, since all weights move and not a few in their place"),
            (config.objective in ("dpo", "kto"), 0.1, "a tenth, since preferences drive a model out of its language"),
            # ORPO learns the language of the chosen answers too, and takes the steps of sft.
        ):
            if applies:
                rate, reasons = rate * share, [*reasons, why]
    if config.learning_rate_multiplier != 1:
        rate, reasons = rate * config.learning_rate_multiplier, [*reasons, f"times {config.learning_rate_multiplier:g}"]
    return float(f"{rate:.3g}"), ", ".join(reasons)


def _batch_size(config: TrainConfig, rows: int) -> tuple[int, str]:
    if config.batch_size:
        return config.batch_size, ""
    size = auto_batch_size(rows, config.epochs)
    if config.objective == "kto" and size < _KTO_BATCH:
        return _KTO_BATCH, "kto takes its reference point from the rows of a pass, and fewer would make it noise"
    if size == 16:
        return size, f"{rows} rows are enough steps of 16"
    return size, f"fewer than 16, for more steps from {rows} rows"


def _micro_batch_size(config: TrainConfig, batch: int, hidden_size: int) -> tuple[int, str]:
    asked = config.micro_batch_size
    if asked is None:
        if _is_small(hidden_size):
            return batch, "the whole batch at once, since the base is small"
        size = _largest_divisor(batch, at_most=4)
        return size, f"in {batch // size} passes, to save memory" if size < batch else "the whole batch at once"
    if batch % asked:
        raise Invalid(
            f"micro-batch-size {asked} does not divide batch-size {batch}; use one of "
            f"{', '.join(str(size) for size in range(1, batch + 1) if batch % size == 0)}",
            param="micro_batch_size",
        )
    return asked, ""


def _alpha(config: TrainConfig) -> tuple[int, str]:
    if config.lora_alpha:
        return config.lora_alpha, ""
    if config.use_rslora:
        return max(1, round(2 * math.sqrt(config.lora_r))), "twice the root of the rank: rsLoRA divides by the root"
    return 2 * config.lora_r, "twice the rank"


def _beta(config: TrainConfig) -> tuple[float, str]:
    if config.beta or config.objective not in PREFERENCES:
        return config.beta or _BETA, ""
    if config.objective == "orpo":
        return _ORPO_BETA, "so that the odds of the two answers count beside learning the chosen one"
    return _BETA, "the usual strength of preferences"


def _packing(config: TrainConfig, packed_rows: int | None) -> tuple[bool, str]:
    if config.packing and packed_rows is None:
        raise Invalid(
            f"rows packed into one would read each other on the base '{config.base}', whose attention does not mind "
            "where a row begins; leave out --packing",
            param="packing",
        )
    if config.packing or config.objective != "pretrain":
        return config.packing, ""
    if packed_rows is None:
        return False, "documents packed into one row would read each other on this base"
    return True, "documents share rows, each reading itself alone; none of a row is padding"


def _optimizer(config: TrainConfig, on_cuda: bool) -> tuple[str, str]:
    if config.optimizer.startswith("paged") and not on_cuda:
        raise Invalid(
            f"optimizer {config.optimizer} moves its state from a GPU to the memory of the host, and this run is on "
            f"the host; use {config.optimizer.removeprefix('paged_')}",
            param="optimizer",
        )
    if config.optimizer != "auto":
        return config.optimizer, ""
    if config.method == "qlora" and on_cuda:
        return "paged_adamw_8bit", "state in 8 bits that leaves the GPU when memory is short"
    if config.method == "qlora":
        return "adamw", "without a GPU there is nothing to page out of"
    return "adamw", "the usual one"


def _checkpointing(config: TrainConfig, hidden_size: int) -> tuple[bool, str]:
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing, ""
    if _is_small(hidden_size):
        return False, "the base is small"
    return True, "activations are computed twice, to save memory"


def _is_small(hidden_size: int) -> bool:
    return hidden_size <= 1024


def _largest_divisor(number: int, at_most: int) -> int:
    return next(size for size in range(min(number, at_most), 0, -1) if number % size == 0)
