"""Snapshots: the adapter of a training run as it was after a step. `<runs>/<job>/snapshots/step-000040/` holds PEFT
files and the manifest, like a version in the store; a run writes them as it goes, a server offers each as a model id.

The directory is the only truth: nothing is told to anybody, and what is deleted is gone. No torch here."""

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.errors import Invalid, NotFound, nearest
from adapters.manifest import MANIFEST_FILE, AdapterVersion, digest_of, read_manifest
from adapters.regular import read_regular

MAX_SNAPSHOTS = 12  # of a run; one more, and the one that says least is deleted

_SERIES_FILE = "series.json"
_DIGEST_FILE = "digest"
_DIRECTORY = re.compile(r"step-([0-9]{6,9})")
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # an adapter's name, and when the run began
_MODEL_ID = re.compile(rf"({_JOB_ID.pattern}):step-([0-9]{{1,9}})")


@dataclass(frozen=True)
class Snapshot(AdapterVersion):
    """`<job>:step-<number>`, a version that no name points at."""

    def __str__(self) -> str:
        return self.name

    @property
    def step(self) -> int:
        return self.number


class Series(BaseModel):
    """Format 1 of `series.json`: what all snapshots of a run have in common, and what they are asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    name: str  # the adapter's
    base_fingerprint: str
    system_prompt: str | None = None
    prompts: tuple[str, ...]
    started: float = Field(default_factory=time.time)


def is_snapshot_id(model_id: str) -> bool:
    """Whether a model id is spelled like a snapshot's. Nobody else's has a colon."""
    return _MODEL_ID.fullmatch(model_id) is not None


def snapshot_id(job_id: str, step: int) -> str:
    """The model id of a run's snapshot, as in a fine-tuning checkpoint's `fine_tuned_model_checkpoint`."""
    return f"{job_id}:step-{step}"


class RunSnapshots:
    """The snapshots of one run. One process writes, any number read."""

    def __init__(self, run: Path):
        self.run = run
        self.directory = run / "snapshots"

    def begin(self, series: Series, at_step: int) -> None:
        """Ready for snapshots after `at_step`, the step where the run begins or goes on; later ones are deleted."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for left in self.directory.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
        for step in self.steps():
            if step > at_step:
                self.remove(step)
        if not (self.directory / _SERIES_FILE).exists():
            partial = self.run / f".{_SERIES_FILE}-{os.getpid()}"
            partial.write_text(series.model_dump_json(indent=2) + "\n", encoding="utf-8")
            partial.replace(self.directory / _SERIES_FILE)

    def add(self, step: int, fill: Callable[[Path], None]) -> Path:
        """A snapshot of what `fill` writes into the directory it is given. Appears whole or not at all. When there are
        too many, the one that leaves the evenest series behind is deleted, never the first or last."""
        partial = self.directory / f".step-{uuid.uuid4().hex}"
        target = self._path(step)
        partial.mkdir()
        try:
            fill(partial)
            (partial / _DIGEST_FILE).write_text(digest_of(partial), encoding="ascii")
            if target.exists():
                self.remove(step)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # renamed away unless something failed
        if len(steps := self.steps()) > MAX_SNAPSHOTS:
            gaps = {steps[i]: steps[i + 1] - steps[i - 1] for i in range(1, len(steps) - 1)}
            self.remove(min(gaps, key=gaps.__getitem__))
        return target

    def steps(self) -> list[int]:
        """Ascending."""
        try:
            names = os.listdir(self.directory)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(found[1]) for name in names if (found := _DIRECTORY.fullmatch(name)))

    def series(self) -> Series | None:
        """None for a run that makes no snapshots, or has not begun to. Invalid when it cannot be read."""
        path = self.directory / _SERIES_FILE
        try:
            return Series.model_validate_json(read_regular(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Invalid(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise Invalid(f"{path}: {error.errors()[0]['msg']}") from error

    def get(self, step: int) -> Snapshot | None:
        """The snapshot of a step; None when there is none. Invalid when its manifest cannot be understood."""
        directory = self._path(step)
        try:
            digest = read_regular(directory / _DIGEST_FILE).decode("ascii")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Invalid(f"{directory / _DIGEST_FILE} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise Invalid(f"{directory / _DIGEST_FILE} holds no digest: {error}") from error
        return Snapshot(snapshot_id(self.run.name, step), step, digest, directory, read_manifest(directory))

    def all(self) -> list[Snapshot]:
        """By step."""
        return [snapshot for step in self.steps() if (snapshot := self.get(step))]

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:06d}"

    def remove(self, step: int) -> None:
        """At once for everybody who looks; the files themselves go after that."""
        gone = self.directory / f".gone-{uuid.uuid4().hex}"
        self._path(step).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


class SnapshotStore:
    """The snapshots of all runs under a directory, for those who serve them."""

    def __init__(self, runs: Path):
        self.runs = runs
        self._read: dict[str, tuple[tuple[int, int], Snapshot]] = {}  # by model id, with the manifest's stamp

    def run(self, job_id: str) -> RunSnapshots:
        """NotFound when no run of this id makes snapshots."""
        found = RunSnapshots(self.runs / job_id)
        if not _JOB_ID.fullmatch(job_id) or found.series() is None:
            shown = job_id.encode("ascii", "backslashreplace").decode()[:80]
            raise NotFound(f"no run '{shown}' has snapshots{nearest(shown, self.job_ids())}", param="job_id")
        return found

    def job_ids(self, beginning: str = "") -> list[str]:
        """Runs that make snapshots, and whose ids begin so."""
        return sorted(path.parent.parent.name for path in self.runs.glob(f"{beginning}*/snapshots/{_SERIES_FILE}"))

    def digests(self) -> set[str]:
        """Of every snapshot there is."""
        found = set()
        for path in self.runs.glob(f"*/snapshots/step-*/{_DIGEST_FILE}"):
            with suppress(OSError, UnicodeDecodeError):  # deleted a moment ago, or damaged
                found.add(read_regular(path).decode("ascii"))
        return found

    def find(self, model_id: str) -> Snapshot | None:
        """`<job>:step-40`, or `<adapter>:step-40` in the newest run of that name; None when there is no such thing."""
        if not (found := _MODEL_ID.fullmatch(model_id)):
            return None
        name, step = found[1], int(found[2])
        return self._get(name, step) or next((s for job in self._jobs_of(name) if (s := self._get(job, step))), None)

    def resolve(self, model_id: str) -> Snapshot:
        """As `find`. NotFound, which says what there is, when there is none."""
        if snapshot := self.find(model_id):
            return snapshot
        name, _, _ = model_id.partition(":")
        for job in [name, *self._jobs_of(name)]:
            if steps := RunSnapshots(self.runs / job).steps():
                known = ", ".join(map(str, steps))
                raise NotFound(
                    f"model '{model_id}' does not exist; run {job} has snapshots of steps {known}",
                    param="model",
                    code="model_not_found",
                )
        models = {
            f"{series.name}:step-{steps[-1]}"
            for job in self.job_ids()
            if (series := self._series(job)) and (steps := RunSnapshots(self.runs / job).steps())
        }
        hint = nearest(model_id, models) or "; no training run has snapshots"
        raise NotFound(f"model '{model_id}' does not exist{hint}", param="model", code="model_not_found")

    def _get(self, job_id: str, step: int) -> Snapshot | None:
        # Parsing a manifest takes longer than everything else here, and every request on a snapshot comes by.
        run, model_id = RunSnapshots(self.runs / job_id), snapshot_id(job_id, step)
        try:
            found = os.stat(f"{run._path(step)}/{MANIFEST_FILE}")
        except OSError:
            self._read.pop(model_id, None)
            return None
        stamp = found.st_ino, found.st_ctime_ns
        kept = self._read.get(model_id)
        if kept and kept[0] == stamp:
            return kept[1]
        snapshot = run.get(step)
        if snapshot:
            self._read[model_id] = stamp, snapshot
        return snapshot

    def _series(self, job_id: str) -> Series | None:
        """None, too, for a run whose own is damaged: it hides no other's."""
        with suppress(Invalid):
            return RunSnapshots(self.runs / job_id).series()
        return None

    def _jobs_of(self, name: str) -> list[str]:
        """Runs that train the adapter `name`, newest first. Their ids begin with it."""
        jobs = self.job_ids(name) if _JOB_ID.fullmatch(name) else []
        series = {job: found for job in jobs if (found := self._series(job))}
        mine = [job for job in series if series[job].name == name]
        return sorted(mine, key=lambda job: series[job].started, reverse=True)
