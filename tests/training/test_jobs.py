"""The queue: what waits, what runs, what died, and what a run leaves when memory or disk give out."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from typer.testing import CliRunner, Result

from adapters.errors import BianlianError, Conflict, InsufficientStorage, Invalid, NotFound
from adapters.store import AdapterStore
from tests.full_disk import full_disk
from tests.training.test_run import ROWS, config, overflowing
from training.config import TrainConfig
from training.job_cli import jobs_cli
from training.jobs.queue import JobQueue, Supervisor, is_supervised
from training.runs.failures import explain
from training.runs.journal import SILENT_S, Journal, Process, State, Status
from training.runs.run import Watcher, run_job, start_run

PATIENCE_S = 120


def submit(queue: JobQueue, *, state: State = "queued", **fields: Any) -> Journal:
    """A run that nobody starts."""
    journal = queue.submit(TrainConfig(data=(Path("nowhere.jsonl"),), name="x")).journal
    journal.set_status(Status(state=state, **fields))
    return journal


def ended_process() -> tuple[Process, int]:
    """One that was killed, and its exit code."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    process = Process.of(child.pid)
    child.kill()
    return process, child.wait()


# --- who is alive ---


def test_a_number_given_to_another_process_is_not_the_run(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    mine = Process.of(os.getpid())
    alive = submit(queue, state="running", process=mine)
    dead = submit(queue, state="running", process=mine.model_copy(update={"started": mine.started - 100}))
    queue.note_dead(queue.all())
    assert alive.status().state == "running"
    assert dead.status().state == "failed"
    assert f"go on with: bianlian jobs resume {dead.job_id}" in dead.status().message
    assert dead.events()[-1].level == "error"


def test_a_process_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = Process.of(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert not process.alive
    child.wait()


def test_a_killed_run_says_what_to_try_against_the_kernel(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    process, code = ended_process()
    journal = submit(queue, state="running", process=process, step=7, steps=9)
    queue.note_dead(queue.all(), {process.pid: code})
    status = journal.status()
    assert (status.state, status.code, status.step) == ("failed", "killed", 7)
    for way_out in ("memory", "--batch-size", "--max-length", "qlora", "resume"):
        assert way_out in status.message


def test_a_run_on_another_machine_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    process = ended_process()[0].model_copy(update={"host": "elsewhere"})
    journal = submit(queue, state="running", process=process)
    with journal.beating():
        while not journal.last_beat():
            time.sleep(0.01)
    queue.note_dead(queue.all())
    assert journal.status().state == "running"
    os.utime(journal.directory / "heartbeat", (0, time.time() - SILENT_S - 1))
    queue.note_dead(queue.all())
    assert journal.status().state == "failed"


def test_a_run_that_ended_by_itself_keeps_its_own_last_word(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    journal = submit(queue, state="running", process=ended_process()[0])
    seen = queue.all()
    journal.update(state="succeeded", version="x@1")
    queue.note_dead(seen)
    assert journal.status().state == "succeeded"


# --- cancel, pause, resume ---


def test_what_waits_is_stopped_at_once_and_what_is_over_not_at_all(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    waiting, checking, paused, over = (submit(queue, state=s) for s in ("queued", "validating", "paused", "succeeded"))
    assert queue.pause(waiting.job_id).status.state == "paused"
    assert queue.cancel(waiting.job_id).status.state == "cancelled"
    assert queue.cancel(checking.job_id).status.state == "cancelled"
    assert queue.cancel(paused.job_id).status.finished is not None
    for act in (queue.cancel, queue.pause, queue.resume):
        with pytest.raises(Conflict, match="succeeded"):
            act(over.job_id)
        with pytest.raises(NotFound, match="did you mean"):
            act(over.job_id[:-1])
    with pytest.raises(Conflict, match="cancelled already"):
        queue.pause(waiting.job_id)
    assert queue.resume(waiting.job_id).status.state == "validating"  # it never began
    waiting.update(state="failed", started=datetime.now(UTC))
    assert queue.resume(waiting.job_id).status.state == "queued"


@pytest.mark.parametrize("stop", ["cancel", "pause"])
def test_what_is_stopped_while_its_files_are_read_leaves_no_process(tmp_path: Path, stop: str) -> None:
    queue = JobQueue(tmp_path)
    reading = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    journal = submit(queue, state="validating", process=Process.of(reading.pid))
    try:
        getattr(queue, stop)(journal.job_id)
        assert reading.wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        reading.kill()
    assert journal.status().process is None
    assert queue.resume(journal.job_id).status.process is None


def test_a_run_in_a_terminal_is_never_taken_by_the_queue(tiny_base: Path, tmp_path: Path) -> None:
    """Not even at the very moment at which its directory appears."""
    root, seen = tmp_path / "home", list[State]()

    def look(stage: str) -> None:
        seen.extend(job.status.state for job in JobQueue(root).all())

    start_run(config(tiny_base, tmp_path), root, device="cpu", watcher=Watcher(on_stage=look))
    assert set(seen) == {"running"} and [job.status.state for job in JobQueue(root).all()] == ["succeeded"]
    (job,) = JobQueue(root).all()
    created = Journal.create(tmp_path / "other", job.config, state="running")
    assert created.status().process == Process.of(os.getpid())


def test_a_dead_run_cannot_be_paused(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    journal = submit(queue, state="running", process=ended_process()[0])
    with pytest.raises(Conflict, match="failed already"):
        queue.pause(journal.job_id)


def test_a_queue_made_anew_knows_everything(tmp_path: Path) -> None:
    first = JobQueue(tmp_path)
    journals = [submit(first) for _ in range(3)]
    journals[1].update(state="paused")
    (tmp_path / "runs" / "half-made").mkdir()
    (tmp_path / "runs" / "half-made" / "status.json").write_text('{"state": "queued"}')
    again = JobQueue(tmp_path)
    assert [(job.id, job.status.state) for job in again.all()] == [
        (journal.job_id, state) for journal, state in zip(journals, ("queued", "paused", "queued"), strict=True)
    ]
    journals[1].update(state="queued")
    assert [job.status.state for job in again.all()] == ["queued"] * 3


@pytest.mark.parametrize("stop", ["wish", "signal"])
def test_a_paused_run_goes_on_to_the_same_adapter(tiny_base: Path, tmp_path: Path, stop: str) -> None:
    queue = JobQueue(tmp_path / "home")
    journal = queue.submit(config(tiny_base, tmp_path)).journal

    def ask(progress: Any) -> None:  # a step is reported when the next may have begun
        if progress.step == 3 and stop == "wish":
            queue.pause(journal.job_id)
        elif progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # as a machine that shuts down sends

    paused = run_job(journal.directory, device="cpu", watcher=Watcher(on_step=ask))
    assert (paused.state, journal.status().state, journal.status().step) == ("paused", "paused", 4)
    assert "checkpoint kept at step 4" in paused.message
    assert not (tmp_path / "home" / "store").exists()
    queue.resume(journal.job_id)
    resumed = run_job(journal.directory, device="cpu")
    whole = run_job(JobQueue(tmp_path / "whole").submit(config(tiny_base, tmp_path)).journal.directory, device="cpu")
    assert resumed.version is not None and whole.version is not None
    assert resumed.version.digest == whole.version.digest
    assert journal.status().trained_tokens == 2 * sum(len(row.input_ids) for row in training_rows(journal))


def training_rows(journal: Journal) -> Any:
    from training.runs.run_data import check_data

    asked = journal.config().train
    return check_data(asked).parts(asked)[0]


def test_a_validation_file_takes_the_place_of_the_split(tiny_base: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(ROWS[0]) + "\n")
    started: list[Any] = []
    journal = JobQueue(tmp_path / "home").submit(config(tiny_base, tmp_path, validation_data=[held_out])).journal
    finished = run_job(journal.directory, device="cpu", watcher=Watcher(on_start=started.append))
    assert (started[0].rows, started[0].validation_rows) == (len(ROWS), 1)
    assert finished.record is not None and finished.record.tuned_val_loss is not None


# --- what gives out ---


@contextmanager
def limited(kind: int, amount: int) -> Iterator[None]:
    """This process, under a limit of the kernel's."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (amount, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def test_a_full_disk_fails_the_run_with_the_way_out_and_nothing_half_done(tiny_base: Path, tmp_path: Path) -> None:
    queue = JobQueue(tmp_path / "home")
    journal = queue.submit(config(tiny_base, tmp_path)).journal
    with limited(resource.RLIMIT_FSIZE, 24_000), pytest.raises(BianlianError, match="the disk is full"):
        run_job(journal.directory, device="cpu")
    status = journal.status()
    assert (status.state, status.code) == ("failed", "disk_full")
    assert "Free space" in status.message and journal.job_id in status.message
    assert not list(journal.checkpoints.glob("*")) and not (tmp_path / "home" / "store").exists()
    queue.resume(journal.job_id)
    assert str(run_job(journal.directory, device="cpu").version) == "counter@1"
    assert (journal.status().code, journal.status().state) == (None, "succeeded")


@pytest.mark.parametrize("act", ["submit", "cancel", "pause", "resume"])
def test_what_a_full_disk_cannot_note_is_not_done(tmp_path: Path, act: str) -> None:
    queue = JobQueue(tmp_path)
    journal = submit(queue, state="failed" if act == "resume" else "queued")
    before = sorted(tmp_path.rglob("*"))
    asked = TrainConfig(data=(Path("nowhere.jsonl"),), name="y")
    with full_disk(10), pytest.raises(InsufficientStorage, match="disk has no room"):
        queue.submit(asked) if act == "submit" else getattr(queue, act)(journal.job_id)
    assert journal.status().state == ("failed" if act == "resume" else "queued")
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "lock"] == before
    assert len(queue.all()) == 1


def test_how_a_run_was_killed_is_said_once_the_disk_has_room(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    supervisor = Supervisor(queue, device="cpu")
    journal = submit(queue)
    supervisor.step()
    process = journal.status().process
    assert process is not None
    os.kill(process.pid, signal.SIGTERM)  # before it has noted anything of its own
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with full_disk(10):
        supervisor.step()
    assert journal.status().state == "running"
    supervisor.step()
    assert journal.status().state == "failed" and "SIGTERM" in journal.status().message


def test_torch_s_words_for_a_full_disk_are_understood() -> None:
    """What it raised on a file system of three megabytes, which a test cannot make for itself."""
    said = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 535872 vs 535764")
    assert explain(said, "x").code == "disk_full"
    assert explain(RuntimeError("shapes do not match"), "x").code == "training_failed"


def test_out_of_memory_fails_the_run_with_the_way_out(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"{n}", "output": "天地玄黄宇宙洪荒" * 50} for n in range(64)]
    asked = config(tiny_base, tmp_path, rows, batch_size=64, val_split=0)
    journal = JobQueue(tmp_path / "home").submit(asked).journal
    room = psutil.Process().memory_info().vms + (300 << 20)  # the logits of one batch alone want more
    with limited(resource.RLIMIT_AS, room), pytest.raises(BianlianError, match="out of memory"):
        run_job(journal.directory, device="cpu")
    status = journal.status()
    assert (status.state, status.code) == ("failed", "out_of_memory")
    for way_out in ("--batch-size", "--max-length", "qlora"):
        assert way_out in status.message
    assert not (tmp_path / "home" / "store").exists()


def test_a_diverged_run_publishes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    journal = JobQueue(tmp_path / "home").submit(config(overflowing(tiny_base, tmp_path / "base"), tmp_path)).journal
    with pytest.raises(BianlianError, match="smaller --learning-rate"):
        run_job(journal.directory, device="cpu")
    assert (journal.status().state, journal.status().code) == ("failed", "diverged")
    assert not (tmp_path / "home" / "store").exists()


def test_a_checkpoint_cut_off_in_the_middle_is_not_gone_on_from(tiny_base: Path, tmp_path: Path) -> None:
    queue = JobQueue(tmp_path / "home")
    journal = queue.submit(config(tiny_base, tmp_path)).journal
    stop = Watcher(on_step=lambda progress: queue.pause(journal.job_id) if progress.step == 3 else None)
    run_job(journal.directory, device="cpu", watcher=stop)
    for name, content in (("checkpoint-5", '{"global_step": '), ("checkpoint-6", None)):
        (journal.checkpoints / name).mkdir()
        if content:
            (journal.checkpoints / name / "trainer_state.json").write_text(content)
    started: list[Any] = []
    finished = run_job(journal.directory, device="cpu", watcher=Watcher(on_start=started.append))
    assert finished.state == "succeeded" and started[0].resumed_at == 4


# --- processes ---


@pytest.mark.slow
def test_two_supervisors_of_one_home_start_a_run_once(tmp_path: Path) -> None:
    """The run's data is missing: its process says so, which nobody but the journal hears."""
    queue = JobQueue(tmp_path)
    journal, waiting = submit(queue), submit(queue)

    async def both() -> None:
        tasks = [asyncio.create_task(Supervisor(JobQueue(tmp_path), device="cpu").watch()) for _ in range(2)]
        deadline = time.monotonic() + PATIENCE_S
        while journal.status().state == "queued":
            await asyncio.sleep(0.01)
        assert waiting.status().state == "queued"  # one at a time
        queue.cancel(waiting.job_id)
        while journal.status().state == "running" and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(both())
    assert journal.status().state == "failed" and "nowhere.jsonl does not exist" in journal.status().message
    assert sum(event.message.startswith("started as process") for event in journal.events()) == 1
    assert waiting.status().state == "cancelled"
    assert not any(event.message.startswith("started") for event in waiting.events())


def test_the_queue_needs_no_torch() -> None:
    code = (
        "import sys, training.jobs.queue, training.job_cli, training.jobs.figures, training.api.fine_tuning\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_command_line_detaches_shows_and_stops(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.cli import register

    home = tmp_path / "home"
    monkeypatch.setenv("BIANLIAN_HOME", str(home))
    monkeypatch.setenv("BIANLIAN_DEVICE", "cpu")
    cli = typer.Typer()
    register(cli)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, arguments)
        if done.exception:
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    asked = config(tiny_base, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    with pytest.raises(Invalid, match="--objective dpo"):
        run("train", "--data", "pairs.jsonl", "--name", "x", "--base", str(asked.base), "--detach")
    assert JobQueue(home).all() == []
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    output = run(
        *("train", "--data", "data.jsonl", "--name", "counter", "--base", str(asked.base), "--epochs", "1", "--detach")
    )
    (job,) = JobQueue(home).all()
    assert f"run {job.id} is queued" in output
    follower = threading.Thread(target=lambda: followed.append(run("jobs", "logs", "--follow", job.id)))
    followed: list[str] = []
    follower.start()
    follower.join(PATIENCE_S)
    assert "published as counter@1" in followed[0]
    assert AdapterStore(home / "store").names() == ["counter"]
    deadline = time.monotonic() + PATIENCE_S
    while is_supervised(home):  # which would start what comes next
        assert time.monotonic() < deadline
        time.sleep(0.1)

    other = JobQueue(home).submit(asked)
    assert other.id in run("jobs", "list") and job.id not in run("jobs", "list", "--state", "queued")
    shown = run("jobs", "show", job.id)
    assert "succeeded" in shown and "counter@1" in shown and str(tiny_base) in shown
    assert f"{other.id} is paused" in run("jobs", "pause", other.id)
    assert f"{other.id} is cancelled" in run("jobs", "cancel", other.id)
    with pytest.raises(NotFound, match="no run 'nobody'"):
        run("jobs", "show", "nobody")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`bianlian jobs` over the home tmp_path."""
    monkeypatch.setenv("BIANLIAN_HOME", str(tmp_path))
    cli = typer.Typer()
    cli.add_typer(jobs_cli, name="jobs")
    return lambda *arguments, **options: CliRunner().invoke(cli, ["jobs", *arguments], **options)


def test_a_name_means_its_newest_run_which_is_said(tmp_path: Path, jobs: Callable[..., Result]) -> None:
    queue = JobQueue(tmp_path)
    older = submit(queue, state="succeeded", version="x@1")
    newer = submit(queue, state="failed", code="killed", process=ended_process()[0], message="it was killed")
    shown = jobs("show", "x").output
    assert f"x: its newest run is {newer.job_id}" in shown
    assert "code       killed" in shown and "process" not in shown
    shown = jobs("show", "x@1").output
    assert f"x@1: its newest run is {older.job_id}" in shown and "succeeded" in shown
    assert "newest run" not in jobs("show", older.job_id).output
    assert f"x: its newest run is {newer.job_id}" in jobs("logs", "x").output
    refused = jobs("cancel", older.job_id).exception
    assert isinstance(refused, Conflict) and "has succeeded already" in refused.message
    assert isinstance(jobs("show", "y").exception, NotFound)


def test_runs_are_deleted_all_or_none_and_refused_before_the_question(
    tmp_path: Path, jobs: Callable[..., Result]
) -> None:
    queue = JobQueue(tmp_path)
    over, other = (submit(queue, state="failed").job_id for _ in range(2))
    waiting = submit(queue).job_id
    for bad, kind in (("nobody", NotFound), (waiting, Conflict)):
        result = jobs("remove", over, bad, input="y\n")
        assert isinstance(result.exception, kind) and "delete" not in result.output
    assert len(queue.all()) == 3
    result = jobs("remove", over, other, over, input="y\n")
    assert f"delete {over}, {other}?" in result.output
    assert [job.id for job in queue.all()] == [waiting]


def test_a_status_that_makes_no_sense_holds_nobody_else_up(tiny_base: Path, tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    good = queue.submit(config(tiny_base, tmp_path))
    for number, status in enumerate(({"state": "running"}, {"state": "queued", "pid": -1}, "nonsense")):
        evil = tmp_path / "runs" / f"evil-{number}"
        evil.mkdir()
        (evil / "config.json").write_bytes((good.journal.directory / "config.json").read_bytes())
        (evil / "status.json").write_text(json.dumps(status))
    assert [job.id for job in queue.all()] == [good.id]


def test_a_line_that_a_full_disk_cut_short_stays_alone(tmp_path: Path, tiny_base: Path) -> None:
    journal = JobQueue(tmp_path).submit(config(tiny_base, tmp_path)).journal
    with (journal.directory / "events.jsonl").open("a") as file:
        file.write('{"level":"info","message":"on its w')
    journal.note("after it")
    assert [event.message for event in journal.events()] == [
        "queued",
        "an event that was written only in part",
        "after it",
    ]


def test_resume_needs_no_other_option(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.cli", "train", "--resume", "nothing"]
    environment = os.environ | {"BIANLIAN_HOME": str(tmp_path)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert said.returncode == 2 and "no run 'nothing'" in said.stderr, said.stderr
