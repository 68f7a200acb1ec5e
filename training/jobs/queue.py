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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from adapters.aliases import AliasStore
from adapters.errors import BianlianError, Conflict, NotFound
from adapters.settings import Device
from adapters.snapshots import RunSnapshots, Snapshot
from adapters.store import AdapterStore
from training.config import TrainConfig
from training.runs.journal import FINISHED, STATUS_FILE, Journal, Process, RunConfig, State, Status, told
from training.runs.nice import be_nice

POLL_S = 0.5
MAX_VALIDATING = 2  # at once: a huge file does not hold up a small one
RETRY_S = 10.0
LOG_FILE = "output.log"
STOPPABLE: tuple[State, ...] = ("validating", "queued", "running", "paused")
_GOING: tuple[State, ...] = ("validating", "running")  # a process may be at work
RESUMABLE: tuple[State, ...] = ("paused", "failed", "cancelled")
_SUPERVISOR_LOCK = ".supervisor"

_Stamp = tuple[int, int]  # inode and time of change in ns of a status
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
        self.damaged: dict[str, str] = {}  # runs that `all` had to leave out, and why

    def submit(self, config: TrainConfig) -> Job:
        """A new run at the end of the queue."""
        journal = Journal.create(self.runs, RunConfig(train=config))
        journal.note("queued")
        return self.get(journal.job_id)

    def all(self) -> list[Job]:
        """Oldest first. A directory that is no run, or is being deleted, is passed over; one that cannot be read is in
        `damaged`."""
        try:
            directories = [self.runs / name for name in os.listdir(self.runs)]
        except FileNotFoundError:
            directories = []
        found = {directory: self._read(directory) for directory in directories}
        self.damaged = {run: reason for run, reason in self.damaged.items() if (self.runs / run).exists()}
        self._known = known = {directory: item for directory, item in found.items() if item}
        return sorted((job for _, job in known.values()), key=lambda job: (job.config.created, job.id))

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        journal = Journal.open(self.runs, job_id)
        return Job(journal, journal.config(), journal.status())

    def find(self, name: str) -> Job:
        """The run with this id, or else the newest that makes what is called so: an adapter or base, or a version of
        one that it was published as. Raises NotFound."""
        if not (self.runs / name).is_dir():
            for job in reversed(self.all()):
                if name in (job.config.train.name, job.status.version):
                    return job
        return self.get(name)

    def cancel(self, job_id: str) -> Job:
        """A run that waits, or whose files are being read, is cancelled at once, a running one after its step, with a
        checkpoint. Raises NotFound, and Conflict for one that is over."""
        return self._stop(job_id, "cancelled")

    def pause(self, job_id: str) -> Job:
        """As `cancel`, to be gone on with: the process ends and its memory is free."""
        return self._stop(job_id, "paused")

    def resume(self, job_id: str) -> Job:
        """Back into the queue, to go on from the last checkpoint; one that never began is checked again. Raises
        NotFound, and Conflict for a run that waits, runs or has succeeded."""
        job = self.get(job_id)
        state = "queued" if job.status.started else "validating"
        cleared = dict.fromkeys(("code", "param", "finished", "process"))
        job.journal.update(only=RESUMABLE, state=state, message="", **cleared)
        job.journal.note("resumed; it goes on from its last checkpoint when its turn comes")
        return self.get(job_id)

    def remove(self, job_id: str) -> None:
        """Delete a run's directory; what it published stays. Raises as `removable`."""
        self.removable(job_id).journal.remove()

    def removable(self, job_id: str) -> Job:
        """The run, if it may be deleted. Raises NotFound, and Conflict for a run that waits or runs, or one with a
        snapshot that an alias points at."""
        job = self.get(job_id)
        self.note_dead([job])
        job = self.get(job_id)
        if job.status.state in ("validating", "queued", "running"):
            raise Conflict(f"run {job_id} {told(job.status.state)}; cancel it first", code="job_running")
        self._aliases.require_unused(lambda model: model.startswith(f"{job_id}:"))
        return job

    def drop_snapshots(self, keep: int, in_use: Callable[[Snapshot], bool] = lambda snapshot: False) -> None:
        """Delete the snapshots of finished runs but the `keep` that finished last. Those that are `in_use` stay, and
        those that an alias points at, by the run's id or by the adapter's name."""
        finished = [job for job in self.all() if job.finished and job.status.finished]
        finished.sort(key=lambda job: (job.status.finished or job.config.created, job.id), reverse=True)
        pointed_at = {target.model for alias in self._aliases.all() for target in alias.targets}
        for job in finished[keep:]:
            names = (job.id, job.config.train.name)
            try:
                for snapshot in RunSnapshots(job.journal.directory).all():
                    if not in_use(snapshot) and not {f"{name}:step-{snapshot.step}" for name in names} & pointed_at:
                        RunSnapshots(job.journal.directory).remove(snapshot.step)
            except (OSError, BianlianError) as error:
                self.note_damaged(job.id, error)

    @property
    def _aliases(self) -> AliasStore:
        return AliasStore(AdapterStore(self.root / "store"))

    def note_dead(self, jobs: Iterable[Job], exits: dict[int, int] | None = None) -> None:
        """Mark runs whose process is gone as failed: the one that runs them, or the one that validates their files.
        `exits` has exit codes by process number, as far as they are known."""
        for job in jobs:
            if job.status.state not in _GOING or job.status.process is None:
                continue
            if job.journal.is_alive(job.status):
                continue
            message, code = _why_dead(job, (exits or {}).get(job.status.process.pid))
            try:
                self._note_dead(job, message, code)
            except (OSError, BianlianError) as error:
                self.note_damaged(job.id, error)

    def _note_dead(self, job: Job, message: str, code: str) -> None:
        with job.journal.locked():  # the process may have said more with its last breath
            if job.journal.status() != job.status:
                return
            dead = job.status.changed(state="failed", message=message, code=code, finished=datetime.now(UTC))
            job.journal.note(message, level="error", data={"code": code})
            job.journal.set_status(dead)

    def _stop(self, job_id: str, state: State) -> Job:
        job = self.get(job_id)
        self.note_dead([job])
        with job.journal.locked():
            status = job.journal.status()
            if status.state not in STOPPABLE or status.state == state:
                raise Conflict(f"run {job_id} {told(status.state)} already", code="job_not_running")
            if status.state == "running":
                job.journal.ask("pause" if state == "paused" else "cancel")
                job.journal.note(f"asked to be {state} after this step")
            else:
                finished = datetime.now(UTC) if state == "cancelled" else None
                job.journal.note(f"{state} while it was {status.state}")
                if status.state == "validating" and status.process:
                    status.process.kill()  # under the lock, so that it is writing nothing
                job.journal.set_status(status.changed(state=state, message=state, finished=finished, process=None))
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
        except (FileNotFoundError, NotADirectoryError, NotFound):
            return None
        except (OSError, BianlianError) as error:
            self.note_damaged(directory.name, error)
            return None

    def note_damaged(self, job_id: str, error: Exception) -> None:
        """Said once, and not at every look."""
        if job_id not in self.damaged:
            log.warning("run %s is damaged and left out: %s", job_id, error)
        self.damaged[job_id] = str(error)


class Supervisor:
    """Starts queued runs of one home, at most `max_running` at once, those in somebody's terminal counted. One
    supervisor a home works at a time; others wait for its lock, which goes with its process."""

    def __init__(
        self,
        queue: JobQueue,
        *,
        max_running: int = 1,
        device: Device = "auto",
        snapshot_runs: int | None = None,
        in_use: Callable[[Snapshot], bool] = lambda snapshot: False,
    ):
        """`snapshot_runs` finished runs keep their snapshots, None: all; of the others, those that are `in_use`."""
        self.queue = queue
        self._max_running = max_running
        self._device = device
        self._snapshot_runs = snapshot_runs
        self._in_use = in_use
        self._swept = False
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._exits: dict[int, int] = {}  # exit codes by process number, until the run's status says how it ended

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
        """Notice what has ended, start what may start: validations and runs. Waits for neither."""
        ended = {pid: code for pid, child in self._children.items() if (code := child.poll()) is not None}
        for pid in ended:
            del self._children[pid]
        self._exits |= ended
        self.queue.note_dead(self.queue.all(), self._exits)
        if self._snapshot_runs is not None and (ended or not self._swept):
            self.queue.drop_snapshots(self._snapshot_runs, self._in_use)
            self._swept = True
        jobs = self.queue.all()
        going = {job.status.process.pid for job in jobs if job.status.state in _GOING and job.status.process}
        self._exits = {pid: code for pid, code in self._exits.items() if pid in going}
        validating = [job for job in jobs if job.status.state == "validating"]
        new = [job for job in validating if job.status.process is None]
        for job in new[: max(0, MAX_VALIDATING - (len(validating) - len(new)))]:
            self._try_to_start(job, "validating", "training.jobs.validate")
        free = self._max_running - sum(job.status.state == "running" for job in jobs)
        for job in [job for job in jobs if job.status.state == "queued"][: max(0, free)]:
            self._try_to_start(job, "queued", "training.runs.job", self._device)

    def _try_to_start(self, job: Job, waiting: State, module: str, *arguments: str) -> None:
        try:
            self._start(job, waiting, module, *arguments)
        except (OSError, BianlianError) as error:  # one directory that takes no files holds up nobody else
            self.queue.note_damaged(job.id, error)

    def _start(self, job: Job, waiting: State, module: str, *arguments: str) -> None:
        """A process for a run that is `waiting` still."""
        journal = job.journal
        with journal.locked():
            status = journal.status()
            if status.state != waiting or (waiting == "validating" and status.process):  # cancelled meanwhile, or begun
                return
            journal.forget_wish()
            command = [sys.executable, "-m", module, str(journal.directory.resolve()), *arguments]
            with (journal.directory / LOG_FILE).open("ab") as output:
                child = subprocess.Popen(
                    command,
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            if waiting == "queued":  # somebody waits for a file to be validated
                be_nice(child.pid)  # seconds of imports, too, are in the way of a server's answers
            process = Process.of(child.pid)
            if waiting == "validating":
                journal.set_status(status.changed(process=process))
            else:
                # From here on it is running for everybody; the process itself takes seconds to say so.
                started = status.started or datetime.now(UTC)
                journal.set_status(
                    status.changed(state="running", message="starting", process=process, started=started)
                )
        self._children[child.pid] = child
        if waiting == "queued":
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


def supervise_apart(root: Path, *, device: Device = "auto", max_running: int = 1, snapshot_runs: int = 20) -> None:
    """Look after the queue in a process of its own until it is empty. For machines on which no server runs."""
    about = [str(root.resolve()), device, str(max_running), str(snapshot_runs)]
    subprocess.Popen(
        [sys.executable, "-m", "training.jobs.supervise", *about],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _environment() -> dict[str, str]:
    """Ours, in which these very packages are found, installed or not."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def count_states(jobs: Iterable[Job]) -> Counter[State]:
    return Counter(job.status.state for job in jobs)


def _why_dead(job: Job, exit_code: int | None) -> tuple[str, str]:
    """(message, code) for a run whose process ended without a word."""
    if job.status.state == "validating":
        return (
            "the process that read its files was killed, as the kernel does when memory runs out, or the machine was "
            f"restarted. Split a file that is larger than memory, or try again with: bianlian jobs resume {job.id}",
            "killed",
        )
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
