"""TRL's trainers, one for each objective, fed with tokens of our own renderer and measured by our own scoring.

What a preference is measured against is the model before its first step. Its likelihoods are computed once, before
training: the same as asking the base with the adapter off at every step, also right where the adapter's start has
changed the base (PiSSA, OLoRA) and where there is no adapter at all, and a model less to run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset as TokenTable
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import SchedulerType
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from adapters.base_model import BaseModel
from training.config import Plan, TrainConfig
from training.data.dataset import NOT_LEARNED, TrainingRow
from training.data.preferences import PreferenceRow
from training.trainer.adapter import compute_dtype, save_weights
from training.trainer.packing import PackedBatch, pack
from training.trainer.sampler import LengthGroupedRows
from training.trainer.scoring import (
    Cancel,
    Evaluation,
    Row,
    Validation,
    keeps_chosen_logits,
    preference_likelihoods,
    strangers,
    token_losses,
)

KEPT_CHECKPOINTS = 2

_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_MIN_LR_SHARE = 0.1  # of the learning rate, where cosine_with_min_lr ends


def build(
    base: BaseModel,
    model: Any,
    rows: Sequence[Row],
    config: TrainConfig,
    plan: Plan,
    checkpoints: Path,
    *,
    validation: Validation | None,
    callback: TrainerCallback,
    cancelled: Cancel = lambda: False,
) -> "_Common":
    """The trainer for `config`'s objective. `model` must be untrained still: preferences are measured against it, which
    takes a forward pass of all rows. Raises Cancelled between its batches."""
    common = _common_arguments(base, config, plan, checkpoints, evaluated=validation is not None)
    pad = base.tokenizer.pad_token_id if base.tokenizer.pad_token_id is not None else base.tokenizer.eos_token_id
    options = {"pad_token_id": pad, "compute_in": compute_dtype(base, config), "cancelled": cancelled}
    maker: type[_Common]
    extra: dict[str, Any] = {}
    if config.objective in ("sft", "pretrain"):
        plain = [row for row in rows if isinstance(row, TrainingRow)]
        maker, table = _Supervised, pack(plain, plan.max_length) if plan.packing else _rows_table(plain)
        arguments = SFTConfig(
            **common, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, shuffle_dataset=False
        )
        if plan.packing:
            extra["data_collator"] = PackedBatch(pad)
    else:
        pairs = [row for row in rows if isinstance(row, PreferenceRow)]
        # TRL's default takes dropout out of the model without asking.
        common |= {"beta": plan.beta, "disable_dropout": config.lora_dropout == 0, "max_length": None}
        # Told so, TRL loads no second base; but it also hashes all weights, which a frozen base can be spared.
        known = {"precompute_ref_log_probs": not isinstance(model, PeftModel)}
        if config.objective == "dpo":
            maker, table = _Pairs, _pairs_table(model, pairs, options)
            arguments = DPOConfig(**common, **known)
        elif config.objective == "kto":
            maker, table = _SingleAnswers, _answers_table(model, pairs, options)
            arguments = KTOConfig(**common, **known, **_weights(pairs))
        else:
            maker, table = _Odds, _odds_table(pairs)
            arguments = ORPOConfig(**common | {"max_length": plan.max_length, "remove_unused_columns": False})
    trainer = maker(
        model=model,
        args=arguments,
        train_dataset=table,
        processing_class=base.tokenizer,
        callbacks=[callback],
        **extra,
    )
    if isinstance(model, PeftModel) and "ref" in model.peft_config:
        model.delete_adapter("ref")  # a copy that TRL makes to measure against
    trainer.precompute_ref_logps = True  # the table has them
    trainer.validation = validation
    trainer.loraplus_ratio = config.loraplus_ratio
    trainer.warmup = config.warmup
    trainer.pop_callback(PrinterCallback)
    return trainer


def _common_arguments(
    base: BaseModel, config: TrainConfig, plan: Plan, checkpoints: Path, *, evaluated: bool
) -> dict[str, Any]:
    on_cuda = base.device.type == "cuda"
    computed_in = compute_dtype(base, config)
    return {
        "output_dir": str(checkpoints),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.batch_size // plan.micro_batch_size,
        "learning_rate": plan.learning_rate,
        "lr_scheduler_type": config.schedule,
        "lr_scheduler_kwargs": ({"min_lr_rate": _MIN_LR_SHARE} if config.schedule == "cosine_with_min_lr" else None),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": _OPTIMIZERS[plan.optimizer],
        "neftune_noise_alpha": config.neftune_alpha,
        "bf16": computed_in == torch.bfloat16,
        "fp16": computed_in == torch.float16,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "use_cpu": not on_cuda,
        "dataloader_pin_memory": on_cuda,
        "seed": config.seed,
        "save_strategy": "steps" if config.save_steps else "epoch",
        "save_steps": config.save_steps or 500,
        "save_total_limit": KEPT_CHECKPOINTS,
        # The best one is then also spared when old checkpoints go.
        "metric_for_best_model": "eval_loss" if evaluated and config.publishes_best else None,
        "greater_is_better": False if evaluated and config.publishes_best else None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a diverged run must show it
        "disable_tqdm": True,
        "report_to": "none",
        "eval_strategy": "no",  # the callback says when
    }


# --- tables ---


def _rows_table(rows: Sequence[TrainingRow]) -> TokenTable:
    return TokenTable.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def _pairs_table(model: Any, rows: Sequence[PreferenceRow], options: dict[str, Any]) -> TokenTable:
    before = preference_likelihoods(model, rows, "dpo", **options)
    return TokenTable.from_dict(
        {
            "prompt_ids": [row.prompt_ids for row in rows],
            "chosen_ids": [row.chosen_ids for row in rows],
            "rejected_ids": [row.rejected_ids for row in rows],
            "ref_chosen_logps": before.wanted,
            "ref_rejected_logps": before.other,
        }
    )


def _answers_table(model: Any, rows: Sequence[PreferenceRow], options: dict[str, Any]) -> TokenTable:
    before = preference_likelihoods(model, rows, "kto", **options)
    return TokenTable.from_dict(
        {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.answer.answer_ids for row in rows],
            "KL_completion_ids": [other.answer.answer_ids for other in strangers(rows)],
            "label": [row.wanted for row in rows],
            "ref_logps": before.wanted,
            "ref_KL_logps": before.other,
        }
    )


def _odds_table(rows: Sequence[PreferenceRow]) -> TokenTable:
    columns: dict[str, list[Any]] = {"prompt_input_ids": [row.prompt_ids for row in rows]}
    columns["prompt_attention_mask"] = [[1] * len(row.prompt_ids) for row in rows]
    for name, answers in (("chosen", [row.chosen for row in rows]), ("rejected", [row.rejected for row in rows])):
        columns[f"{name}_input_ids"] = [answer.input_ids for answer in answers]
        columns[f"{name}_attention_mask"] = [[1] * len(answer.input_ids) for answer in answers]
        columns[f"{name}_labels"] = [[NOT_LEARNED] * len(answer.prompt_ids) + answer.answer_ids for answer in answers]
    return TokenTable.from_dict(columns)


def _weights(rows: Sequence[PreferenceRow]) -> dict[str, float]:
    """Of wanted and unwanted answers, so that neither kind outweighs the other by number (arXiv:2402.01306, 4.2)."""
    wanted = sum(row.wanted for row in rows)
    other = len(rows) - wanted
    if not wanted or not other:
        return {}
    return {"desirable_weight": max(1.0, other / wanted), "undesirable_weight": max(1.0, wanted / other)}


# --- trainers ---


class _Common:
    """What all of TRL's trainers do differently here: the order of rows, when and how held-out rows are measured, what
    a checkpoint holds, two learning rates for LoRA+, and a warm-up that wastes no step."""

    tokens_seen = 0
    validation: Validation | None = None
    loraplus_ratio: float | None = None
    warmup: float = 0.0  # below 1: a share of all steps
    precompute_ref_logps: bool
    last_evaluation: Evaluation | None = None

    # Attributes of transformers' Trainer that are used here.
    args: TrainingArguments
    model: Any
    optimizer: Any
    lr_scheduler: Any
    train_dataset: Any
    state: Any
    control: Any
    callback_handler: Any
    log: Any
    train: Any
    pop_callback: Any
    get_optimizer_cls_and_kwargs: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        table = train_dataset if train_dataset is not None else self.train_dataset
        return LengthGroupedRows(_lengths(table), self.args.train_batch_size, self.args.seed)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Nothing: rows are tokens already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Nothing: the table has them."""
        return dataset

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        assert self.validation is not None
        measured = self.last_evaluation = self.validation.measure(self.model)
        metrics = {"eval_loss": measured.loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, model: Any = None) -> Any:
        if self.loraplus_ratio is None:
            return super().create_optimizer(model)  # type: ignore[misc]
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                model=self.model,
                optimizer_cls=kind,
                loraplus_lr_ratio=self.loraplus_ratio,
                loraplus_weight_decay=self.args.weight_decay,
                **options,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """transformers' schedule but for the warm-up. There it begins at a rate of 0, so that a step learns nothing,
        and a share is rounded up: of a run of one step, which then learns nothing at all. Here n steps of it have 1 to
        n parts in n + 1 of the rate, and a share is rounded down."""
        if self.lr_scheduler is None:
            steps = int(self.warmup if self.warmup >= 1 else self.warmup * num_training_steps)
            self.args.warmup_steps = steps
            scheduler = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
            if steps and self.args.lr_scheduler_type != SchedulerType.CONSTANT:
                rates = [_warmed_up(steps, rate) for rate in scheduler.lr_lambdas]
                self.lr_scheduler = LambdaLR(scheduler.optimizer, rates)
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.tokens_seen += _tokens(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        directory = Path(cast(str, output_dir or self.args.output_dir))
        save_weights(self.model, directory)
        torch.save(self.args, directory / "training_args.bin")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the manifest says what TRL would put into a README at every checkpoint."""

    def _send_telemetry(self) -> None:
        """Nothing: TRL would tell its makers of every run."""


class _Supervised(_Common, SFTTrainer):
    """A loss that does not compute what it will mask."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # Off CUDA, TRL computes logits for every token and then masks the loss of those not learned: more than half
        # of them in chat data, in the widest matrix of the model.
        if inputs["input_ids"].device.type == "cuda" or not keeps_chosen_logits():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.tokens_seen += _tokens(inputs)
        losses, _ = token_losses(model, inputs)
        return losses.sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch)


class _Pairs(_Common, DPOTrainer):
    pass


class _SingleAnswers(_Common, KTOTrainer):
    pass


class _Odds(_Common, ORPOTrainer):
    @staticmethod
    def tokenize_row(feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return feature


def _warmed_up(steps: int, rate: Callable[[int], float]) -> Callable[[int], float]:
    """`rate` of a step, counted from 0, from step number `steps` on."""
    return lambda step: (step + 1) / (steps + 1) if step < steps else rate(step)


def _lengths(table: Any) -> list[int]:
    """Tokens of each row, an answer or two included."""
    if "input_ids" in table.column_names:
        return [len(ids) for ids in table["input_ids"]]
    if "chosen_input_ids" in table.column_names:
        return [
            max(map(len, pair)) for pair in zip(table["chosen_input_ids"], table["rejected_input_ids"], strict=True)
        ]
    columns = [name for name in ("completion_ids", "chosen_ids", "rejected_ids") if name in table.column_names]
    answers = zip(*(table[name] for name in columns), strict=True)
    return [len(prompt) + max(map(len, both)) for prompt, both in zip(table["prompt_ids"], answers, strict=True)]


def _tokens(inputs: dict[str, Any]) -> int:
    """Read in this pass, padding left out."""
    if "position_ids" in inputs:  # packed: padding has position 0 and no label, as the first of each row has
        return int((inputs["position_ids"] > 0).sum())
    masks = [
        value for name, value in inputs.items() if name.endswith("attention_mask") and not name.startswith("prompt")
    ]
    return int(sum(mask.sum() for mask in masks))
