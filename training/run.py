"""One run, from a data file to a published adapter. Everything on the way is recorded in the run's journal.

A run is refused before it leaves anything behind, or it ends in one of three states: succeeded with a version in
the store, cancelled with a checkpoint to go on from, or failed with a message that says the way out."""

import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapters.base_model import BaseModel, load_base, locate_base
from adapters.errors import BianlianError, Conflict, Invalid
from adapters.lending import BaseLost
from adapters.manifest import AdapterManifest, AdapterVersion, TrainingRecord, check_name
from adapters.renderer import ChatRenderer
from adapters.settings import Device, Quantization
from adapters.snapshots import RunSnapshots, Series
from adapters.store import AdapterStore
from training.config import Plan, TrainConfig, max_length_for, plan_for
from training.dataset import Dataset, Report, TrainingRow, data_sha256, load_dataset
from training.journal import Journal, Metric, RunConfig, Status
from training.snapshots import demo_prompts, is_due, keeps_snapshots
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
from training.yielding import Yielding


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
    state: str  # succeeded or cancelled
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

    Raises Invalid, NotFound or Conflict, with no run left on disk, when data, name or base will not do."""
    watcher = watcher or Watcher()
    check_name(config.name)
    keeps_snapshots(config)
    config = config.model_copy(update={"data": tuple(path.resolve() for path in config.data)})
    watcher.on_stage("reading data")
    dataset = check_data(config)
    watcher.on_stage("loading base")
    base = _load(config, device, root)
    journal = Journal.create(
        root / "runs",
        RunConfig(train=config, data_sha256=data_sha256(config.data), base_fingerprint=base.fingerprint),
    )
    return _Run(journal, base, dataset, AdapterStore(root / "store"), watcher).execute()


def resume_run(job_id: str, root: Path, *, device: Device = "auto", watcher: Watcher | None = None) -> Finished:
    """Go on with a cancelled, failed or killed run from its last checkpoint, to the same end as without the break.

    Raises NotFound for an unknown run, Conflict when it is running, has succeeded, or its data or base changed."""
    watcher = watcher or Watcher()
    journal = Journal.open(root / "runs", job_id)
    asked = journal.config()
    config = asked.train
    watcher.on_stage("reading data")
    dataset = check_data(config)
    if data_sha256(config.data) != asked.data_sha256:
        raise Conflict(f"the data of run {job_id} has changed since it began; start a new run", param="resume")
    watcher.on_stage("loading base")
    base = _load(config, device, root)
    if base.fingerprint != asked.base_fingerprint:
        raise Conflict(f"base '{config.base}' is not the one run {job_id} began with; start a new run", param="resume")
    return _Run(journal, base, dataset, AdapterStore(root / "store"), watcher).execute()


def check_data(config: TrainConfig) -> Dataset:
    """The data of `config`, rendered for its base. Raises Invalid when a run would refuse it."""
    dataset = read_dataset(config)
    dataset.report.refuse(strict=config.strict)
    if config.val_split and len({tuple(row.input_ids) for row in dataset.rows}) < 2:
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


def _load(config: TrainConfig, device: Device, root: Path) -> BaseModel:
    quantize: Quantization = "4bit" if config.method == "qlora" else "none"
    base = load_base(
        config.base,
        device=device,
        quantize=quantize,
        cache=root / "cache" / "bases",
        lenders=root if _leaves_base_alone(config) else None,
    )
    pick_targets(base, config.targets)  # refuses unknown ones before a run exists
    return base


def _leaves_base_alone(config: TrainConfig) -> bool:
    """Whether the run only reads the base's weights. What is lent are those that the server answers with; full
    fine-tuning learns them, and these initialisations take a part of them away."""
    return config.method != "full" and config.init in ("default", "gaussian")


class _Run:
    def __init__(self, journal: Journal, base: BaseModel, dataset: Dataset, store: AdapterStore, watcher: Watcher):
        self.journal = journal
        self.base = base
        self.dataset = dataset
        self.store = store
        self.watcher = watcher
        self.asked = journal.config()
        self.config = self.asked.train
        self.stop = threading.Event()
        self.snapshots = RunSnapshots(journal.directory)
        self.yielding = Yielding(store.root.parent, self._is_to_stop)
        self.paused_s = 0.0  # until the last step

    def execute(self) -> Finished:
        self.journal.begin()
        try:
            with _interrupts_set(self.stop):
                return self._train_and_publish()
        except (Cancelled, KeyboardInterrupt):
            return self._cancelled()
        except Exception as error:
            message = _explain(error, self.journal.job_id)
            self._set_state("failed", message)
            if isinstance(error, BianlianError):
                raise
            raise TrainingFailed(message) from error
        finally:
            self.yielding.end()
            if self.base.loan:
                self.base.loan.close()

    def _train_and_publish(self) -> Finished:
        training, validation = self.dataset.split(self.config.val_split, self.config.seed)
        plan = plan_for(
            self.config,
            hidden_size=self.base.model.config.get_text_config().hidden_size,
            max_model_len=self.base.max_model_len,
            rows=len(training),
        )
        model = add_adapter(self.base, self.config, plan)
        checkpoint = last_checkpoint(self.journal.checkpoints)
        base_loss = self._base_loss(model, validation)
        self.journal.rewind(checkpoint[1] if checkpoint else 0)
        self._begin_snapshots(checkpoint[1] if checkpoint else 0)
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
            on_step=partial(self._record, model, len(training), base_loss),
            cancelled=self._is_to_stop,
            step_back=self.yielding.step_back,
        )
        self._require_base()
        if not trained.finished:
            raise Cancelled
        self.watcher.on_stage("validating")
        tuned_loss = self._loss(model, validation, "tuned_validation", trained.steps)
        record = self._training_record(trained, len(training), base_loss, tuned_loss)
        version = self._publish(model, record)
        self._set_state("succeeded", f"published as {version}", version=str(version))
        shutil.rmtree(self.journal.checkpoints, ignore_errors=True)
        return Finished(self.journal.job_id, "succeeded", f"published as {version}", version, record)

    def _base_loss(self, model: object, validation: list[TrainingRow]) -> float | None:
        """Of the base: a fresh adapter adds nothing, its B is zero. Measured once a run."""
        if known := self.journal.metric("base_validation"):
            return known.loss
        self.watcher.on_stage("validating base")
        return self._loss(model, validation, "base_validation", 0)

    def _loss(self, model: object, validation: list[TrainingRow], kind: str, step: int) -> float | None:
        if not validation:
            return None
        tokenizer = self.base.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        loss = validation_loss(model, validation, pad, cancelled=self._stop_or_step_back)  # type: ignore[arg-type]
        self.journal.append(Metric.model_validate({"kind": kind, "step": step, "loss": loss}))
        return loss

    def _stop_or_step_back(self) -> bool:
        """Between two batches of a validation: whether it is to stop, after the server has had its turn."""
        self.yielding.step_back()
        self._require_base()
        return self.stop.is_set()

    def _is_to_stop(self) -> bool:
        return self.stop.is_set() or self.base.loan is not None and self.base.loan.lost.is_set()

    def _require_base(self) -> None:
        if self.base.loan and self.base.loan.lost.is_set():
            raise BaseLost(
                "the server whose base this run was training on has ended. Checkpoints are kept; go on with: "
                f"bianlian train --resume {self.journal.job_id}"
            )

    def _begin_snapshots(self, at_step: int) -> None:
        if not keeps_snapshots(self.config):
            return
        series = Series(
            name=self.config.name,
            base_fingerprint=self.base.fingerprint,
            system_prompt=self.dataset.report.system_prompt,
            prompts=demo_prompts(self.config),
        )
        self.snapshots.begin(series, at_step)

    def _record(self, model: object, rows: int, base_loss: float | None, progress: Progress) -> None:
        if not math.isfinite(progress.loss):
            raise TrainingFailed(
                f"training diverged: the loss is {progress.loss} at step {progress.step}. Start again with a smaller "
                f"--learning-rate (it was {progress.learning_rate:.2g})"
            )
        paused_s, self.paused_s = self.yielding.paused_s - self.paused_s, self.yielding.paused_s
        self.journal.append(
            Metric(
                kind="step",
                step=progress.step,
                loss=progress.loss,
                epoch=progress.epoch,
                learning_rate=progress.learning_rate,
                grad_norm=progress.grad_norm,
                tokens_per_s=round(progress.tokens_per_s, 1),
                paused_s=round(paused_s, 3) or None,
            )
        )
        self._set_state("running", step=progress.step, steps=progress.steps)
        if keeps_snapshots(self.config) and is_due(progress.step, progress.steps, self.config.snapshot_steps):
            so_far = Trained(progress.step, progress.epoch, progress.loss, finished=False)
            record = self._training_record(so_far, rows, base_loss, None)
            self.snapshots.add(progress.step, partial(self._write_adapter, model, record))
        self.watcher.on_step(progress)

    def _training_record(self, trained: Trained, rows: int, base: float | None, tuned: float | None) -> TrainingRecord:
        losses = [metric.loss for metric in self.journal.metrics() if metric.kind == "step"]
        return TrainingRecord(
            data_sha256=self.asked.data_sha256,
            rows=rows,
            epochs=trained.epochs,
            steps=trained.steps,
            train_loss=sum(losses) / len(losses) if losses else None,
            base_val_loss=base,
            tuned_val_loss=tuned,
            seed=self.config.seed,
        )

    def _publish(self, model: object, record: TrainingRecord) -> AdapterVersion:
        self.watcher.on_stage("publishing")
        directory = self.journal.directory / "adapter"
        self._write_adapter(model, record, directory)
        return self.store.publish(directory, self.config.name)

    def _write_adapter(self, model: object, record: TrainingRecord, directory: Path) -> None:
        """PEFT files and the manifest."""
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

    def _cancelled(self) -> Finished:
        checkpoint = last_checkpoint(self.journal.checkpoints)
        kept = f"checkpoint kept at step {checkpoint[1]}" if checkpoint else "no step was finished"
        message = f"cancelled; {kept}. Go on with: bianlian train --resume {self.journal.job_id}"
        self._set_state("cancelled", message)
        return Finished(self.journal.job_id, "cancelled", message)

    def _set_state(self, state: str, message: str = "", **fields: object) -> None:
        old = self.journal.status().model_dump(exclude={"updated"})
        self.journal.set_status(Status.model_validate({**old, "state": state, "message": message, **fields}))


class TrainingFailed(BianlianError):
    """The run broke off; its journal says the same."""

    code = "training_failed"


def _explain(error: Exception, job_id: str) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, BianlianError):
        return error.message
    if "out of memory" in reason.lower() or isinstance(error, MemoryError):
        return (
            f"out of memory ({reason}). Start again with a smaller --batch-size or --max-length, "
            "or go on after freeing memory"
        )
    again = f"go on with: bianlian train --resume {job_id}"
    if isinstance(error, OSError):
        return f"{reason}. Free space or mend permissions, then {again}"
    return f"{type(error).__name__}: {reason}. Checkpoints are kept; {again}"


@contextmanager
def _interrupts_set(event: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `event`, so that a run can finish its step; a second Ctrl-C breaks off at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only; whoever owns it cancels another way
        return

    def ask(signum: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
