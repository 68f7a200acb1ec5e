"""A run whose directory was damaged, or tampered with, is named, and hides no other."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.errors import BianlianError, Invalid, NotFound
from adapters.snapshots import RunSnapshots, Series, SnapshotStore
from serving.files import FileStore
from tests.adapters.test_snapshots import add
from tests.training.test_jobs import ended_process, submit
from training.api.objects import checkpoint_objects, job_object
from training.job_cli import jobs_cli
from training.jobs.queue import JobQueue, Supervisor
from training.jobs.result_files import result_file_ids
from training.runs.journal import SILENT_S

FILES = [
    "status.json",
    "config.json",
    "lock",
    "events.jsonl",
    "metrics.jsonl",
    "wish",
    "fine_tuning.json",
    "result_file",
]


def as_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [as_directory, as_pipe])
def test_a_damaged_run_hides_no_other(tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    queue = JobQueue(tmp_path)
    before, bad, after = submit(queue), submit(queue, state="succeeded", version="x@1"), submit(queue)
    damage(bad.directory / file)
    left_out = file in ("status.json", "config.json")
    ids = [before.job_id, *([] if left_out else [bad.job_id]), after.job_id]
    again = JobQueue(tmp_path)
    assert [job.id for job in again.all()] == ids and list(again.damaged) == [bad.job_id] * left_out
    files = FileStore(tmp_path / "uploads")
    for job in again.all():
        job_object(job, result_file_ids(job, files))
        checkpoint_objects(job)
    shown = CliRunner().invoke(jobs_cli, ["list"], env={"BIANLIAN_HOME": str(tmp_path)})
    assert shown.exit_code == 0 and after.job_id in shown.output
    assert (f"damaged, and left out: {bad.job_id}" in shown.output) == left_out
    for look in (again.get, lambda job_id: again.get(job_id).journal.events()):
        try:
            look(bad.job_id)
        except (BianlianError, NotFound) as error:
            assert bad.job_id in error.message


@pytest.mark.parametrize("file", ["lock", "events.jsonl"])
def test_a_run_that_takes_no_files_holds_up_nobody_else(tmp_path: Path, file: str) -> None:
    queue = JobQueue(tmp_path)
    bad, good = (submit(queue, state="running", process=ended_process()[0]) for _ in range(2))
    as_directory(bad.directory / file)
    stuck, waiting = submit(queue), submit(queue)
    as_directory(stuck.directory / file)
    supervisor = Supervisor(queue, max_running=3, device="cpu")  # the stuck ones count still
    supervisor.step()
    assert good.status().state == "failed" and waiting.status().state == "running"
    assert set(queue.damaged) >= {bad.job_id}
    process = waiting.status().process
    assert process is not None
    os.kill(process.pid, 9)


def test_a_beat_from_the_future_is_no_sign_of_life(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    process = ended_process()[0].model_copy(update={"host": "elsewhere"})
    journal = submit(queue, state="running", process=process)
    journal.beat()
    os.utime(journal.directory / "heartbeat", (0, time.time() + SILENT_S / 2))  # clocks differ
    queue.note_dead(queue.all())
    assert journal.status().state == "running"
    os.utime(journal.directory / "heartbeat", (0, time.time() + 10**6))
    queue.note_dead(queue.all())
    assert journal.status().state == "failed"


def series(root: Path, job_id: str, name: str, adapter: Path) -> RunSnapshots:
    (root / job_id).mkdir(parents=True)
    run = RunSnapshots(root / job_id)
    run.begin(Series(name=name, base_fingerprint="0", prompts=("?",)), at_step=0)
    add(run, 40, adapter)
    return run


@pytest.mark.parametrize("file", ["series.json", "step-000040/digest"])
@pytest.mark.parametrize("damage", [as_directory, as_pipe])
def test_damaged_snapshots_hide_no_others(
    tmp_path: Path, tiny_adapters: dict[str, Path], file: str, damage: Callable[[Path], None]
) -> None:
    for job_id in ("monkey-1", "monkey-2"):
        series(tmp_path, job_id, "monkey", tiny_adapters["r2"])
    damage(tmp_path / "monkey-2" / "snapshots" / file)
    store = SnapshotStore(tmp_path)
    assert store.resolve("monkey-1:step-40").step == 40 and len(store.digests()) == 1
    if file == "series.json":
        assert str(store.resolve("monkey:step-40")) == "monkey-1:step-40"
        with pytest.raises(Invalid, match="monkey-2"):
            store.run("monkey-2")


def test_an_unknown_snapshot_is_answered_with_models_there_are(tmp_path: Path, tiny_adapters: dict[str, Path]) -> None:
    with pytest.raises(NotFound, match="no training run has snapshots"):
        SnapshotStore(tmp_path).resolve("monkey:step-40")
    series(tmp_path, "monkey-20260101-000000-abcd", "monkey", tiny_adapters["r2"])
    with pytest.raises(NotFound, match="did you mean 'monkey:step-40'"):
        SnapshotStore(tmp_path).resolve("monky:step-40")
    with pytest.raises(
        NotFound, match="'other:step-1' does not exist; (did you mean|known:) '?monkey:step-40"
    ) as caught:
        SnapshotStore(tmp_path).resolve("other:step-1")
    assert "20260101" not in caught.value.message
    assert SnapshotStore(tmp_path).resolve("monkey:step-40").step == 40
