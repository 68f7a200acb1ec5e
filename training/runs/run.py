"""One run, from a data file to a published adapter. Everything on the way is recorded in the run's journal.

A run is refused before it leaves anything behind, or it ends in one of four states: succeeded with a version in
the store, paused or cancelled with a checkpoint to go on from, or failed with a message that says the way out.
`training/runs/job.py` is the process that the queue starts for one."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from adapters.base_model import BaseModel, load_base
from adapters.lending import BaseLost, Loan
from adapters.manifest import AdapterVersion, TrainingRecord, check_name
from adapters.settings import Device
from adapters.snapshots import RunSnapshots, Series
from adapters.workspace import replace_file
from training.combinations import check_combinations
from training.config import Plan, TrainConfig, max_length_for, plan_for
from training.data.dataset import TrainingRow
from training.data.report import Report
from training.data.sources import absolute
from training.runs.bases import check_free
from training.runs.effect import got_worse, no_effect
from training.runs.failures import TrainingFailed, explain
from training.runs.interrupts import Interrupts
from training.runs.journal import PLAN_FILE, Journal, Metric, RunConfig
from training.runs.publishing import Publisher
from training.runs.run_data import Rows, RunData, check_data, hash_of
from training.runs.snapshots import demo_prompts, is_due, keeps_snapshots
from training.runs.uploads import as_uploaded
from training.runs.yielding import Yielding
from training.trainer import (
    Cancelled,
    Change,
    Evaluation,
    Progress,
    Trained,
    Validation,
    keeps_rows_apart,
    last_checkpoint,
    packed_rows,
    pick_targets,
    train,
    trainable,
)
from training.trainer.adapter import compute_dtype


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
class Warned:
    """Of a result that came as it was asked for, and is of little use."""

    code: str
    message: str


@dataclass(frozen=True)
class Finished:
    job_id: str
    state: str  # succeeded, paused or cancelled
    message: str
    version: AdapterVersion | None = None  # of adapters
    base: Path | None = None  # of method full
    record: TrainingRecord | None = None
    before: Evaluation | None = None  # of the held-out rows, where there are any
    after: Evaluation | None = None
    warning: str | None = None  # of a run that has changed nothing, or for the worse


@dataclass
class Watcher:
    """Whoever looks on; each function is called in the run's own thread."""

    on_stage: Callable[[str], None] = lambda stage: None
    on_start: Callable[[Started], None] = lambda started: None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None


def start_run(config: TrainConfig, root: Path, *, device: Device = "auto", watcher: Watcher | None = None) -> Finished:
    """Train `config` and publish the adapter, or with method full the base. Blocks until the run is over; Ctrl-C
    cancels it at the next step.

    Raises Invalid, NotFound or Conflict, with no run left on disk, when data, name or base will not do."""
    watcher = watcher or Watcher()
    check_name(config.name)
    check_combinations(config)
    keeps_snapshots(config)
    check_free(root, config)
    config = absolute(config)
    watcher.on_stage("reading data")
    data = check_data(config)
    watcher.on_stage("loading base")
    base = _load(config, device, root)
    journal = Journal.create(
        root / "runs",
        RunConfig(train=config, data_sha256=hash_of(config), base_fingerprint=base.fingerprint),
        state="running",
    )
    return _Run(journal, watcher).execute(lambda: (data, base))


def resume_run(job_id: str, root: Path, *, device: Device = "auto", watcher: Watcher | None = None) -> Finished:
    """Go on with a cancelled, failed or killed run from its last checkpoint, to the same end as without the break.

    Raises NotFound for an unknown run, Conflict when it is running, has succeeded, or its data or base changed."""
    watcher = watcher or Watcher()
    journal = Journal.open(root / "runs", job_id)
    data, base = _prepare(journal, device, watcher.on_stage)
    return _Run(journal, watcher).execute(lambda: (data, base))


def run_job(directory: Path, *, device: Device = "auto", watcher: Watcher | None = None) -> Finished:
    """Run what waits in `directory`, to the end or from its last checkpoint on. Nobody may be looking: whatever is
    wrong with data or base fails the run and is in its status. Raises Conflict when another process runs it."""
    journal = Journal(directory)
    run = _Run(journal, watcher or Watcher())

    def prepare() -> tuple[RunData, BaseModel]:
        check_free(journal.root, run.config)  # somebody else may have taken the name while it waited
        return _prepare(journal, device, run.enter)

    return run.execute(prepare)


def _prepare(journal: Journal, device: Device, on_stage: Callable[[str], None]) -> tuple[RunData, BaseModel]:
    """What the run needs, the same as when it began if it has."""
    asked = journal.config()
    check_combinations(asked.train)
    on_stage("reading data")
    data = check_data(asked.train)
    digest = hash_of(asked.train)
    journal.settle(digest)
    on_stage("loading base")
    base = _load(asked.train, device, journal.root)
    journal.settle(digest, base.fingerprint)
    return data, base


def _load(config: TrainConfig, device: Device, root: Path) -> BaseModel:
    base = load_base(
        config.base,
        device=device,
        dtype="float32" if config.method == "full" else "auto",
        quantize="4bit" if config.method == "qlora" else "none",
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
    def __init__(self, journal: Journal, watcher: Watcher):
        self.journal = journal
        self.root = journal.root
        self.watcher = watcher
        self.config = journal.config().train
        self.interrupts = Interrupts()
        self.data: RunData
        self.base: BaseModel
        self.tokens_per_epoch = 0
        self.snapshots = RunSnapshots(journal.directory)
        self.yielding = Yielding(self.root, self._is_to_stop)
        self.paused_s = 0.0  # until the last step

    def execute(self, prepare: Callable[[], tuple[RunData, BaseModel]]) -> Finished:
        self.journal.begin()
        try:
            with self.interrupts.noted(), self.journal.beating():
                self.data, self.base = prepare()
                if self._asked_to_stop():
                    raise Cancelled
                return self._train_and_publish()
        except (Cancelled, KeyboardInterrupt):
            return self._stopped()
        except Exception as error:
            discard_partial(self.journal)  # also makes room, should the disk be full
            failure = explain(error, self.journal.job_id)
            failure.message = as_uploaded(self.journal.directory, failure.message)
            self.journal.note(failure.message, level="error", data={"code": failure.code})
            self._set_state(
                "failed",
                failure.message,
                code=failure.code,
                param=failure.param,
                finished=datetime.now(UTC),
            )
            if failure is error:
                raise
            raise failure from error
        finally:
            self.yielding.end()
            if self._loan:
                self._loan.close()

    def enter(self, stage: str) -> None:
        self.journal.note(stage)
        self.watcher.on_stage(stage)

    @property
    def _loan(self) -> Loan | None:
        """Of the base, while a server lends it; it may not be there yet."""
        return self.base.loan if hasattr(self, "base") else None

    def _asked_to_stop(self) -> bool:
        return self.interrupts.signal is not None or self.journal.wish() is not None

    def _train_and_publish(self) -> Finished:
        training, validation = self.data.parts(self.config)
        self.tokens_per_epoch = sum(row.num_tokens for row in training)
        plan = self._plan(training)
        model = trainable(self.base, self.config, plan)
        discard_partial(self.journal)
        checkpoint = last_checkpoint(self.journal.checkpoints)
        change = Change(model, training, **self._scoring())
        measured = self._validation(model, validation, plan)
        before = self._before(model, measured)
        self.journal.rewind(checkpoint[1] if checkpoint else 0)
        self._begin_snapshots(checkpoint[1] if checkpoint else 0)
        resumed = f", resumed at step {checkpoint[1]}" if checkpoint else ""
        self.journal.note(
            f"training on {len(training)} rows, {len(validation)} for validation{resumed}",
            data={"learning_rate": plan.learning_rate, "batch_size": plan.batch_size, "seed": self.config.seed},
        )
        self.watcher.on_start(
            Started(
                job_id=self.journal.job_id,
                directory=self.journal.directory,
                report=self.data.report,
                plan=plan,
                rows=len(training),
                validation_rows=len(validation),
                resumed_at=checkpoint[1] if checkpoint else 0,
                base_val_loss=before.loss if before else None,
            )
        )
        trained = train(
            self.base,
            model,
            training,
            self.config,
            plan,
            self.journal.checkpoints,
            validation=measured,
            resume_from=checkpoint[0] if checkpoint else None,
            on_step=partial(self._record, model, len(training), before),
            on_evaluation=self._record_evaluation,
            cancelled=self._is_to_stop,
            step_back=self.yielding.step_back,
        )
        self._require_base()
        if not trained.finished:
            raise Cancelled
        self.enter("validating")
        after = self._after(model, measured, trained)
        warning = self._warning(change.measure(model), plan, trained, change.learned_tokens, before, after)
        record = self._training_record(trained, len(training), before, after)
        finished = self._publish(model, record, before, after, warning)
        shutil.rmtree(self.journal.checkpoints, ignore_errors=True)
        return finished

    def _warning(
        self,
        moved: float,
        plan: Plan,
        trained: Trained,
        learned_tokens: float,
        before: Evaluation | None,
        after: Evaluation | None,
    ) -> Warned | None:
        """What is wrong with the result, if anything is."""
        nothing = no_effect(
            moved,
            self.config,
            plan,
            hidden_size=self._hidden_size,
            steps=trained.steps,
            learned_tokens=learned_tokens,
        )
        if nothing:
            return Warned("no_effect", nothing)
        worse = got_worse(before, after, self.config, plan)
        return Warned("got_worse", worse) if worse else None

    def _plan(self, training: Rows) -> Plan:
        """Written down, so that a run can be explained later."""
        plain = [row for row in training if isinstance(row, TrainingRow)]
        packs = self.config.packing or self.config.objective == "pretrain"
        plan = plan_for(
            self.config,
            hidden_size=self._hidden_size,
            max_model_len=self.base.max_model_len,
            rows=len(training),
            packed_rows=(
                packed_rows(plain, max_length_for(self.config, self.base.max_model_len))
                if packs and keeps_rows_apart(self.base)
                else None
            ),
            on_cuda=self.base.device.type == "cuda",
        )
        values = {name: value for name, value in vars(plan).items() if name != "reasons"}
        document = {"format": 1, "values": values, "reasons": dict(plan.reasons)}
        replace_file(self.journal.directory / PLAN_FILE, json.dumps(document, indent=2) + "\n")
        return plan

    def _validation(self, model: Any, rows: Rows, plan: Plan) -> Validation | None:
        if not rows:
            return None
        if not self.journal.metric("base_validation"):
            self.enter("validating base")
        return Validation(model, rows, objective=self.config.objective, beta=plan.beta, **self._scoring())

    def _scoring(self) -> dict[str, Any]:
        """How rows are scored."""
        tokenizer = self.base.tokenizer
        return {
            "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            "compute_in": compute_dtype(self.base, self.config),
            "cancelled": self._stop_or_step_back,
        }

    @property
    def _hidden_size(self) -> int:
        return int(self.base.model.config.get_text_config().hidden_size)

    def _before(self, model: Any, validation: Validation | None) -> Evaluation | None:
        """Of the base: what is trained adds nothing yet. Measured once a run."""
        if validation is None:
            return None
        if known := self.journal.metric("base_validation"):
            return _evaluation(known)
        evaluation = validation.measure(model, self._stop_or_step_back)
        self._append("base_validation", 0, evaluation)
        return evaluation

    def _after(self, model: Any, validation: Validation | None, trained: Trained) -> Evaluation | None:
        """Of the weights that are published; most often they were measured when they were the newest."""
        if validation is None:
            return None
        step = trained.best_step or trained.steps
        known = [metric for metric in self.journal.metrics() if metric.kind == "validation" and metric.step == step]
        evaluation = _evaluation(known[-1]) if known else validation.measure(model, self._stop_or_step_back)
        self._append("tuned_validation", step, evaluation)
        return evaluation

    def _record_evaluation(self, step: int, evaluation: Evaluation) -> None:
        self._append("validation", step, evaluation)
        self.watcher.on_evaluation(step, evaluation)

    def _append(self, kind: str, step: int, evaluation: Evaluation) -> None:
        if not math.isfinite(evaluation.loss):
            raise self._diverged(f"the validation loss is {evaluation.loss} at step {step}")
        self.journal.append(Metric.model_validate({"kind": kind, "step": step, **vars(evaluation)}))
        self.journal.note(
            f"Step {step}: {kind.replace('_', ' ')} loss={evaluation.loss:.4f}",
            type="metrics",
            data={"step": step, "valid_loss": evaluation.loss, **_of_preferences(evaluation)},
        )

    def _stop_or_step_back(self) -> bool:
        """Between two batches of a validation: whether it is to stop, after the server has had its turn."""
        self.yielding.step_back()
        self._require_base()
        return self._asked_to_stop()

    def _is_to_stop(self) -> bool:
        return self._asked_to_stop() or self._loan is not None and self._loan.lost.is_set()

    def _require_base(self) -> None:
        if self._loan and self._loan.lost.is_set():
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
            system_prompt=self.data.report.system_prompt,
            prompts=demo_prompts(self.config),
        )
        self.snapshots.begin(series, at_step)

    def _record(self, model: Any, rows: int, before: Evaluation | None, progress: Progress) -> None:
        if not math.isfinite(progress.loss):
            raise self._diverged(f"the loss is {progress.loss} at step {progress.step}", progress.learning_rate)
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
                reward_margin=progress.reward_margin,
                reward_accuracy=progress.reward_accuracy,
            )
        )
        self.journal.note(
            f"Step {progress.step}/{progress.steps}: training loss={progress.loss:.4f}",
            type="metrics",
            data={
                "step": progress.step,
                "total_steps": progress.steps,
                "train_loss": progress.loss,
                **_of_preferences(progress),
            },
        )
        self._set_state(
            "running",
            step=progress.step,
            steps=progress.steps,
            trained_tokens=round(self.tokens_per_epoch * progress.epoch),
            estimated_finish=datetime.now(UTC) + timedelta(seconds=progress.remaining_s),
        )
        if keeps_snapshots(self.config) and is_due(progress.step, progress.steps, self.config.snapshot_steps):
            so_far = Trained(progress.step, progress.epoch, progress.loss, finished=False)
            record = self._training_record(so_far, rows, before, None)
            self.snapshots.add(progress.step, partial(self._publisher.write_adapter, model, record))
        self.watcher.on_step(progress)

    def _diverged(self, what: str, learning_rate: float | None = None) -> "TrainingFailed":
        was = f" (it was {learning_rate:.2g})" if learning_rate else ""
        return TrainingFailed(
            f"training diverged: {what}. Start again with a smaller --learning-rate{was}",
            code="diverged",
            param="learning_rate",
        )

    def _training_record(
        self, trained: Trained, rows: int, before: Evaluation | None, after: Evaluation | None
    ) -> TrainingRecord:
        losses = [metric.loss for metric in self.journal.metrics() if metric.kind == "step"]
        return TrainingRecord(
            data_sha256=self.journal.config().data_sha256 or hash_of(self.config),
            rows=rows,
            epochs=trained.epochs,
            steps=trained.steps,
            train_loss=sum(losses) / len(losses) if losses else None,
            base_val_loss=before.loss if before else None,
            tuned_val_loss=after.loss if after else None,
            seed=self.config.seed,
        )

    def _publish(
        self,
        model: Any,
        record: TrainingRecord,
        before: Evaluation | None,
        after: Evaluation | None,
        warning: Warned | None,
    ) -> Finished:
        self.enter("publishing")
        published = self._publisher.publish(model, record, self.root, self.journal.directory / "adapter")
        if warning:
            self.journal.note(warning.message, level="warn", data={"code": warning.code})
        self.journal.note(published.message, data=published.data)
        self._set_state(
            "succeeded",
            f"{published.message}; but {warning.message}" if warning else published.message,
            version=published.name,
            finished=datetime.now(UTC),
            trained_tokens=round(self.tokens_per_epoch * record.epochs),
        )
        return Finished(
            self.journal.job_id,
            "succeeded",
            published.message,
            published.version,
            published.base,
            record,
            before,
            after,
            warning.message if warning else None,
        )

    @property
    def _publisher(self) -> Publisher:
        return Publisher(self.config, self.base, self.data.report)

    def _stopped(self) -> Finished:
        """Paused by a wish or SIGTERM, as when the machine is shut down; cancelled by a wish or Ctrl-C."""
        wish = self.journal.wish() or ("pause" if self.interrupts.signal == signal.SIGTERM else "cancel")
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


def _of_preferences(measured: Evaluation | Progress) -> dict[str, float]:
    """What only preferences have, as far as it was measured."""
    names = ("margin", "reward_margin", "reward_accuracy")
    return {name: value for name in names if (value := getattr(measured, name, None)) is not None}


def _evaluation(metric: Metric) -> Evaluation:
    return Evaluation(metric.loss, metric.margin, metric.reward_margin, metric.reward_accuracy)
