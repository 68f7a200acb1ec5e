"""Options that make no sense together, each refused with the way out. What depends on data or base is refused where
those are known."""

from collections.abc import Iterator

from adapters.errors import Invalid
from training.config import PREFERENCES, TrainConfig

_OF_ADAPTERS = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "targets",
    "use_rslora",
    "use_dora",
    "init",
    "loraplus_ratio",
)


def check_combinations(config: TrainConfig) -> None:
    """Raises Invalid for the first contradiction, naming the option to change."""
    for param, message in _contradictions(config):
        raise Invalid(message, param=param)


def _contradictions(config: TrainConfig) -> Iterator[tuple[str, str]]:
    yield from _of_method(config)
    yield from _of_objective(config)
    yield from _of_evaluation(config)
    yield from _of_steps(config)


def _of_method(config: TrainConfig) -> Iterator[tuple[str, str]]:
    if config.method == "full":
        for name in _OF_ADAPTERS:
            if getattr(config, name) != TrainConfig.model_fields[name].default:
                yield name, f"{name} is of adapters, and method full trains the base itself; leave it out, or use lora"
    if config.init in ("pissa", "olora"):
        if config.method == "qlora":
            yield (
                "init",
                f"init {config.init} changes the base's weights, which 4 bits would round once more, so the adapter "
                "would not fit the base it is served on; use init default, or method lora",
            )
        if config.use_dora:
            yield (
                "use_dora",
                f"a DoRA adapter that began as {config.init} cannot be turned into one for the base as it was; leave "
                "out one of the two",
            )


def _of_objective(config: TrainConfig) -> Iterator[tuple[str, str]]:
    objective = config.objective
    if objective in PREFERENCES:
        if config.packing:
            yield "packing", f"objective {objective} compares whole answers and cannot pack rows; leave out packing"
        if config.neftune_alpha is not None:
            yield "neftune_alpha", f"NEFTune is for sft and pretrain; objective {objective} would compare noise"
        if config.replay_data:
            yield (
                "replay_data",
                f"replay rows have one answer and no verdict, and objective {objective} learns from preferences; "
                "leave out replay_data (a smaller learning rate or a larger beta keeps closer to the base)",
            )
    elif config.beta is not None:
        yield "beta", f"beta weighs preferences (dpo, kto, orpo); objective {objective} has none, leave it out"
    if objective == "pretrain" and config.system is not None:
        yield "system", "plain text has no system prompt; leave out system, or use objective sft on conversations"
    if objective == "kto" and 1 in (config.batch_size, config.micro_batch_size):
        name = "micro_batch_size" if config.micro_batch_size == 1 else "batch_size"
        yield name, f"kto measures its reference over the rows of a pass, so {name} must be 2 or more"


def _of_evaluation(config: TrainConfig) -> Iterator[tuple[str, str]]:
    if not config.val_split and not config.validation_data:
        for name in ("early_stopping", "eval_steps"):
            if getattr(config, name) is not None:
                yield name, f"{name} needs held-out rows; give val_split or validation_data"
    if config.replay_share != TrainConfig.model_fields["replay_share"].default and not config.replay_data:
        yield "replay_share", "replay_share is a share of replay_data; give that too"


def _of_steps(config: TrainConfig) -> Iterator[tuple[str, str]]:
    warmup = config.warmup
    if warmup >= 1 and not float(warmup).is_integer():
        yield "warmup", f"warmup {warmup:g} is neither a share of the steps (below 1) nor a number of steps"
    if config.schedule == "constant" and warmup not in (0, TrainConfig.model_fields["warmup"].default):
        yield "warmup", "schedule constant has no warm-up; use constant_with_warmup, or warmup 0"
