"""Training one adapter, or a whole base, with TRL and PEFT. Rows come in as tokens, so TRL's own handling of text is
switched off. Nothing here knows stores, manifests or run directories; nothing outside imports trl, peft or datasets.

`adapter` makes and saves what is trained, `objectives` has TRL's trainers, `packing` and `sampler` the order of rows,
`scoring` what held-out rows are worth, `loop` the run from the first step to the last."""

from training.trainer.adapter import (
    add_adapter,
    load_weights,
    pick_targets,
    save_adapter,
    save_model,
    trainable,
)
from training.trainer.change import Change
from training.trainer.loop import KEPT_CHECKPOINTS, Progress, Trained, last_checkpoint, train
from training.trainer.packing import keeps_rows_apart, packed_rows
from training.trainer.sampler import LengthGroupedRows
from training.trainer.scoring import Cancel, Cancelled, Evaluation, Validation, validation_loss

__all__ = [
    "KEPT_CHECKPOINTS",
    "Cancel",
    "Cancelled",
    "Change",
    "Evaluation",
    "LengthGroupedRows",
    "Progress",
    "Trained",
    "Validation",
    "add_adapter",
    "keeps_rows_apart",
    "last_checkpoint",
    "load_weights",
    "packed_rows",
    "pick_targets",
    "save_adapter",
    "save_model",
    "train",
    "trainable",
    "validation_loss",
]
