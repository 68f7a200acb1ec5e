"""What a whole run promises: a published adapter, an honest journal, and nothing half done."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from adapters.base_model import BaseModel, load_base
from adapters.errors import BianlianError, Conflict, Invalid, NotFound
from adapters.lending import BaseLost, Lender, terms_of
from adapters.renderer import ChatRenderer
from adapters.store import AdapterStore
from training.api.objects import checkpoint_objects
from training.cli import _print_result
from training.config import TrainConfig, parse_config
from training.jobs.queue import JobQueue
from training.jobs.result_files import write_table
from training.runs import run as run_module
from training.runs.journal import Journal, Metric, Process, RunConfig, Status
from training.runs.run import Watcher, resume_run, start_run

ROWS = [{"instruction": f"say {n}", "output": f"{n} and {n + 1}", "system": "You count."} for n in range(12)]


def config(base: Path, directory: Path, rows: list[Any] = ROWS, **options: Any) -> TrainConfig:
    path = directory / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"data": [path], "name": "counter", "base": str(base), "epochs": 2, "batch_size": 4, "lora_r": 4}
    return parse_config({**values, **options})


def overflowing(base: Path, directory: Path) -> Path:
    """A copy of the base whose likelihoods are no numbers."""
    shutil.copytree(base, directory)
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"].fill_(3e38)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def go(asked: TrainConfig, home: Path, **options: Any) -> Any:
    return start_run(asked, home, device="cpu", **options)


def interrupt_at(step: int) -> Watcher:
    """Ctrl-C, pressed while `step` is reported."""
    return Watcher(on_step=lambda progress: os.kill(os.getpid(), signal.SIGINT) if progress.step == step else None)


def test_a_run_publishes_a_version_that_remembers_where_it_came_from(tiny_base: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    finished = go(config(tiny_base, tmp_path), tmp_path / "home", watcher=Watcher(on_stage=stages.append))
    version = AdapterStore(tmp_path / "home" / "store").current("counter")
    assert str(version) == "counter@1" == str(finished.version)
    manifest = version.manifest
    assert manifest is not None and manifest.training is not None
    base = load_base(str(tiny_base), device="cpu")
    assert manifest.base_fingerprint == base.fingerprint
    assert manifest.template_hash == ChatRenderer(base.tokenizer, base.stop_token_ids).template_hash
    assert manifest.system_prompt == "You count."
    assert (manifest.training.rows, manifest.training.steps, manifest.training.epochs) == (11, 6, 2.0)
    assert manifest.training.base_val_loss is not None and manifest.training.tuned_val_loss is not None
    assert stages == ["reading data", "loading base", "validating base", "validating", "publishing"]
    status = Journal.open(tmp_path / "home" / "runs", finished.job_id).status()
    assert (status.state, status.version, status.step, status.steps) == ("succeeded", "counter@1", 6, 6)


def test_the_journal_has_every_step_and_both_validations(tiny_base: Path, tmp_path: Path) -> None:
    finished = go(config(tiny_base, tmp_path), tmp_path / "home")
    metrics = list(Journal.open(tmp_path / "home" / "runs", finished.job_id).tail())
    kinds = [metric.kind for metric in metrics]
    epoch = [*["step"] * 3, "validation"]
    assert kinds == ["base_validation", *epoch, *epoch, "tuned_validation"]
    assert [metric.step for metric in metrics[:-1]] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    best = min((metric for metric in metrics if metric.kind == "validation"), key=lambda metric: metric.loss)
    assert (metrics[-1].step, metrics[-1].loss) == (best.step, best.loss)
    assert metrics[-1].loss == finished.record.tuned_val_loss


def test_what_was_learned_comes_back_in_plain_peft(tiny_base: Path, tmp_path: Path) -> None:
    asked = config(tiny_base, tmp_path, ROWS[:2], val_split=0, epochs=60, batch_size=2, learning_rate=1e-2)
    finished = go(asked, tmp_path / "home")
    base = load_base(str(tiny_base), device="cpu")
    tuned = PeftModel.from_pretrained(base.model, finished.version.directory)
    renderer = ChatRenderer(base.tokenizer, base.stop_token_ids)
    for row in ROWS[:2]:
        prompt = renderer.prompt_ids(
            [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["instruction"]}]
        )
        out = tuned.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
        assert base.tokenizer.decode(out[0, len(prompt) :]) == f"{row['output']}<|im_end|>"


def test_a_base_in_four_bits_is_trained_too(tiny_base: Path, tmp_path: Path) -> None:
    finished = go(config(tiny_base, tmp_path, method="qlora", epochs=8), tmp_path / "home")
    steps = [m.loss for m in Journal.open(tmp_path / "home" / "runs", finished.job_id).metrics() if m.kind == "step"]
    assert sum(steps[-3:]) < 0.9 * sum(steps[:3])
    base = load_base(str(tiny_base), device="cpu")  # served in 16 bits, the fingerprint is the same
    assert finished.version.manifest.base_fingerprint == base.fingerprint


def test_the_same_run_twice_makes_one_version(tiny_base: Path, tmp_path: Path) -> None:
    first = go(config(tiny_base, tmp_path), tmp_path / "home")
    second = go(config(tiny_base, tmp_path), tmp_path / "home")
    assert (str(first.version), str(second.version)) == ("counter@1", "counter@1")
    assert first.job_id != second.job_id
    third = go(config(tiny_base, tmp_path, seed=1), tmp_path / "home")
    assert str(third.version) == "counter@2"


def test_a_cancelled_run_resumes_to_the_same_adapter(tiny_base: Path, tmp_path: Path) -> None:
    asked = config(tiny_base, tmp_path)
    whole = go(asked, tmp_path / "whole")
    cancelled = go(asked, tmp_path / "home", watcher=interrupt_at(2))
    assert cancelled.state == "cancelled"
    assert f"--resume {cancelled.job_id}" in cancelled.message
    assert AdapterStore(tmp_path / "home" / "store").names() == []
    journal = Journal.open(tmp_path / "home" / "runs", cancelled.job_id)
    assert journal.status().state == "cancelled"

    resumed = resume_run(cancelled.job_id, tmp_path / "home", device="cpu")
    assert resumed.version.digest == whole.version.digest
    assert resumed.record == whole.record
    assert [metric.step for metric in journal.metrics() if metric.kind == "step"] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Conflict, match="has succeeded already, as counter@1"):
        resume_run(cancelled.job_id, tmp_path / "home", device="cpu")


def test_a_run_is_not_resumed_on_other_data(tiny_base: Path, tmp_path: Path) -> None:
    asked = config(tiny_base, tmp_path)
    cancelled = go(asked, tmp_path / "home", watcher=interrupt_at(1))
    config(tiny_base, tmp_path, ROWS[:-1])  # overwrites the file
    with pytest.raises(Conflict, match="has changed since"):
        resume_run(cancelled.job_id, tmp_path / "home", device="cpu")


def test_an_unknown_run_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run 'nobody'"):
        resume_run("nobody", tmp_path)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([*ROWS, {"instruction": "x"}], {}, r"data\.jsonl:13: output: is missing"),
        ([{"colour": "red"}], {}, r"data\.jsonl:1: no known format"),
        (ROWS[:1], {}, "one row cannot be split"),
        (ROWS[:1] * 20, {}, "all 20 rows are equal"),
        ([{"text": "only words"}] * 9, {}, "plain text.*use --objective pretrain"),
        ([{"prompt": "a", "completion": "b", "label": True}] * 2, {}, "with a verdict on it.*with --objective kto"),
        (ROWS, {"name": "../up"}, "adapter name"),
        (ROWS, {"targets": ["q_prjo"]}, "did you mean 'q_proj'"),
        (ROWS, {"max_length": 9999}, "max-length 9999 is more than"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_left(
    tiny_base: Path, tmp_path: Path, rows: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        go(config(tiny_base, tmp_path, rows, **options), tmp_path / "home")
    left = {path.name for path in (tmp_path / "home").glob("*")}
    assert left <= {"cache"}  # of the base, which the next run needs as well


def test_a_failed_run_says_so_and_publishes_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.runs.publishing.save_adapter", full)
    with pytest.raises(BianlianError, match="Free space"):
        go(config(tiny_base, tmp_path), tmp_path / "home")
    (directory,) = (tmp_path / "home" / "runs").iterdir()
    status = Journal(directory).status()
    assert status.state == "failed"
    assert f"--resume {directory.name}" in status.message
    assert not (tmp_path / "home" / "store").exists()
    monkeypatch.undo()
    assert str(resume_run(directory.name, tmp_path / "home", device="cpu").version) == "counter@1"


def test_a_diverged_run_stops_and_names_the_learning_rate(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(BianlianError, match="diverged.*at step 1.*smaller --learning-rate"):
        go(config(overflowing(tiny_base, tmp_path / "base"), tmp_path, val_split=0), tmp_path / "home")
    assert not (tmp_path / "home" / "store").exists()


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"learning_rate": 1e-12}, "learning rate 1e-12 is far below the 0.004 that is usual"),
        ({"max_steps": 1, "learning_rate": 1e-3, "schedule": "constant_with_warmup", "warmup": 1e6}, "1 step is"),
    ],
    ids=["learning rate", "steps"],
)
def test_a_run_that_has_changed_nothing_warns_and_names_the_cause(
    tiny_base: Path, tmp_path: Path, options: dict[str, Any], cause: str
) -> None:
    finished = go(config(tiny_base, tmp_path, **options), tmp_path / "home")
    assert finished.state == "succeeded" and cause in str(finished.warning)
    journal = Journal.open(tmp_path / "home" / "runs", finished.job_id)
    (warning,) = [event for event in journal.events() if event.level == "warn"]
    assert warning.message == finished.warning and "no effect" in journal.status().message
    console = Console(file=io.StringIO(), width=400)
    _print_result(console, finished)
    assert "warning: the result has no effect" in console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    learned = go(config(tiny_base, tmp_path), tmp_path / "other")
    assert learned.warning is None


def test_preferences_that_are_kept_less_than_before_are_warned_of_with_the_figures_everywhere(
    tiny_base: Path, tmp_path: Path
) -> None:
    def pairs(wanted: str, other: str) -> list[Any]:
        return [{"prompt": f"say {n}", "chosen": wanted, "rejected": other} for n in range(8)]

    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in pairs("no", "yes")))
    asked = config(tiny_base, tmp_path, pairs("yes", "no"), objective="dpo", validation_data=[held_out], max_steps=3)
    finished = go(asked, tmp_path / "home")
    journal = Journal.open(tmp_path / "home" / "runs", finished.job_id)
    (warning,) = [event for event in journal.events() if event.level == "warn"]
    assert warning.data == {"code": "got_worse"} and warning.message == finished.warning
    assert "got worse" in warning.message and "reward accuracy 0" in warning.message
    assert "--max-steps" in warning.message and "--beta" in warning.message
    assert "got worse" in journal.status().message
    figures = [event.data for event in journal.events() if event.type == "metrics"]
    assert all("reward_margin" in data and "reward_accuracy" in data for data in figures)
    assert figures[-1]["reward_accuracy"] == 0 and figures[-1]["margin"] < 0
    write_table(journal, tmp_path / "table.csv")
    last = list(csv.DictReader((tmp_path / "table.csv").open()))[-1]
    assert float(last["valid_reward_accuracy"]) == 0 and float(last["train_reward_margin"]) > 0
    checkpoint = checkpoint_objects(JobQueue(tmp_path / "home").get(finished.job_id))[0]
    assert checkpoint["metrics"]["valid_reward_accuracy"] == 0 and "train_reward_accuracy" in checkpoint["metrics"]


def test_a_run_killed_while_it_publishes_leaves_nothing_half_done_and_goes_on(tiny_base: Path, tmp_path: Path) -> None:
    whole = go(config(tiny_base, tmp_path), tmp_path / "whole")
    journal = Journal.create(tmp_path / "home" / "runs", RunConfig(train=config(tiny_base, tmp_path)))
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from adapters.store import AdapterStore\n"
        "from training.runs.run import run_job\n"
        "AdapterStore._rename_to_next_number = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "run_job(Path(sys.argv[1]), device='cpu')\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(journal.directory)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert journal.events()[-1].message == "publishing"
    store = AdapterStore(tmp_path / "home" / "store")
    assert store.names() == [] and store.numbers("counter") == []
    queue = JobQueue(tmp_path / "home")
    queue.note_dead(queue.all())
    assert journal.status().state == "failed"
    resumed = resume_run(journal.job_id, tmp_path / "home", device="cpu")
    assert str(resumed.version) == "counter@1" and resumed.version.digest == whole.version.digest
    store.sweep()
    assert [path.name for path in store.root.iterdir()] == ["counter"]


def test_a_run_of_another_process_is_left_alone(tmp_path: Path) -> None:
    asked = TrainConfig(data=(Path("x"),), name="x")
    journal = Journal.create(tmp_path, RunConfig(train=asked, data_sha256="0", base_fingerprint="0"))
    journal.set_status(Status(state="running", process=Process.of(os.getppid())))
    with pytest.raises(Conflict, match=f"running in process {os.getppid()}"):
        journal.begin()


def test_a_reader_never_sees_half_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(Metric(kind="step", step=1, loss=2.0))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    assert [metric.step for metric in journal.metrics()] == [1]


def test_the_command_line_trains_and_prints_both_losses(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    from training.cli import register

    monkeypatch.setenv("BIANLIAN_HOME", str(tmp_path / "home"))
    cli = typer.Typer()
    register(cli)
    asked = config(tiny_base, tmp_path)
    options = ["--data", str(asked.data[0]), "--name", "counter", "--base", str(tiny_base), "--epochs", "1"]
    done = CliRunner().invoke(cli, ["train", *options, "--lora-r", "4", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "validation loss: base" in done.output
    assert "published as counter@1" in done.output
    checked = CliRunner().invoke(cli, ["data", "check", str(asked.data[0]), "--base", str(tiny_base)])
    assert "rows: 12 good, 0 bad" in checked.output
    missing = CliRunner().invoke(cli, ["train", "--name", "x"])
    assert isinstance(missing.exception, Invalid)


def test_a_run_on_a_borrowed_base_ends_with_its_lender_and_goes_on_without(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(config(tiny_base, tmp_path), tmp_path / "whole")
    server = load_base(str(tiny_base), device="cpu")
    terms = terms_of(server.fingerprint, server.dtype, server.quantize, server.device)
    lender = Lender(tmp_path / "home", terms, server.model.state_dict())
    bases: list[BaseModel] = []

    def load(*args: Any, **options: Any) -> BaseModel:
        bases.append(load_base(*args, **options))
        return bases[-1]

    def end_at_2(progress: Any) -> None:
        if progress.step == 2:
            lender.close()
            assert bases[0].loan is not None and bases[0].loan.lost.wait(20)

    monkeypatch.setattr(run_module, "load_base", load)
    with pytest.raises(BaseLost, match="the server whose base this run was training on has ended.*--resume"):
        go(config(tiny_base, tmp_path), tmp_path / "home", watcher=Watcher(on_step=end_at_2))
    (directory,) = (tmp_path / "home" / "runs").iterdir()
    assert Journal(directory).status().state == "failed"
    assert AdapterStore(tmp_path / "home" / "store").names() == []
    resumed = resume_run(directory.name, tmp_path / "home", device="cpu")
    assert bases[1].loan is None and resumed.version.digest == whole.version.digest


def test_a_run_on_a_borrowed_base_makes_the_same_adapter(tiny_base: Path, tmp_path: Path) -> None:
    whole = go(config(tiny_base, tmp_path, method="qlora"), tmp_path / "whole")
    server = load_base(str(tiny_base), device="cpu", quantize="4bit")
    terms = terms_of(server.fingerprint, server.dtype, server.quantize, server.device)
    lender = Lender(tmp_path / "home", terms, server.model.state_dict())
    seen: list[int] = []
    watcher = Watcher(on_step=lambda progress: seen.append(lender.borrowers))
    finished = go(config(tiny_base, tmp_path, method="qlora"), tmp_path / "home", watcher=watcher)
    assert set(seen) == {1} and finished.version.digest == whole.version.digest
    lender.close()


@pytest.mark.parametrize(
    "writes",
    [{"method": "full"}, {"init": "pissa"}, {"init": "olora"}],
    ids=lambda options: next(iter(options.values())),
)
def test_what_changes_the_base_never_borrows_it(tiny_base: Path, tmp_path: Path, writes: dict[str, Any]) -> None:
    server = load_base(str(tiny_base), device="cpu")
    terms = terms_of(server.fingerprint, server.dtype, server.quantize, server.device)
    lender = Lender(tmp_path, terms, server.model.state_dict())
    reads = run_module._load(config(tiny_base, tmp_path), "cpu", tmp_path)
    assert reads.loan is not None
    reads.loan.close()
    assert run_module._load(config(tiny_base, tmp_path, **writes), "cpu", tmp_path).loan is None
    lender.close()
