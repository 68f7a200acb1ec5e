"""TrainConfig: what one run is asked to do, and the values that `auto` stands for on a given base.

No torch here: the command line, the HTTP side and the queue build and check configurations without it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.errors import Invalid, nearest
from adapters.manifest import PersonaCard
from adapters.settings import BUNDLED
from training.formats import Format

Method = Literal["lora", "qlora", "full"]
Objective = Literal["sft", "pretrain", "dpo", "kto", "orpo"]
Initialisation = Literal["default", "gaussian", "pissa", "olora"]
Schedule = Literal["cosine", "cosine_with_min_lr", "linear", "constant", "constant_with_warmup"]


class TrainConfig(BaseModel):
    """One run. None means: chosen from the base and the data when the run starts, and then written down."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # What is learned from
    data: tuple[Path, ...] = ()  # files; or dataset names with `dataset`
    dataset: tuple[str, ...] = ()  # names in `dataset_dir`/dataset_info.json, after LLaMA-Factory
    dataset_dir: Path | None = None
    data_weights: tuple[
        float, ...
    ] = ()  # shares of the training rows, one for each of `data` and `dataset`; empty: as they are
    validation_data: tuple[Path, ...] = ()  # used in place of a split
    format: Format | Literal["auto"] = "auto"
    system: str | None = None
    mask_history: bool = False  # learn only the last answer of each conversation
    thinking: bool | None = None  # learn thoughts where template and rows have them; None: if rows have them
    max_length: int | None = Field(default=None, ge=16)
    max_samples: int | None = Field(default=None, ge=1)  # rows taken from each file, the first ones
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
    beta: float | None = Field(default=None, gt=0)  # of dpo, kto and orpo
    lora_r: int = Field(default=16, ge=1, le=1024)
    lora_alpha: int | None = Field(default=None, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ()  # empty: every linear layer of the decoder blocks
    use_rslora: bool = False
    use_dora: bool = False
    init: Initialisation = "default"
    loraplus_ratio: float | None = Field(default=None, ge=1)  # learning rate of B over that of A
    neftune_alpha: float | None = Field(default=None, gt=0)

    # The optimizer
    epochs: float = Field(default=3.0, gt=0, le=1000)
    max_steps: int | None = Field(default=None, ge=1)  # replaces epochs
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    learning_rate_multiplier: float = Field(default=1.0, gt=0, le=100)  # of the chosen learning rate
    schedule: Schedule = "cosine"
    warmup: float = Field(default=0.05, ge=0)  # below 1: a share of all steps
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    batch_size: int | None = Field(default=None, ge=1, le=4096)  # rows an optimizer step learns from
    micro_batch_size: int | None = Field(default=None, ge=1)  # rows in one forward pass
    gradient_checkpointing: bool | None = None
    optimizer: Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**32)

    # Meanwhile
    save_steps: int | None = Field(default=None, ge=1)  # None: at the end of each epoch
    eval_steps: int | None = Field(default=None, ge=1)  # None: at the end of each epoch, where there is validation data
    early_stopping: int | None = Field(default=None, ge=1)  # evaluations in a row without a better validation loss
    keep_best: bool = True  # publish the checkpoint with the lowest validation loss, not the last
    snapshot_steps: int | None = Field(default=None, ge=0)  # 0: none; None: about eight a run
    demo_prompts: tuple[str, ...] = ()  # answered by every snapshot; empty: the card's samples, or four of our own
    card: PersonaCard = PersonaCard()


def parse_config(values: dict[str, object]) -> TrainConfig:
    """`values` checked. Raises Invalid naming the first wrong one and its limit."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise Invalid(f"unknown option '{name}'{nearest(name, TrainConfig.model_fields)}", param=name) from error
        raise Invalid(f"{name}: {first['msg']} (got {first['input']!r})", param=name) from error


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same for a process that is started elsewhere."""
    absolute: dict[str, Any] = {
        name: tuple(path.resolve() for path in getattr(config, name))
        for name in ("data", "validation_data", "replay_data")
    }
    base = Path(config.base).expanduser()
    bundled = (BUNDLED / config.base / "config.json").is_file()
    if not bundled and (base / "config.json").is_file():
        absolute["base"] = str(base.resolve())
    return config.model_copy(update=absolute)


@dataclass(frozen=True)
class Plan:
    """The numbers a run trains with, none of them `auto`."""

    learning_rate: float
    batch_size: int  # rows an optimizer step learns from
    micro_batch_size: int  # rows in one forward pass; divides batch_size
    lora_alpha: int
    max_length: int
    gradient_checkpointing: bool


def plan_for(config: TrainConfig, *, hidden_size: int, max_model_len: int, rows: int) -> Plan:
    """`config` on a base of `hidden_size`, with `rows` training rows."""
    batch_size = config.batch_size or auto_batch_size(rows, config.epochs)
    small = hidden_size <= 1024
    return Plan(
        learning_rate=(config.learning_rate or auto_learning_rate(hidden_size)) * config.learning_rate_multiplier,
        batch_size=batch_size,
        micro_batch_size=batch_size if small else _largest_divisor(batch_size, at_most=4),
        lora_alpha=config.lora_alpha or 2 * config.lora_r,
        max_length=max_length_for(config, max_model_len),
        gradient_checkpointing=not small,
    )


def max_length_for(config: TrainConfig, max_model_len: int) -> int:
    """Tokens a row may have. Raises Invalid when more are asked for than the base can read."""
    if config.max_length and config.max_length > max_model_len:
        raise Invalid(
            f"max-length {config.max_length} is more than the base '{config.base}' reads ({max_model_len})",
            param="max_length",
        )
    return config.max_length or min(max_model_len, 2048)


def auto_learning_rate(hidden_size: int) -> float:
    """2e-4 at hidden size 2048, rising as the width shrinks to the power 1.5; between 1e-4 and 4e-3.

    Gives 3.2e-3 for hidden 320 and 1e-4 for 4096. Narrow models need, and bear, larger steps."""
    return float(f"{min(4e-3, max(1e-4, 2e-4 * (2048 / hidden_size) ** 1.5)):.2g}")


def auto_batch_size(rows: int, epochs: float) -> int:
    """16, or as few as 4 where 16 would leave fewer than 150 optimizer steps."""
    return next((size for size in (16, 8) if rows * epochs / size >= 150), 4)


def _largest_divisor(number: int, at_most: int) -> int:
    return next(size for size in range(min(number, at_most), 0, -1) if number % size == 0)
