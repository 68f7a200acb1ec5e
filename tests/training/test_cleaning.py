"""What is kept of finished runs and cast bases, what goes, and that nothing in use does."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters import mapped_base
from adapters.aliases import Alias, AliasTarget
from adapters.errors import Conflict, NotFound
from adapters.snapshots import RunSnapshots, Series
from adapters.store import AdapterStore
from tests.adapters.test_snapshots import add
from tests.training.test_jobs import submit
from training.job_cli import jobs_cli
from training.jobs.queue import JobQueue, Supervisor
from training.runs.journal import Journal, State


def finished(queue: JobQueue, adapter: Path, days_ago: int, state: State = "succeeded") -> Journal:
    journal = submit(queue, state=state, finished=datetime.now(UTC) - timedelta(days=days_ago))
    snapshots = RunSnapshots(journal.directory)
    snapshots.begin(Series(name="x", base_fingerprint="f" * 64, prompts=("?",)), at_step=0)
    for step in (5, 10):
        add(snapshots, step, adapter)
    return journal


def steps(journal: Journal) -> list[int]:
    return RunSnapshots(journal.directory).steps()


def point_at(root: Path, model: str) -> None:
    directory = AdapterStore(root / "store").aliases
    directory.mkdir(parents=True)
    (directory / "face.json").write_text(Alias(name="face", targets=[AliasTarget(model=model)]).model_dump_json())


def test_snapshots_of_old_finished_runs_go_and_those_in_use_stay(
    tmp_path: Path, tiny_adapters: dict[str, Path]
) -> None:
    queue = JobQueue(tmp_path)
    runs = [finished(queue, tiny_adapters["r2"], days) for days in range(4)]
    paused = finished(queue, tiny_adapters["r2"], 9, state="paused")
    failed = finished(queue, tiny_adapters["r2"], 8, state="failed")
    point_at(tmp_path, f"{runs[3].job_id}:step-5")
    supervisor = Supervisor(
        queue, snapshot_runs=1, in_use=lambda snapshot: str(snapshot) == f"{runs[2].job_id}:step-10"
    )
    supervisor.step()
    assert [steps(run) for run in (*runs, paused, failed)] == [[5, 10], [], [10], [5], [5, 10], []]
    assert all(run.status().state == "succeeded" and run.config() for run in runs)  # only the weights are gone


def test_a_run_is_removed_with_all_it_has_unless_it_runs_or_is_pointed_at(
    tmp_path: Path, tiny_adapters: dict[str, Path]
) -> None:
    queue = JobQueue(tmp_path)
    gone, kept = (finished(queue, tiny_adapters["r2"], 1) for _ in range(2))
    waiting = submit(queue)
    point_at(tmp_path, f"{kept.job_id}:step-5")
    environment = {"BIANLIAN_HOME": str(tmp_path)}
    assert CliRunner().invoke(jobs_cli, ["remove", gone.job_id], input="n\n", env=environment).exit_code == 1
    assert gone.directory.exists()
    done = CliRunner().invoke(jobs_cli, ["remove", "--yes", gone.job_id], env=environment)
    assert done.exit_code == 0 and f"deleted {gone.job_id}" in done.output
    with pytest.raises(Conflict, match="cancel it first"):
        queue.remove(waiting.job_id)
    with pytest.raises(Conflict, match="alias 'face' points at"):
        queue.remove(kept.job_id)
    with pytest.raises(NotFound):
        queue.remove(gone.job_id)
    assert {path.name for path in queue.runs.iterdir()} == {kept.job_id, waiting.job_id}


def form(cache: Path, number: int, days_ago: float) -> Path:
    directory = cache / f"form-{number}"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"x")
    then = datetime.now().timestamp() - days_ago * 86400
    os.utime(directory, (then, then))
    return directory


def test_cast_bases_that_nobody_asks_for_go_and_mapped_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_base, "KEPT_FORMS", 2)
    forms = [form(tmp_path, number, days_ago=10 - number) for number in range(5)]
    abandoned = form(tmp_path / ".writing-x", 0, days_ago=3).parent
    os.utime(abandoned, (0, 0))
    code = (
        "import sys; from pathlib import Path; from adapters.mapped_base import _use\n"
        "then = Path(sys.argv[1]).stat().st_mtime\n"
        "assert _use(Path(sys.argv[1])); import os; os.utime(sys.argv[1], (then, then))\n"
        "print('mapped', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(forms[0])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None and user.stdout.readline() == "mapped\n"
        mapped_base._drop_unused(tmp_path)
        assert [one.exists() for one in forms] == [True, False, False, True, True] and not abandoned.exists()
        user.kill()
    mapped_base._drop_unused(tmp_path)
    assert [one.exists() for one in forms] == [False, False, False, True, True]
    assert not list(tmp_path.glob(".*"))


def killed_while(action: Callable[[], object]) -> None:
    """Run it in a process of its own, which must end itself by kill -9."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*given: object, **options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["digest_of", "read_manifest"])
def test_a_publisher_killed_half_way_publishes_nothing(
    tmp_path: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    store = AdapterStore(tmp_path / "store")
    first = store.publish(tiny_adapters["r2"], "face")
    with monkeypatch.context() as patched:
        patched.setattr(f"adapters.store.{moment}", die)
        killed_while(lambda: AdapterStore(store.root).publish(tiny_adapters["r4"], "face"))
    assert store.numbers("face") == [1] and store.current("face") == first
    store.sweep()
    assert sorted(path.name for path in store.root.iterdir()) == ["face"]
    assert str(store.publish(tiny_adapters["r4"], "face")) == "face@2"


def test_a_publisher_killed_before_the_name_moves_leaves_it_where_it_was(
    tmp_path: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(tmp_path / "store")
    first = store.publish(tiny_adapters["r2"], "face")
    with monkeypatch.context() as patched:
        patched.setattr(AdapterStore, "set_current", die)
        killed_while(lambda: AdapterStore(store.root).publish(tiny_adapters["r4"], "face"))
    assert store.current("face") == first
    for number in store.numbers("face"):  # the second is there, and whole
        store.verify(store.version("face", number))


def test_a_run_killed_while_it_writes_a_snapshot_leaves_the_others(
    tmp_path: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = JobQueue(tmp_path)
    journal = finished(queue, tiny_adapters["r2"], 0)
    snapshots = RunSnapshots(journal.directory)
    with monkeypatch.context() as patched:
        patched.setattr("adapters.snapshots.digest_of", die)
        killed_while(lambda: add(RunSnapshots(journal.directory), 15, tiny_adapters["r4"]))
    assert snapshots.steps() == [5, 10] and len(snapshots.all()) == 2
    assert [path.name for path in snapshots.directory.glob(".step-*")]  # what it left
    snapshots.begin(Series(name="x", base_fingerprint="f" * 64, prompts=("?",)), at_step=10)
    assert not list(snapshots.directory.glob(".*"))
    add(snapshots, 15, tiny_adapters["r4"])
    assert snapshots.steps() == [5, 10, 15]
