"""Runs, their events and snapshots as the objects of OpenAI's fine-tuning API, declared for /openapi.json too."""

import logging
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from adapters.errors import Invalid
from adapters.snapshots import RunSnapshots
from training.jobs.fine_tuning import FineTuningRequest, Method, read_request
from training.jobs.queue import RESUMABLE, Job
from training.jobs.result_files import of_preferences
from training.runs.journal import Event, Metric, State

log = logging.getLogger(__name__)

ORGANIZATION = "bianlian"

JobState = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="allow")


class JobError(_Declared):
    code: str
    message: str
    param: str | None


class JobObject(_Declared):
    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    status: JobState
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    seed: int
    estimated_finish: int | None
    method: dict[str, Any]
    metadata: dict[str, str] | None


class JobList(_Declared):
    object: Literal["list"]
    data: list[JobObject]
    has_more: bool


class EventObject(_Declared):
    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class EventList(_Declared):
    object: Literal["list"]
    data: list[EventObject]
    has_more: bool


class CheckpointObject(_Declared):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


class CheckpointList(_Declared):
    object: Literal["list"]
    data: list[CheckpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def job_object(job: Job, result_files: list[str]) -> dict[str, Any]:
    """`bianlian` in it is ours: where the run is, and the exact version it became. Method full makes a base, which no
    request can ask for before it is served: `fine_tuned_model` is None then, `base` its name, and the message says how
    to serve it."""
    status, config = job.status, job.config.train
    request = read_request(job.journal) or _request_of(job)
    hyperparameters = _hyperparameters(request)
    over = status.state == "succeeded"
    full = config.method == "full"
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.config.created.timestamp()),
        "error": _error(job),
        "fine_tuned_model": config.name if over and not full else None,
        "finished_at": _seconds(status.finished),
        "hyperparameters": {name: value for name, value in hyperparameters.items() if name != "beta"},
        "model": request.model,
        "organization_id": ORGANIZATION,
        "result_files": result_files,
        "status": _state(status.state),
        "trained_tokens": status.trained_tokens if over else None,
        "training_file": request.training_file,
        "validation_file": request.validation_file,
        "integrations": [],
        "seed": config.seed,
        "estimated_finish": _seconds(status.estimated_finish),
        "method": {"type": request.kind, request.kind: {"hyperparameters": hyperparameters}},
        "metadata": request.metadata,
        "bianlian": {
            "message": status.message,
            "step": status.step,
            "steps": status.steps,
            "trained_tokens": status.trained_tokens,
            "version": None if full else status.version,
            "base": config.name if over and full else None,
            # What its files lack they lack again.
            "resumable": status.state in RESUMABLE and not (status.code or "").startswith("invalid_"),
            **request.bianlian,
        },
    }


def event_object(number: int, event: Event) -> dict[str, Any]:
    """`number` is the event's place in the run, for ever."""
    return {
        "id": event_id(number),
        "object": "fine_tuning.job.event",
        "created_at": int(event.time),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def event_id(number: int) -> str:
    return f"ftevent-{number}"


def checkpoint_objects(job: Job) -> list[dict[str, Any]]:
    """What can be asked for as a model, the newest first: the published version, and the run's snapshots, each
    `<run>:step-<n>`. None of method full."""
    try:
        metrics = job.journal.metrics()
    except Invalid as error:  # damaged; the snapshots can be asked for all the same
        log.warning("%s", error)
        metrics = []
    models: list[tuple[int, float, str]] = []
    for snapshot in RunSnapshots(job.journal.directory).all():
        with suppress(OSError):  # thinned out a moment ago
            models.append((snapshot.step, snapshot.directory.stat().st_mtime, str(snapshot)))
    if job.status.version and job.status.finished and job.config.train.method != "full":
        published = next((metric.step for metric in metrics if metric.kind == "tuned_validation"), job.status.step)
        models.append((published, job.status.finished.timestamp(), job.status.version))
    return [
        {
            "id": f"ftckpt-{job.id}-{model.rpartition('@')[2] if '@' in model else f'step-{step}'}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(made),
            "fine_tuned_model_checkpoint": model,
            "fine_tuning_job_id": job.id,
            "metrics": _metrics_at(step, metrics),
            "step_number": step,
        }
        for step, made, model in sorted(models, reverse=True)
    ]


def _metrics_at(step: int, metrics: list[Metric]) -> dict[str, float]:
    here = [metric for metric in metrics if metric.step == step]
    found = {"step": float(step)}
    for metric in here:
        if metric.kind == "step":
            found["train_loss"] = metric.loss
            found |= of_preferences(metric, "train_")
        elif metric.kind.endswith("validation"):
            found["valid_loss"] = found["full_valid_loss"] = metric.loss  # all of the validation rows, always
            found |= of_preferences(metric, "valid_")
    return found


def _request_of(job: Job) -> FineTuningRequest:
    """A run from the command line in the API's words."""
    config = job.config.train
    kind: Literal["supervised", "dpo"] = "dpo" if config.objective in ("dpo", "kto", "orpo") else "supervised"
    return FineTuningRequest(
        model=config.base.rstrip("/").rpartition("/")[2],
        training_file=", ".join(path.name for path in config.data),
        validation_file=", ".join(path.name for path in config.validation_data) or None,
        method=Method(type=kind),
    )


def _hyperparameters(request: FineTuningRequest) -> dict[str, Any]:
    """As they were asked for."""
    given = {"n_epochs": None, "batch_size": None, "learning_rate_multiplier": None}
    given |= {"beta": None} if request.kind == "dpo" else {}
    return {name: "auto" if value is None else value for name, value in {**given, **dict(request.chosen)}.items()}


def _error(job: Job) -> dict[str, Any] | None:
    if job.status.state != "failed":
        return None
    return {"code": job.status.code or "training_failed", "message": job.status.message, "param": job.status.param}


def _state(state: State) -> JobState:
    return "validating_files" if state == "validating" else state


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
