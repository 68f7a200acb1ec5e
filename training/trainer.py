"""Training one adapter with TRL and PEFT. Rows come in as tokens and labels, so TRL's own handling of text is
switched off; progress goes out through one callback. Nothing here knows stores, manifests or run directories.

This is the only file that imports trl, peft or datasets."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset as TokenTable
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from adapters.base_model import BaseModel
from adapters.errors import Invalid, nearest
from training.config import Plan, TrainConfig
from training.dataset import NOT_LEARNED, TrainingRow

KEPT_CHECKPOINTS = 2
_SHORT_ROW = 384  # tokens
_VALIDATION_TOKENS = 4096  # padded tokens in one forward pass of an evaluation


@dataclass(frozen=True)
class Progress:
    """One optimizer step, done."""

    step: int
    steps: int
    epoch: float
    loss: float  # nats a learned token, in this step
    learning_rate: float
    grad_norm: float
    tokens_per_s: float  # tokens read, padding left out
    remaining_s: float


@dataclass(frozen=True)
class Trained:
    steps: int
    epochs: float
    train_loss: float  # mean over the steps of this process
    finished: bool  # False: cancelled, with a checkpoint at `steps`


class Cancelled(Exception):
    """Someone asked for the run to stop."""


Cancel = Callable[[], bool]


# --- the adapter ---


def add_adapter(base: BaseModel, config: TrainConfig, plan: Plan) -> PeftModel:
    """A fresh adapter on `base`, whose modules are wrapped in place. Raises Invalid for targets it does not have."""
    set_seed(config.seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=plan.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=pick_targets(base, config.targets),
    )
    with _quiet():
        model = get_peft_model(base.model, lora)
    # A path of this machine means nothing where the adapter goes; PEFT put it there.
    model.peft_config["default"].base_model_name_or_path = base.name
    return model


def pick_targets(base: BaseModel, wanted: Sequence[str]) -> list[str]:
    """Names of linear layers in the decoder blocks: those `wanted`, or all of them."""
    known = {path.rsplit(".", 1)[-1] for path in base.linear_shapes if any(part.isdigit() for part in path.split("."))}
    for name in wanted:
        if name not in known:
            raise Invalid(f"the base has no linear layer '{name}' in its blocks{nearest(name, known)}", param="targets")
    return sorted(wanted or known)


def save_adapter(model: PeftModel, directory: Path) -> None:
    """PEFT files, as plain PEFT reads them."""
    # False, not PEFT's "auto": that looks the base up on the hub, over the network, at every save.
    model.save_pretrained(directory, save_embedding_layers=False)


# --- training ---


def train(
    base: BaseModel,
    model: PeftModel,
    rows: Sequence[TrainingRow],
    config: TrainConfig,
    plan: Plan,
    checkpoints: Path,
    *,
    resume_from: Path | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    cancelled: Cancel = lambda: False,
    step_back: Callable[[], None] = lambda: None,
) -> Trained:
    """Train `model` in place. Blocks. Leaves the last checkpoints under `checkpoints`; when `cancelled` becomes true,
    saves one more and returns. From a checkpoint it goes on exactly as if it had never stopped. `step_back` is called
    after every forward and backward pass."""
    reporter = _Reporter(on_step, cancelled, step_back)
    with _quiet(), _attention_for(base, rows):
        trainer = _Trainer(
            model=model,
            args=_arguments(base, config, plan, checkpoints),
            train_dataset=_table(rows),
            processing_class=base.tokenizer,
            callbacks=[reporter],
        )
        trainer.pop_callback(PrinterCallback)
        reporter.tokens_seen = lambda: trainer.tokens_seen
        output = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return Trained(
        steps=output.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        train_loss=reporter.mean_loss,
        finished=output.global_step >= trainer.state.max_steps,
    )


def _arguments(base: BaseModel, config: TrainConfig, plan: Plan, checkpoints: Path) -> SFTConfig:
    on_cuda = base.device.type == "cuda"
    return SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.batch_size // plan.micro_batch_size,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # below 1: a share of all steps
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=base.dtype == torch.bfloat16,
        fp16=base.dtype == torch.float16,
        gradient_checkpointing=plan.gradient_checkpointing,
        use_cpu=not on_cuda,
        dataloader_pin_memory=on_cuda,
        max_length=None,  # rows are cut to length already, and whole
        dataset_kwargs={"skip_prepare_dataset": True},
        shuffle_dataset=False,
        seed=config.seed,
        save_strategy="steps" if config.save_steps else "epoch",
        save_steps=config.save_steps or 500,
        save_total_limit=KEPT_CHECKPOINTS,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a diverged run must show it
        disable_tqdm=True,
        report_to="none",
        eval_strategy="no",
    )


def last_checkpoint(checkpoints: Path) -> tuple[Path, int] | None:
    """The newest checkpoint and its step. One that was cut off while being written does not count."""
    found = [
        (path, int(path.name.removeprefix("checkpoint-")))
        for path in checkpoints.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()  # written last but for the callbacks
    ]
    return max(found, key=lambda item: item[1], default=None)


def _table(rows: Sequence[TrainingRow]) -> TokenTable:
    return TokenTable.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


class _Trainer(SFTTrainer):
    """TRL's trainer with its own order of rows, and a loss that does not compute what it will mask."""

    tokens_seen = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        table = train_dataset if train_dataset is not None else self.train_dataset
        lengths = [len(ids) for ids in table["input_ids"]]
        return LengthGroupedRows(lengths, self.args.train_batch_size, self.args.seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.tokens_seen += int(inputs["attention_mask"].sum())
        # Off CUDA, TRL computes logits for every token and then masks the loss of those not learned: more than half
        # of them in chat data, in the widest matrix of the model.
        if inputs["input_ids"].device.type == "cuda" or not _keeps_chosen_logits():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total, count = _summed_loss(model, inputs)
        return total / (count if num_items_in_batch is None else num_items_in_batch)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        directory = Path(output_dir or self.args.output_dir)
        save_adapter(self.model, directory)
        torch.save(self.args, directory / "training_args.bin")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the manifest says what TRL would put into a README at every checkpoint."""

    def _send_telemetry(self) -> None:
        """Nothing: TRL would tell its makers of every run."""


class LengthGroupedRows(Sampler[int]):
    """All rows once an epoch, rows of about the same length in one batch, batches in random order.

    transformers' own `group_by_length` draws from the global random state, so a resumed run could not repeat it,
    and walks from long to short within each group of fifty batches. Here the order follows from (seed, epoch)."""

    POOL = 50  # batches drawn at random that are then sorted by length

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = self.POOL * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            grouped = sorted(order[start : start + pool], key=lambda row: self.lengths[row])
            batches += [grouped[i : i + self.batch_size] for i in range(0, len(grouped), self.batch_size)]
        # A batch that is not full must stay last, or every batch after it would straddle two groups.
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        for index in torch.randperm(len(full), generator=generator).tolist():
            yield from full[index]
        for batch in rest:
            yield from batch


class _Reporter(TrainerCallback):
    """Turns log lines into Progress, and a wish to stop into a checkpoint and a stop."""

    def __init__(self, on_step: Callable[[Progress], None], cancelled: Cancel, step_back: Callable[[], None]):
        self.on_step = on_step
        self.cancelled = cancelled
        self.step_back = step_back
        self.tokens_seen: Callable[[], int] = lambda: 0
        self._losses: list[float] = []
        self._first_step = 0
        self._started = self._last = time.perf_counter()
        self._last_tokens = 0

    @property
    def mean_loss(self) -> float:
        return sum(self._losses) / len(self._losses) if self._losses else float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        self._started = self._last = time.perf_counter()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_back()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_back()
        if self.cancelled():
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now, tokens = time.perf_counter(), self.tokens_seen()
        per_step = (now - self._started) / max(1, state.global_step - self._first_step)
        self._losses.append(float(logs["loss"]))
        self.on_step(
            Progress(
                step=state.global_step,
                steps=state.max_steps,
                epoch=float(state.epoch),
                loss=float(logs["loss"]),
                learning_rate=float(logs["learning_rate"]),
                grad_norm=float(logs["grad_norm"]),
                tokens_per_s=(tokens - self._last_tokens) / max(1e-9, now - self._last),
                remaining_s=per_step * (state.max_steps - state.global_step),
            )
        )
        self._last, self._last_tokens = now, tokens


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers says at every start that tokenizer and model now agree on the pad token, and that TRL uses names
    which will go in its next major version."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _attention_for(base: BaseModel, rows: Sequence[TrainingRow]) -> Iterator[None]:
    """On a CPU, plain attention while rows are short: the backward pass of torch's fused one takes a fifth of a step
    at 60 tokens a row (29 ms a layer; the whole step is 8 to 50 % faster without). Its memory grows with the square
    of the length, so long rows keep the fused one."""
    chosen = base.model.config._attn_implementation
    plain = base.device.type == "cpu" and chosen == "sdpa" and max(len(row.input_ids) for row in rows) <= _SHORT_ROW
    if plain:
        base.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if plain:
            base.model.set_attn_implementation(chosen)


# --- loss ---


def validation_loss(
    model: nn.Module, rows: Sequence[TrainingRow], pad_token_id: int, *, cancelled: Cancel = lambda: False
) -> float:
    """Mean negative log-likelihood of the learned tokens of `rows`, in nats a token. The same for a base and for a
    tuned model. Raises Cancelled between batches."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        for batch in _batches_by_length(rows):
            if cancelled():
                raise Cancelled
            with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=_is_half(model)):
                summed, learned = _summed_loss(model, _pad(batch, pad_token_id, device))
            total += float(summed)
            count += int(learned)
    finally:
        model.train(was_training)
    return total / count if count else float("nan")


def _summed_loss(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(loss summed over learned tokens, their number). Logits exist for those tokens alone where the model can."""
    labels = inputs["labels"]
    learned = F.pad(labels[:, 1:] != NOT_LEARNED, (0, 1))  # token t predicts token t + 1
    wanted = F.pad(labels[:, 1:], (0, 1), value=NOT_LEARNED)[learned]
    options = {"logits_to_keep": learned} if _keeps_chosen_logits() else {}
    logits = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, **options
    ).logits
    if logits.ndim == 3:
        logits = logits[learned]
    return F.cross_entropy(logits.float(), wanted, reduction="sum"), learned.sum()


def _keeps_chosen_logits() -> bool:
    """Whether this transformers takes a mask of positions as `logits_to_keep`."""
    import transformers.modeling_utils

    return hasattr(transformers.modeling_utils, "slice_logits_to_keep")


def _is_half(model: nn.Module) -> bool:
    return any(weight.dtype == torch.bfloat16 for weight in model.parameters())


def _batches_by_length(rows: Sequence[TrainingRow]) -> Iterator[list[TrainingRow]]:
    batch: list[TrainingRow] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids)):
        if batch and (len(batch) + 1) * len(row.input_ids) > _VALIDATION_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _pad(rows: Sequence[TrainingRow], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    def padded(values: list[list[int]], filling: int) -> Tensor:
        longest = max(map(len, values))
        return torch.tensor([value + [filling] * (longest - len(value)) for value in values], device=device)

    return {
        "input_ids": padded([row.input_ids for row in rows], pad_token_id),
        "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], NOT_LEARNED),
    }
