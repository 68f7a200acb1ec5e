"""What a run learns from: rows to train on, rows held out, rows mixed in, all rendered for its base, whose weights are
not loaded."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adapters.errors import Invalid
from training.base_info import BaseInfo, read_base
from training.config import PREFERENCES, TrainConfig, max_length_for
from training.data.dataset import Dataset, TrainingRow, data_sha256, load_dataset
from training.data.preferences import PreferenceDataset, PreferenceRow, load_preferences, unsplit
from training.data.report import Report
from training.data.sources import Source, files_of, sources_at, sources_of

Rows = list[TrainingRow] | list[PreferenceRow]


@dataclass(frozen=True)
class RunData:
    """`validation` None: split from the main. `replay` is mixed in against forgetting."""

    main: Dataset | PreferenceDataset
    validation: Dataset | PreferenceDataset | None
    replay: Dataset | None

    @property
    def report(self) -> Report:
        return self.main.report

    def parts(self, config: TrainConfig) -> tuple[Rows, Rows]:
        """(training, validation) rows. Replayed rows are among the first only."""
        training: Rows
        validation: Rows
        training, validation = self.main.split(0 if self.validation else config.val_split, config.seed)
        if self.validation is not None:
            validation = self.validation.rows
        if self.replay is None:
            return training, validation
        plain = [row for row in training if isinstance(row, TrainingRow)]
        return [*plain, *_replayed(self.replay.rows, len(plain), config)], validation


def check_data(config: TrainConfig) -> RunData:
    """The data of `config`. Raises Invalid when a run would refuse it."""
    base = read_base(config.base)
    main = _read(config, base, sources_of(config), config.data_weights)
    validation = (
        _read(config, base, sources_at(config.validation_data, config.format)) if config.validation_data else None
    )
    replay: Dataset | None = None
    if config.replay_data:
        # Said in their own words: the system prompt of the new rows is not put before them.
        asked = config.model_copy(update={"system": None})
        replay = _load(asked, base, sources_at(config.replay_data))
    for dataset in (main, validation, replay):
        if dataset is not None:
            dataset.report.refuse(strict=config.strict)
    if config.val_split and validation is None and not main.split(config.val_split, config.seed)[1]:
        raise Invalid(unsplit(main.rows), param="val_split")
    return RunData(main, validation, replay)


def hash_of(config: TrainConfig) -> str:
    """One hash over every file that decides what is learned."""
    asked = (sources_of(config), sources_at(config.validation_data), sources_at(config.replay_data))
    return data_sha256(file for sources in asked for file in files_of(sources))


def _read(
    config: TrainConfig, base: BaseInfo, sources: Sequence[Source], weights: Sequence[float] = ()
) -> Dataset | PreferenceDataset:
    if config.objective in PREFERENCES:
        objective: Literal["dpo", "kto", "orpo"] = config.objective  # type: ignore[assignment]
        return load_preferences(
            sources,
            base.renderer,
            objective=objective,
            system=config.system,
            max_length=max_length_for(config, base.max_model_len),
            weights=weights,
            max_samples=config.max_samples,
            seed=config.seed,
        )
    dataset = _load(config, base, sources, weights)
    if config.objective == "sft" and {*dataset.report.formats.values()} == {"text"}:
        path = next(iter(dataset.report.formats))
        raise Invalid(
            f"{path}: plain text, in which there are no answers to learn; use --objective pretrain", param="objective"
        )
    if config.objective == "pretrain":
        for path, format in dataset.report.formats.items():
            if format != "text":
                raise Invalid(
                    f"{path}: objective pretrain learns from plain text, and these are {format} rows; use --objective "
                    "sft, or a file of texts",
                    param="objective",
                )
    return dataset


def _load(config: TrainConfig, base: BaseInfo, sources: Sequence[Source], weights: Sequence[float] = ()) -> Dataset:
    return load_dataset(
        sources,
        base.renderer,
        system=config.system,
        max_length=max_length_for(config, base.max_model_len),
        mask_history=config.mask_history,
        thinking=config.thinking,
        weights=weights,
        max_samples=config.max_samples,
        seed=config.seed,
    )


def _replayed(rows: list[TrainingRow], beside: int, config: TrainConfig) -> list[TrainingRow]:
    """As many of `rows`, drawn by the seed, as make up `replay_share` of all training rows; at most all of them."""
    wanted = round(beside * config.replay_share / (1 - config.replay_share))
    return random.Random(config.seed).sample(rows, min(len(rows), max(1, wanted)))
