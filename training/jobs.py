"""The queue of runs: start the next, notice the dead, carry wishes to the running.

Run directories are all there is: a queue made anew over the same home knows everything the last one knew. Each run is
a process of its own in a session of its own, so that it outlives the server. No torch here."""

import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from adapters.errors import BianlianError, Conflict, Invalid, NotFound
from adapters.settings import Device
from training.config import TrainConfig
from training.journal import FINISHED, STATUS_FILE, Journal, Process, RunConfig, State, Status
from training.nice import be_nice

POLL_S = 0.5
RETRY_S = 10.0
LOG_FILE = "output.log"
STOPPABLE: tuple[State, ...] = ("validating", "queued", "running", "paused")
RESUMABLE: tuple[State, ...] = ("paused", "failed", "cancelled")
_SUPERVISOR_LOCK = ".supervisor"

Check = Callable[[Journal], None]
_Stamp = tuple[int, int]  # inode and time of change in ns of a status
_VALIDATING: tuple[State, ...] = ("validating",)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A run as its directory described it a moment ago."""

    journal: Journal
    config: RunConfig
    status: Status

    @property
    def id(self) -> str:
        return self.journal.job_id

    @property
    def finished(self) -> bool:
        return self.status.state in FINISHED


class JobQueue:
    """The runs under `root`/runs. All methods read or write files and may be called from any thread and process."""

    def __init__(self, root: Path):
        self.root = root
        self.runs = root.absolute() / "runs"
        self._known: dict[Path, tuple[_Stamp, Job]] = {}
        self._unreadable: set[Path] = set()

    def submit(self, config: TrainConfig) -> Job:
        """A new run at the end of the queue."""
        journal = Journal.create(self.runs, RunConfig(train=config))
        journal.note("queued")
        return self.get(journal.job_id)

    def all(self) -> list[Job]:
        """Oldest first. A directory that is no run, or is being deleted, is passed over."""
        found = {path.parent: self._read(path.parent) for path in self.runs.glob(f"*/{STATUS_FILE}")}
        self._known = known = {directory: item for directory, item in found.items() if item}
        return sorted((job for _, job in known.values()), key=lambda job: (job.config.created, job.id))

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        journal = Journal.open(self.runs, job_id)
        return Job(journal, journal.config(), journal.status())

    def cancel(self, job_id: str) -> Job:
        """A run that waits is cancelled at once, a running one after its step, with a checkpoint. Raises NotFound, and
        Conflict for one that is over."""
        return self._stop(job_id, "cancelled")

    def pause(self, job_id: str) -> Job:
        """As `cancel`, to be gone on with: the process ends and its memory is free."""
        return self._stop(job_id, "paused")

    def resume(self, job_id: str) -> Job:
        """Back into the queue, to go on from the last checkpoint; one that never began is checked again. Raises
        NotFound, and Conflict for a run that waits, runs or has succeeded."""
        job = self.get(job_id)
        state = "queued" if job.status.started else "validating"
        job.journal.update(only=RESUMABLE, state=state, message="", code=None, param=None, finished=None)
        job.journal.note("resumed; it goes on from its last checkpoint when its turn comes")
        return self.get(job_id)

    def note_dead(self, jobs: Iterable[Job], exits: dict[int, int] | None = None) -> None:
        """Mark running runs whose process is gone as failed. `exits` has exit codes by process number, as far as they
        are known."""
        for job in jobs:
            if job.status.state != "running" or job.journal.is_alive(job.status):
                continue
            assert job.status.process is not None  # Status sees to it
            message, code = _why_dead(job, (exits or {}).get(job.status.process.pid))
            with job.journal.locked():  # the process may have said more with its last breath
                if job.journal.status() != job.status:
                    continue
                dead = job.status.changed(state="failed", message=message, code=code, finished=datetime.now(UTC))
                job.journal.note(message, level="error", data={"code": code})
                job.journal.set_status(dead)

    def _stop(self, job_id: str, state: State) -> Job:
        job = self.get(job_id)
        self.note_dead([job])
        with job.journal.locked():
            status = job.journal.status()
            if status.state not in STOPPABLE or status.state == state:
                raise Conflict(f"run {job_id} is {status.state} already", code="job_not_running")
            if status.state == "running":
                job.journal.ask("pause" if state == "paused" else "cancel")
                job.journal.note(f"asked to be {state} after this step")
            else:
                finished = datetime.now(UTC) if state == "cancelled" else None
                job.journal.note(f"{state} while it was {status.state}")
                job.journal.set_status(status.changed(state=state, message=state, finished=finished))
        return self.get(job_id)

    def _read(self, directory: Path) -> tuple[_Stamp, Job] | None:
        """Read again only if it has changed: a queue looks twice a second, at every run there ever was."""
        try:
            found = (directory / STATUS_FILE).stat()
            stamp = (found.st_ino, found.st_mtime_ns)
            known = self._known.get(directory)
            if known is None or known[0] != stamp:
                journal = Journal(directory)
                known = (stamp, Job(journal, journal.config(), journal.status()))
            return known
        except (FileNotFoundError, NotFound):
            return None
        except (OSError, BianlianError) as error:
            if directory not in self._unreadable:  # once, and not at every look
                self._unreadable.add(directory)
                log.warning("run %s cannot be read: %s", directory.name, error)
            return None


class Supervisor:
    """Starts queued runs of one home, at most `max_running` at once, those in somebody's terminal counted. One
    supervisor a home works at a time; others wait for its lock, which goes with its process."""

    def __init__(self, queue: JobQueue, *, max_running: int = 1, device: Device = "auto", check: Check | None = None):
        self.queue = queue
        self._max_running = max_running
        self._device = device
        self._check = check or (lambda journal: None)
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    async def watch(self, *, until_empty: bool = False) -> None:
        """Until cancelled or, `until_empty`, until nothing waits or runs."""
        while True:
            try:
                with exclusively(self.queue.runs / _SUPERVISOR_LOCK) as ours:
                    while ours:
                        await asyncio.to_thread(self.step)
                        if until_empty and self._idle():
                            return
                        await asyncio.sleep(POLL_S)
                await asyncio.sleep(POLL_S)
            except Exception:  # a disk that is full or away must not end the queue for good
                log.exception("the queue of runs cannot be looked after; trying again in %g s", RETRY_S)
                await asyncio.sleep(RETRY_S)

    def step(self) -> None:
        """Notice what has ended, check what is new, start what may start."""
        exits = {pid: code for pid, child in self._children.items() if (code := child.poll()) is not None}
        jobs = self.queue.all()
        self.queue.note_dead(jobs, exits)
        for pid in exits:
            del self._children[pid]
        for job in jobs:
            if job.status.state == "validating":
                self._validate(job)
        jobs = self.queue.all()
        free = self._max_running - sum(job.status.state == "running" for job in jobs)
        for job in [job for job in jobs if job.status.state == "queued"][: max(0, free)]:
            self._start(job)

    def _validate(self, job: Job) -> None:
        try:
            self._check(job.journal)
        except Exception as caught:
            error = caught
            if not isinstance(error, BianlianError):  # a fault of ours must not hold up the queue for ever
                log.exception("the files of run %s cannot be checked", job.id)
                error = Invalid(f"the files cannot be checked: {caught}", param="training_file")
            job.journal.note(error.message, level="error", data={"code": error.code})
            with suppress(Conflict):  # cancelled meanwhile
                job.journal.update(
                    only=_VALIDATING,
                    state="failed",
                    message=error.message,
                    code=error.code,
                    param=error.param,
                    finished=datetime.now(UTC),
                )
        else:
            with suppress(Conflict):
                job.journal.update(only=_VALIDATING, state="queued")
                job.journal.note("files validated; queued")

    def _start(self, job: Job) -> None:
        journal = job.journal
        with journal.locked():
            status = journal.status()
            if status.state != "queued":  # cancelled meanwhile
                return
            journal.forget_wish()
            command = [sys.executable, "-m", "training.run", str(journal.directory.resolve()), self._device]
            with (journal.directory / LOG_FILE).open("ab") as output:
                child = subprocess.Popen(
                    command,
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            be_nice(child.pid)  # seconds of imports, too, are in the way of a server's answers
            # From here on it is running for everybody; the process itself takes seconds to say so.
            started = status.started or datetime.now(UTC)
            process = Process.of(child.pid)
            journal.set_status(status.changed(state="running", message="starting", process=process, started=started))
        self._children[child.pid] = child
        journal.note(f"started as process {child.pid}")

    def _idle(self) -> bool:
        return not any(job.status.state in ("validating", "queued", "running") for job in self.queue.all())


@contextmanager
def exclusively(path: Path) -> Iterator[bool]:
    """Whether this process, and no other, has the lock `path` now. Does not wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_supervised(root: Path) -> bool:
    """Whether somebody looks after the queue of this home."""
    with exclusively(root / "runs" / _SUPERVISOR_LOCK) as free:
        return not free


def supervise_apart(root: Path, *, device: Device = "auto", max_running: int = 1) -> None:
    """Look after the queue in a process of its own until it is empty. For machines on which no server runs."""
    subprocess.Popen(
        [sys.executable, "-m", "training.supervise", str(root.resolve()), device, str(max_running)],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _environment() -> dict[str, str]:
    """Ours, in which these very packages are found, installed or not."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def count_states(jobs: Iterable[Job]) -> Counter[State]:
    return Counter(job.status.state for job in jobs)


def _why_dead(job: Job, exit_code: int | None) -> tuple[str, str]:
    """(message, code) for a run whose process ended without a word."""
    again = f"Its checkpoints are kept; go on with: bianlian jobs resume {job.id}"
    if exit_code == -signal.SIGKILL:
        return (
            "killed (SIGKILL), which is what the kernel does when memory runs out. If it was that, start again with a "
            f"smaller --batch-size or --max-length, or with --method qlora. {again}",
            "killed",
        )
    if exit_code is not None and exit_code < 0:
        return f"its process was ended by {signal.Signals(-exit_code).name}. {again}", "killed"
    if exit_code is not None:
        return f"its process ended with exit code {exit_code}; {LOG_FILE} says more. {again}", "process_ended"
    return (
        f"its process is gone: killed, as the kernel does when memory runs out, or the machine was restarted. {again}",
        "killed",
    )
