"""One run, from a data file to a published adapter. Everything on the way is recorded in the run's journal.

A run is refused before it leaves anything behind, or it ends in one of four states: succeeded with a version in
the store, paused or cancelled with a checkpoint to go on from, or failed with a message that says the way out.
`python -m training.run DIRECTORY` runs what waits in a run directory; the queue starts it so."""

import errno
import json
import math
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from adapters.base_model import BaseModel, load_base, locate_base
from adapters.errors import BianlianError, Invalid
from adapters.manifest import AdapterManifest, AdapterVersion, TrainingRecord, check_name
from adapters.renderer import ChatRenderer
from adapters.settings import Device
from adapters.store import AdapterStore
from training.config import Plan, TrainConfig, max_length_for, plan_for, with_absolute_paths
from training.dataset import Dataset, Report, TrainingRow, data_sha256, load_dataset
from training.journal import Journal, Metric, RunConfig
from training.trainer import (
    Cancelled,
    Progress,
    Trained,
    add_adapter,
    last_checkpoint,
    pick_targets,
    save_adapter,
    train,
    validation_loss,
)


@dataclass(frozen=True)
class Started:
    """What is known when the first step is about to be made."""

    job_id: str
    directory: Path
    report: Report
    plan: Plan
    rows: int
    validation_rows: int
    resumed_at: int
    base_val_loss: float | None


@dataclass(frozen=True)
class Finished:
    job_id: str
    state: str  # succeeded, paused or cancelled
    message: str
    version: AdapterVersion | None = None
    record: TrainingRecord | None = None


@dataclass
class Watcher:
    """Whoever looks on; each function is called in the run's own thread."""

    on_stage: Callable[[str], None] = lambda stage: None
    on_start: Callable[[Started], None] = lambda started: None
    on_step: Callable[[Progress], None] = lambda progress: None


def start_run(config: TrainConfig, root: Path, *, device: Device = "auto", watcher: Watcher | None = None) -> Finished:
    """Train `config` and publish the adapter. Blocks until the run is over; Ctrl-C cancels it at the next step.

    Raises Invalid, NotFound or Conflict, with nothing left on disk, when data, name or base will not do."""
    watcher = watcher or Watcher()
    check_name(config.name)
    config = with_absolute_paths(config)
    watcher.on_stage("reading data")
    dataset = check_data(config)
    watcher.on_stage("loading base")
    base = _load(config, device)
    journal = Journal.create(
        root / "runs",
        RunConfig(train=config, data_sha256=_digest(config), base_fingerprint=base.fingerprint),
        state="running",
    )
    return _Run(journal, AdapterStore(root / "store"), watcher).execute(lambda: (dataset, base))


def resume_run(job_id: str, root: Path, *, device: Device = "auto", watcher: Watcher | None = None) -> Finished:
    """Go on with a cancelled, failed or killed run from its last checkpoint, to the same end as without the break.

    Raises NotFound for an unknown run, Conflict when it is running, has succeeded, or its data or base changed."""
    watcher = watcher or Watcher()
    journal = Journal.open(root / "runs", job_id)
    dataset, base = _prepare(journal, device, watcher.on_stage)
    return _Run(journal, AdapterStore(root / "store"), watcher).execute(lambda: (dataset, base))


def run_job(directory: Path, *, device: Device = "auto", watcher: Watcher | None = None) -> Finished:
    """Run what waits in `directory`, to the end or from its last checkpoint on. Nobody may be looking: whatever is
    wrong with data or base fails the run and is in its status. Raises Conflict when another process runs it."""
    journal, watcher = Journal(directory), watcher or Watcher()
    run = _Run(journal, AdapterStore(directory.parent.parent / "store"), watcher)
    return run.execute(lambda: _prepare(journal, device, run.enter))


def _prepare(journal: Journal, device: Device, on_stage: Callable[[str], None]) -> tuple[Dataset, BaseModel]:
    """What the run needs, the same as when it began if it has."""
    asked = journal.config()
    on_stage("reading data")
    dataset = check_data(asked.train)
    digest = _digest(asked.train)
    journal.settle(digest)
    on_stage("loading base")
    base = _load(asked.train, device)
    journal.settle(digest, base.fingerprint)
    return dataset, base


def _digest(config: TrainConfig) -> str:
    return data_sha256((*config.data, *config.validation_data))


def check_data(config: TrainConfig) -> Dataset:
    """The data of `config`, rendered for its base. Raises Invalid when a run would refuse it."""
    dataset = read_dataset(config)
    dataset.report.refuse(strict=config.strict)
    if config.val_split and not config.validation_data and len({tuple(row.input_ids) for row in dataset.rows}) < 2:
        raise Invalid("one row cannot be split; add rows, or give --val-split 0", param="val_split")
    return dataset


def read_dataset(config: TrainConfig) -> Dataset:
    """The data of `config`, good or bad, rendered for its base, whose weights are not loaded."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    directory = locate_base(config.base)
    model_config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    try:
        configured = GenerationConfig.from_pretrained(directory).eos_token_id
    except OSError:  # no generation_config.json: transformers takes the model's
        configured = model_config.get_text_config().eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    stops = frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
    return load_dataset(
        config.data,
        ChatRenderer(tokenizer, stops),
        format=config.format,
        system=config.system,
        max_length=max_length_for(config, model_config.get_text_config().max_position_embeddings),
    )


def _load(config: TrainConfig, device: Device) -> BaseModel:
    base = load_base(config.base, device=device, quantize="4bit" if config.method == "qlora" else "none")
    pick_targets(base, config.targets)  # refuses unknown ones before a run exists
    return base


class _Run:
    def __init__(self, journal: Journal, store: AdapterStore, watcher: Watcher):
        self.journal = journal
        self.store = store
        self.watcher = watcher
        self.config = journal.config().train
        self.signal: int | None = None  # that asked this process to stop
        self.base: BaseModel
        self.dataset: Dataset
        self.tokens_per_epoch = 0

    def execute(self, prepare: Callable[[], tuple[Dataset, BaseModel]]) -> Finished:
        self.journal.begin()
        try:
            with self._interrupts_noted(), self.journal.beating():
                self.dataset, self.base = prepare()
                if self._asked_to_stop():
                    raise Cancelled
                return self._train_and_publish()
        except (Cancelled, KeyboardInterrupt):
            return self._stopped()
        except Exception as error:
            discard_partial(self.journal)  # also makes room, should the disk be full
            failure = explain(error, self.journal.job_id)
            self.journal.note(failure.message, level="error", data={"code": failure.code})
            self._set_state(
                "failed",
                failure.message,
                code=failure.code,
                param=failure.param,
                finished=datetime.now(UTC),
            )
            if isinstance(error, BianlianError):
                raise
            raise failure from error

    def enter(self, stage: str) -> None:
        self.journal.note(stage)
        self.watcher.on_stage(stage)

    def _asked_to_stop(self) -> bool:
        return self.signal is not None or self.journal.wish() is not None

    @contextmanager
    def _interrupts_noted(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM let the run finish its step; a second one breaks off at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only; whoever owns it leaves a wish in the journal
            return

        def ask(signum: int, frame: object) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = signum

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _train_and_publish(self) -> Finished:
        training, validation = self._split()
        self.tokens_per_epoch = sum(len(row.input_ids) for row in training)
        plan = plan_for(
            self.config,
            hidden_size=self.base.model.config.get_text_config().hidden_size,
            max_model_len=self.base.max_model_len,
            rows=len(training),
        )
        model = add_adapter(self.base, self.config, plan)
        discard_partial(self.journal)
        checkpoint = last_checkpoint(self.journal.checkpoints)
        base_loss = self._base_loss(model, validation)
        self.journal.rewind(checkpoint[1] if checkpoint else 0)
        resumed = f", resumed at step {checkpoint[1]}" if checkpoint else ""
        self.journal.note(
            f"training on {len(training)} rows, {len(validation)} for validation{resumed}",
            data={"learning_rate": plan.learning_rate, "batch_size": plan.batch_size, "seed": self.config.seed},
        )
        self.watcher.on_start(
            Started(
                job_id=self.journal.job_id,
                directory=self.journal.directory,
                report=self.dataset.report,
                plan=plan,
                rows=len(training),
                validation_rows=len(validation),
                resumed_at=checkpoint[1] if checkpoint else 0,
                base_val_loss=base_loss,
            )
        )
        trained = train(
            self.base,
            model,
            training,
            self.config,
            plan,
            self.journal.checkpoints,
            resume_from=checkpoint[0] if checkpoint else None,
            on_step=self._record,
            cancelled=self._asked_to_stop,
        )
        if not trained.finished:
            raise Cancelled
        self.enter("validating")
        tuned_loss = self._loss(model, validation, "tuned_validation", trained.steps)
        record = self._training_record(trained, len(training), base_loss, tuned_loss)
        version = self._publish(model, record)
        self.journal.note(f"published as {version}", data={"version": str(version), "digest": version.digest})
        self._set_state(
            "succeeded",
            f"published as {version}",
            version=str(version),
            finished=datetime.now(UTC),
            trained_tokens=round(self.tokens_per_epoch * trained.epochs),
        )
        shutil.rmtree(self.journal.checkpoints, ignore_errors=True)
        return Finished(self.journal.job_id, "succeeded", f"published as {version}", version, record)

    def _split(self) -> tuple[list[TrainingRow], list[TrainingRow]]:
        """(training, validation) rows."""
        if not self.config.validation_data:
            return self.dataset.split(self.config.val_split, self.config.seed)
        held_out = self.config.model_copy(update={"data": self.config.validation_data, "val_split": 0.0})
        return self.dataset.rows, check_data(held_out).rows

    def _base_loss(self, model: object, validation: list[TrainingRow]) -> float | None:
        """Of the base: a fresh adapter adds nothing, its B is zero. Measured once a run."""
        if known := self.journal.metric("base_validation"):
            return known.loss
        self.enter("validating base")
        return self._loss(model, validation, "base_validation", 0)

    def _loss(self, model: object, validation: list[TrainingRow], kind: str, step: int) -> float | None:
        if not validation:
            return None
        tokenizer = self.base.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        loss = validation_loss(model, validation, pad, cancelled=self._asked_to_stop)  # type: ignore[arg-type]
        if not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss}")
        self.journal.append(Metric.model_validate({"kind": kind, "step": step, "loss": loss}))
        self.journal.note(
            f"Step {step}: {kind.replace('_', ' ')} loss={loss:.4f}",
            type="metrics",
            data={"step": step, "valid_loss": loss},
        )
        return loss

    def _record(self, progress: Progress) -> None:
        if not math.isfinite(progress.loss):
            raise self._diverged(f"the loss is {progress.loss} at step {progress.step}", progress.learning_rate)
        self.journal.append(
            Metric(
                kind="step",
                step=progress.step,
                loss=progress.loss,
                epoch=progress.epoch,
                learning_rate=progress.learning_rate,
                grad_norm=progress.grad_norm,
                tokens_per_s=round(progress.tokens_per_s, 1),
            )
        )
        self.journal.note(
            f"Step {progress.step}/{progress.steps}: training loss={progress.loss:.4f}",
            type="metrics",
            data={"step": progress.step, "total_steps": progress.steps, "train_loss": progress.loss},
        )
        self._set_state(
            "running",
            step=progress.step,
            steps=progress.steps,
            trained_tokens=round(self.tokens_per_epoch * progress.epoch),
            estimated_finish=datetime.now(UTC) + timedelta(seconds=progress.remaining_s),
        )
        self.watcher.on_step(progress)

    def _diverged(self, what: str, learning_rate: float | None = None) -> "TrainingFailed":
        was = f" (it was {learning_rate:.2g})" if learning_rate else ""
        return TrainingFailed(
            f"training diverged: {what}. Start again with a smaller --learning-rate{was}",
            code="diverged",
            param="learning_rate",
        )

    def _training_record(self, trained: Trained, rows: int, base: float | None, tuned: float | None) -> TrainingRecord:
        losses = [metric.loss for metric in self.journal.metrics() if metric.kind == "step"]
        return TrainingRecord(
            data_sha256=self.journal.config().data_sha256 or _digest(self.config),
            rows=rows,
            epochs=trained.epochs,
            steps=trained.steps,
            train_loss=sum(losses) / len(losses) if losses else None,
            base_val_loss=base,
            tuned_val_loss=tuned,
            seed=self.config.seed,
        )

    def _publish(self, model: object, record: TrainingRecord) -> AdapterVersion:
        self.enter("publishing")
        directory = self.journal.directory / "adapter"
        save_adapter(model, directory)
        renderer = ChatRenderer(self.base.tokenizer, self.base.stop_token_ids)
        AdapterManifest(
            name=self.config.name,
            base_name=self.base.name,
            base_fingerprint=self.base.fingerprint,
            template_hash=renderer.template_hash,
            system_prompt=self.dataset.report.system_prompt,
            card=self.config.card,
            training=record,
        ).write(directory)
        return self.store.publish(directory, self.config.name)

    def _stopped(self) -> Finished:
        """Paused by a wish or SIGTERM, as when the machine is shut down; cancelled by a wish or Ctrl-C."""
        wish = self.journal.wish() or ("pause" if self.signal == signal.SIGTERM else "cancel")
        checkpoint = last_checkpoint(self.journal.checkpoints)
        kept = f"checkpoint kept at step {checkpoint[1]}" if checkpoint else "no step was finished"
        state, finished = ("paused", None) if wish == "pause" else ("cancelled", datetime.now(UTC))
        message = f"{state}; {kept}. Go on with: bianlian train --resume {self.journal.job_id}"
        self.journal.note(message)
        self._set_state(state, message, finished=finished)
        return Finished(self.journal.job_id, state, message)

    # Events come before the state that they lead to: who sees the end has seen why.
    def _set_state(self, state: str, message: str = "", **fields: Any) -> None:
        self.journal.update(state=state, message=message, **fields)


def discard_partial(journal: Journal) -> None:
    """Delete checkpoints that were cut off while being written, and an adapter that never got published."""
    for path in journal.checkpoints.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_bytes())
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(journal.directory / "adapter", ignore_errors=True)


class TrainingFailed(BianlianError):
    """The run broke off; its journal says the same."""

    code = "training_failed"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch and safetensors write files in other languages, which have no errno for us.
_FULL_WORDS = ("no space left", "file too large", "quota exceeded", "pytorchstreamwriter failed", "unexpected pos")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "bad_alloc", "cannot allocate memory")


def explain(error: Exception, job_id: str) -> BianlianError:
    """`error` as what a user should read."""
    if isinstance(error, BianlianError):
        return error
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    again = f"go on with: bianlian train --resume {job_id}"
    if isinstance(error, MemoryError) or _says(error, _MEMORY_WORDS):
        return TrainingFailed(
            f"out of memory ({reason}). Start again with a smaller --batch-size or --max-length, or with "
            f"--method qlora, which holds the base in 4 bits; or free memory and {again}",
            code="out_of_memory",
        )
    if (isinstance(error, OSError) and error.errno in _FULL) or _says(error, _FULL_WORDS):
        return TrainingFailed(
            f"the disk is full ({reason}). Free space, or start again with a smaller --lora-r, then {again}",
            code="disk_full",
        )
    if isinstance(error, OSError):
        return TrainingFailed(f"{reason}. Mend disk or permissions, then {again}")
    return TrainingFailed(f"{type(error).__name__}: {reason}. Checkpoints are kept; {again}")


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)


def main(directory: str, device: str = "auto") -> int:
    """What the queue starts. The status says how it ended; what is printed ends up in the run's log."""
    from training.quiet import silence_libraries

    silence_libraries()
    with suppress(OSError):  # should memory run out, the kernel is to end this process and not the server
        Path("/proc/self/oom_score_adj").write_text("500")
    assert device in get_args(Device)
    try:
        print(run_job(Path(directory), device=device).message)  # type: ignore[arg-type]
    except BianlianError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
