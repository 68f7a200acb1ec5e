"""A run directory: what a run was asked to do, what it is doing, and what it measured.

`config.json` is written once; `status.json` is replaced whole, so a reader never sees half of it; `metrics.jsonl`
grows by a line at a time. No torch here: other processes read journals while a run writes one."""

import os
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.errors import Conflict, Invalid, NotFound, nearest
from training.config import TrainConfig

Model = TypeVar("Model", bound=BaseModel)

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINISHED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})

CONFIG_FILE = "config.json"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"


class RunConfig(BaseModel):
    """Format 1 of `config.json`: the request, and what it was asked of. A resumed run must find both unchanged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    train: TrainConfig
    data_sha256: str
    base_fingerprint: str


class Status(BaseModel):
    """Format 1 of `status.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    state: State
    message: str = ""
    pid: int | None = None  # of the process that runs it
    step: int = 0
    steps: int = 0
    version: str | None = None  # what it was published as
    updated: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Metric(BaseModel):
    """One line of `metrics.jsonl`. A training step has a loss, an evaluation a validation loss; both in nats a
    learned token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["step", "base_validation", "tuned_validation"]
    step: int
    loss: float
    epoch: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    paused_s: float | None = None  # of the step's time, for a server's answers
    time: float = Field(default_factory=time.time)


class Journal:
    """One run directory. One process writes, any number read."""

    def __init__(self, directory: Path):
        self.directory = directory

    @property
    def job_id(self) -> str:
        return self.directory.name

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """Where `step-000040/` and the like are: the adapter alone, as it was after that step."""
        return self.directory / "snapshots"

    @classmethod
    def create(cls, runs: Path, config: RunConfig) -> "Journal":
        """A new run directory under `runs`, in state queued."""
        now = datetime.now(UTC)
        journal = cls(runs / f"{config.train.name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
        journal.directory.mkdir(parents=True)
        _replace(journal.directory / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")
        journal.set_status(Status(state="queued"))
        return journal

    @classmethod
    def open(cls, runs: Path, job_id: str) -> "Journal":
        """An existing run. Raises NotFound."""
        if Path(job_id).name != job_id or not (runs / job_id / CONFIG_FILE).is_file():
            known = [path.parent.name for path in runs.glob(f"*/{CONFIG_FILE}")]
            raise NotFound(f"no run '{job_id}' under {runs}{nearest(job_id, known)}", param="resume")
        return cls(runs / job_id)

    def config(self) -> RunConfig:
        return self._read(CONFIG_FILE, RunConfig)

    def status(self) -> Status:
        return self._read(STATUS_FILE, Status)

    def set_status(self, status: Status) -> None:
        _replace(self.directory / STATUS_FILE, status.model_dump_json(indent=2) + "\n")

    def begin(self) -> None:
        """Mark the run as running in this process. Conflict when it has succeeded, or another process runs it."""
        status = self.status()
        if status.state == "succeeded":
            raise Conflict(
                f"run {self.job_id} has succeeded already, as {status.version}; start a new one", param="resume"
            )
        if status.state == "running" and status.pid not in (None, os.getpid()) and _alive(status.pid):
            raise Conflict(f"run {self.job_id} is running in process {status.pid}", param="resume")
        self.set_status(Status(state="running", pid=os.getpid(), step=status.step, steps=status.steps))

    def append(self, metric: Metric) -> None:
        with (self.directory / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(metric.model_dump_json(exclude_none=True) + "\n")

    def metrics(self) -> list[Metric]:
        return [Metric.model_validate_json(line) for line in self._metric_lines()]

    def metric(self, kind: str) -> Metric | None:
        """The last metric of `kind`."""
        return next((metric for metric in reversed(self.metrics()) if metric.kind == kind), None)

    def rewind(self, step: int) -> None:
        """Forget the metrics after `step`: the run goes on from its checkpoint there."""
        kept = [metric.model_dump_json(exclude_none=True) + "\n" for metric in self.metrics() if metric.step <= step]
        _replace(self.directory / METRICS_FILE, "".join(kept))

    def tail(self, poll_s: float = 0.5) -> Iterator[Metric]:
        """All metrics so far, then new ones as they come. Blocks between them; ends when the run does."""
        seen = 0
        while True:
            finished = self.status().state in FINISHED
            metrics = self.metrics()
            yield from metrics[min(seen, len(metrics)) :]
            seen = len(metrics)
            if finished:
                return
            time.sleep(poll_s)

    def _metric_lines(self) -> list[str]:
        """Whole lines only: the last may still be on its way."""
        try:
            text = (self.directory / METRICS_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()

    def _read(self, name: str, model: type[Model]) -> Model:
        path = self.directory / name
        try:
            return model.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"{path} is missing; is this a run directory?") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise Invalid(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
