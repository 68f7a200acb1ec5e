"""A run directory: what a run was asked to do, what it is doing, and what it measured.

`config.json` is written once, and completed when the run first begins; `status.json` is replaced whole, so a reader
never sees half of it; `metrics.jsonl` and `events.jsonl` grow by a line at a time. No torch here: other processes read
journals while a run writes one, and leave their wishes in them."""

import errno
import fcntl
import os
import platform
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.errors import Conflict, Invalid, NotFound, nearest, needing_room
from adapters.regular import read_regular
from adapters.workspace import replace_file
from training.config import TrainConfig

Model = TypeVar("Model", bound=BaseModel)

State = Literal["validating", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
FINISHED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
Wish = Literal["pause", "cancel"]  # what others ask of a running run; it looks after every step

CONFIG_FILE = "config.json"
STATUS_FILE = "status.json"
PLAN_FILE = "plan.json"  # the numbers it trains with, and why
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
HEARTBEAT_FILE = "heartbeat"
WISH_FILE = "wish"
LOCK_FILE = "lock"

HEARTBEAT_S = 1.0
SILENT_S = 60.0  # without a heartbeat for this long, a run on a machine that cannot be asked counts as dead
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SAME_START_S = 2.0  # the system's clock may be set between two looks at when a process started


class RunConfig(BaseModel):
    """Format 1 of `config.json`: the request, and what it was asked of. A resumed run must find both unchanged.
    A run that waits in the queue has not looked yet: None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    train: TrainConfig
    data_sha256: str | None = None
    base_fingerprint: str | None = None
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))


def told(state: State) -> str:
    """As a sentence about a run goes on: "has succeeded", "is queued"."""
    return f"has {state}" if state in ("succeeded", "failed") else f"is {state}"


class Process(BaseModel):
    """A process, told apart from a later one that was given the same number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int = Field(gt=0)
    started: float  # seconds since 1970
    host: str

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Raises psutil.NoSuchProcess."""
        return cls(pid=pid, started=psutil.Process(pid).create_time(), host=platform.node())

    @property
    def here(self) -> bool:
        return self.host == platform.node()

    @property
    def mine(self) -> bool:
        return self.here and self.pid == os.getpid() and self.alive

    @property
    def alive(self) -> bool:
        """Only to be asked on its own machine. A process that has ended and is not waited for is dead."""
        try:
            found = psutil.Process(self.pid)
            if abs(found.create_time() - self.started) > _SAME_START_S:
                return False
            return bool(found.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> None:
        """End it at once, if it is on this machine and alive."""
        if self.here and self.alive:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, signal.SIGKILL)


class Status(BaseModel):
    """Format 1 of `status.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    state: State
    message: str = ""
    code: str | None = None  # of a failure, for programs
    param: str | None = None  # what a failure is about
    process: Process | None = None  # which runs it, or ran it last
    step: int = 0
    steps: int = 0
    trained_tokens: int = 0
    started: datetime | None = None
    finished: datetime | None = None
    estimated_finish: datetime | None = None
    version: str | None = None  # what it was published as
    updated: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def runs_somewhere(self) -> "Status":
        if self.state == "running" and self.process is None:
            raise ValueError("a running run has a process")
        return self

    def changed(self, **fields: Any) -> "Status":
        """The same but for `fields` and the time. A run that stands still has no end to be estimated."""
        still = {} if fields.get("state", self.state) == "running" else {"estimated_finish": None}
        return Status.model_validate({**dict(self), **still, "updated": datetime.now(UTC), **fields})


class Metric(BaseModel):
    """One line of `metrics.jsonl`. A training step has a loss, an evaluation a validation loss; both in nats a
    learned token, or of preferences their objective's loss. `validation` is an evaluation between steps, the other two
    are before the first and of what is published. Margins and accuracy are of preferences, as `Evaluation` has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["step", "base_validation", "validation", "tuned_validation"]
    step: int
    loss: float
    epoch: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    margin: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    paused_s: float | None = None  # of the step's time, for a server's answers
    time: float = Field(default_factory=time.time)


class Event(BaseModel):
    """One line of `events.jsonl`: what happened, for people, with `data` for programs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics"] = "message"
    message: str
    data: dict[str, Any] = {}
    time: float = Field(default_factory=time.time)


class Journal:
    """One run directory. One process runs it; others read, and change its status only by `update` or when it is
    `locked`."""

    def __init__(self, directory: Path):
        self.directory = directory

    @property
    def job_id(self) -> str:
        return self.directory.name

    @property
    def root(self) -> Path:
        """The home that the run belongs to."""
        return self.directory.parent.parent

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """Where `step-000040/` and the like are: the adapter alone, as it was after that step."""
        return self.directory / "snapshots"

    @classmethod
    def create(cls, runs: Path, config: RunConfig, *, job_id: str | None = None, state: State = "queued") -> "Journal":
        """A new run directory under `runs`; "running" means by this process, and no queue takes it. With a `job_id` of
        `new_job_id`, its directory may hold files already; it is nobody's run before this. InsufficientStorage leaves
        no directory."""
        journal = cls(runs / (job_id or new_job_id(config.train.name)))
        with needing_room():
            journal.directory.mkdir(parents=True, exist_ok=job_id is not None)
        try:
            replace_file(journal.directory / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")
            journal.set_status(Status(state=state, process=Process.of(os.getpid()) if state == "running" else None))
        except BaseException:
            shutil.rmtree(journal.directory, ignore_errors=True)
            raise
        return journal

    @classmethod
    def open(cls, runs: Path, job_id: str) -> "Journal":
        """An existing run. Raises NotFound."""
        if not _JOB_ID.fullmatch(job_id) or not (runs / job_id / CONFIG_FILE).is_file():
            known = [path.parent.name for path in runs.glob(f"*/{CONFIG_FILE}")]
            shown = job_id.encode("ascii", "backslashreplace").decode()[:80]
            raise NotFound(f"there is no run '{shown}'{nearest(shown, known)}", param="job_id", code="job_not_found")
        return cls(runs / job_id)

    def config(self) -> RunConfig:
        return self._read(CONFIG_FILE, RunConfig)

    def status(self) -> Status:
        return self._read(STATUS_FILE, Status)

    def set_status(self, status: Status) -> None:
        """InsufficientStorage leaves the old one."""
        replace_file(self.directory / STATUS_FILE, status.model_dump_json(indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the status meanwhile. Not to be nested. The lock goes with the process that has it."""
        try:
            with needing_room():
                descriptor = os.open(self.directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            raise NotFound(f"run {self.job_id} was deleted", param="job_id", code="job_not_found") from None
        except OSError as error:
            raise _damaged(self.directory / LOCK_FILE, error) from error
        with open(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def update(self, *, only: Collection[State] = STATES, **fields: Any) -> Status:
        """Change `fields` of the status and nothing else, at once for everybody. Conflict when its state is not one of
        `only`."""
        with self.locked():
            status = self.status()
            if status.state not in only:
                raise Conflict(f"run {self.job_id} {told(status.state)}, and is not {' or '.join(only)}")
            status = status.changed(**fields)
            self.set_status(status)
        return status

    def settle(self, data_sha256: str, base_fingerprint: str | None = None) -> None:
        """Note what the run is asked of, as far as it is known. Conflict when it began with something else."""
        config = self.config()
        if config.data_sha256 not in (None, data_sha256):
            raise Conflict(f"the data of run {self.job_id} has changed since it began; start a new run", param="resume")
        if base_fingerprint and config.base_fingerprint not in (None, base_fingerprint):
            raise Conflict(
                f"base '{config.train.base}' is not the one run {self.job_id} began with; start a new run",
                param="resume",
            )
        settled = config.model_copy(
            update={"data_sha256": data_sha256, "base_fingerprint": base_fingerprint or config.base_fingerprint}
        )
        if settled != config:
            replace_file(self.directory / CONFIG_FILE, settled.model_dump_json(indent=2) + "\n")

    def begin(self) -> None:
        """Mark the run as running in this process. Conflict when it has succeeded, or another process runs it."""
        with self.locked():
            status = self.status()
            if status.state == "succeeded":
                raise Conflict(
                    f"run {self.job_id} has succeeded already, as {status.version}; start a new one", param="resume"
                )
            handed_over = status.state == "running" and status.process is not None and status.process.mine
            if status.state == "running" and not handed_over and self.is_alive(status):
                assert status.process is not None
                raise Conflict(f"run {self.job_id} is running in process {status.process.pid}", param="resume")
            if not handed_over:  # else there may be a wish already, about this very start
                self.forget_wish()
            self.beat()
            self.set_status(
                Status(
                    state="running",
                    process=Process.of(os.getpid()),
                    started=status.started or datetime.now(UTC),
                    step=status.step,
                    steps=status.steps,
                    trained_tokens=status.trained_tokens,
                )
            )

    def is_alive(self, status: Status) -> bool:
        """Whether the process of a running run is. On another machine only its heartbeat tells."""
        if status.process is None:
            return False
        if status.process.here:
            return status.process.alive
        # A beat from the future says nothing: whoever is alive beats anew, with the time that it is now.
        return abs(time.time() - self.last_beat()) < SILENT_S

    def beat(self) -> None:
        (self.directory / HEARTBEAT_FILE).touch()

    def last_beat(self) -> float:
        """When the run's process was last heard of, in seconds since 1970; 0 if never."""
        try:
            return (self.directory / HEARTBEAT_FILE).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beats every second, whatever this process is doing."""
        ended = threading.Event()

        def keep_beating() -> None:
            while not ended.wait(HEARTBEAT_S):
                self.beat()

        thread = threading.Thread(target=keep_beating, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def ask(self, wish: Wish) -> None:
        """Ask the running run to stop after its step; the last wish counts."""
        replace_file(self.directory / WISH_FILE, wish)

    def wish(self) -> Wish | None:
        try:
            return "pause" if read_regular(self.directory / WISH_FILE) == b"pause" else "cancel"
        except OSError:  # mostly: there is none
            return None

    def forget_wish(self) -> None:
        (self.directory / WISH_FILE).unlink(missing_ok=True)

    def note(self, message: str, **fields: Any) -> None:
        """Add an event."""
        self._add_line(EVENTS_FILE, Event(message=message, **fields).model_dump_json())

    def events(self, skip: int = 0) -> list[Event]:
        """All but the first `skip`, oldest first. An event keeps its place for ever."""
        return [_event(line) for line in self._lines(EVENTS_FILE)[skip:]]

    def remove(self) -> None:
        """Delete the directory: at once for everybody who looks; the files themselves go after that."""
        gone = self.directory.with_name(f".removed-{secrets.token_hex(8)}")
        self.directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def append(self, metric: Metric) -> None:
        self._add_line(METRICS_FILE, metric.model_dump_json(exclude_none=True))

    def metrics(self) -> list[Metric]:
        """Lines that a full disk cut short are passed over."""
        return [metric for line in self._lines(METRICS_FILE) if (metric := _metric(line))]

    def metric(self, kind: str) -> Metric | None:
        """The last metric of `kind`."""
        return next((metric for metric in reversed(self.metrics()) if metric.kind == kind), None)

    def rewind(self, step: int) -> None:
        """Forget the metrics after `step`: the run goes on from its checkpoint there."""
        kept = [metric.model_dump_json(exclude_none=True) + "\n" for metric in self.metrics() if metric.step <= step]
        replace_file(self.directory / METRICS_FILE, "".join(kept))

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

    def _add_line(self, name: str, line: str) -> None:
        """In one write, because a queue and a run may both have something to say. A line that a full disk cut short
        (InsufficientStorage) stays alone on its line."""
        with needing_room():
            file = os.open(self.directory / name, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(file).st_size
                cut = b"\n" if size and os.pread(file, 1, size - 1) != b"\n" else b""
                data = cut + line.encode() + b"\n"
                if os.write(file, data) < len(data):
                    raise OSError(errno.ENOSPC, "No space left on device", str(self.directory / name))
            finally:
                os.close(file)

    def _lines(self, name: str) -> list[str]:
        """Whole lines only: the last may still be on its way."""
        try:
            text = read_regular(self.directory / name).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _damaged(self.directory / name, error) from error
        return text[: text.rfind("\n")].split("\n") if "\n" in text else []  # U+2028 ends no line in JSON

    def _read(self, name: str, model: type[Model]) -> Model:
        path = self.directory / name
        try:
            return model.model_validate_json(read_regular(path))
        except FileNotFoundError:
            raise NotFound(f"{path} is missing; is this a run directory?") from None
        except OSError as error:
            raise _damaged(path, error) from error
        except ValidationError as error:
            first = error.errors()[0]
            raise Invalid(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _damaged(path: Path, error: OSError) -> Invalid:
    return Invalid(
        f"run {path.parent.name} is damaged: {path} cannot be read ({error.strerror}); mend it, or delete the run's "
        "directory",
        code="run_damaged",
    )


def _event(line: str) -> Event:
    """One that cannot be read keeps its place."""
    try:
        return Event.model_validate_json(line)
    except ValidationError:
        return Event(level="warn", message="an event that was written only in part", time=0.0)


def _metric(line: str) -> Metric | None:
    try:
        return Metric.model_validate_json(line)
    except ValidationError:
        return None


def new_job_id(name: str) -> str:
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
