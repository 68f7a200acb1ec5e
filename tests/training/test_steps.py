"""What the steps of a run promise: they stop when there is nothing to gain, the best of them is kept, and the same
seed makes the same run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from adapters.base_model import BaseModel, load_base
from adapters.errors import Invalid
from training.cli import register
from training.combinations import check_combinations
from training.config import Plan, TrainConfig, parse_config, plan_for
from training.data.dataset import TrainingRow
from training.data.files import Place
from training.runs.journal import Journal
from training.runs.run import Watcher, start_run
from training.trainer import Evaluation, Trained, Validation, last_checkpoint, train, trainable, validation_loss

ROWS = [TrainingRow([*range(9 + n, 19 + n)], [-100] * 4 + [*range(13 + n, 19 + n)], Place("x", n)) for n in range(8)]
# The same prompts with other answers: the better ROWS are learned, the worse these become.
CONTRARY = [
    TrainingRow(row.input_ids[:4] + [7000 + n] * 6, [-100] * 4 + [7000 + n] * 6, row.place)
    for n, row in enumerate(ROWS)
]


@pytest.fixture
def base(tiny_base: Path) -> BaseModel:
    return load_base(str(tiny_base), device="cpu", dtype="float32")


def config(**options: object) -> TrainConfig:
    values = {"data": ["unused"], "name": "x", "epochs": 3, "batch_size": 4, "lora_r": 4, "learning_rate": 5e-3}
    return TrainConfig.model_validate({**values, **options})


def plan(asked: TrainConfig) -> Plan:
    return plan_for(asked, hidden_size=64, max_model_len=512, rows=len(ROWS))


def trained(
    base: BaseModel, asked: TrainConfig, directory: Path, held_out: list[TrainingRow] | None = None, **options: Any
) -> tuple[Any, Trained, list[tuple[int, Evaluation]]]:
    fresh = load_base(str(base.directory), device="cpu", dtype="float32")
    model = trainable(fresh, asked, plan(asked))
    seen: list[tuple[int, Evaluation]] = []
    pad = base.tokenizer.pad_token_id
    validation = Validation(model, held_out, objective="sft", beta=0.1, pad_token_id=pad) if held_out else None
    result = train(
        fresh,
        model,
        ROWS,
        asked,
        plan(asked),
        directory,
        validation=validation,
        on_evaluation=lambda step, evaluation: seen.append((step, evaluation)),
        **options,
    )
    return model, result, seen


def weights(model: Any) -> list[torch.Tensor]:
    return [weight.detach() for name, weight in model.named_parameters() if "lora_" in name]


def test_training_stops_when_the_validation_loss_stops_falling(base: BaseModel, tmp_path: Path) -> None:
    asked = config(epochs=20, eval_steps=1, early_stopping=3)
    model, result, seen = trained(base, asked, tmp_path, CONTRARY)
    losses = [evaluation.loss for _, evaluation in seen]
    best = losses.index(min(losses))
    assert result.finished and result.stopped_early and result.steps < 40
    assert len(losses) == best + 1 + 3
    assert result.best_step == seen[best][0]
    # What is published is the best, not the last.
    assert validation_loss(model, CONTRARY, base.tokenizer.pad_token_id) == pytest.approx(min(losses), rel=1e-5)

    # The process was lost after its last step: there is nothing left to train.
    found = last_checkpoint(tmp_path)
    assert found is not None and found[1] == result.steps
    again, repeated, no_more = trained(base, asked, tmp_path, CONTRARY, resume_from=found[0])
    assert (repeated.steps, repeated.best_step, repeated.stopped_early) == (result.steps, result.best_step, True)
    assert no_more == []
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(model), strict=True))


def test_patience_is_remembered_across_a_break(base: BaseModel, tmp_path: Path) -> None:
    asked = config(epochs=20, eval_steps=1, early_stopping=3)
    whole, result, seen = trained(base, asked, tmp_path / "whole", CONTRARY)
    first: list[int] = []
    trained(
        base,
        asked,
        tmp_path / "broken",
        CONTRARY,
        on_step=lambda progress: first.append(progress.step),
        cancelled=lambda: len(first) >= result.steps - 2,
    )
    found = last_checkpoint(tmp_path / "broken")
    assert found is not None and found[1] == result.steps - 1
    model, resumed, rest = trained(base, asked, tmp_path / "broken", CONTRARY, resume_from=found[0])
    assert (resumed.steps, resumed.best_step) == (result.steps, result.best_step)
    assert [step for step, _ in rest] == [result.steps]
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(whole), strict=True))


def test_the_last_weights_are_kept_where_the_best_are_not_wanted(base: BaseModel, tmp_path: Path) -> None:
    model, result, seen = trained(base, config(epochs=4, keep_best=False), tmp_path, CONTRARY)
    assert [step for step, _ in seen] == [2, 4, 6, 8]
    assert result.best_step is None
    last = validation_loss(model, CONTRARY, base.tokenizer.pad_token_id)
    assert last == pytest.approx(seen[-1][1].loss, rel=1e-5) and last > min(one.loss for _, one in seen)


@pytest.mark.parametrize("options", [{}, {"use_dora": True, "lora_dropout": 0.1}, {"neftune_alpha": 5.0}])
def test_the_same_seed_makes_the_same_run_bit_for_bit(base: BaseModel, tmp_path: Path, options: dict[str, Any]) -> None:
    first, again, other = (
        weights(trained(base, config(**options, epochs=1, seed=seed), tmp_path / name)[0])
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear", "warmup": 0}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"schedule": "constant_with_warmup", "warmup": 3}, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        ({"schedule": "constant_with_warmup", "warmup": 0.5}, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        ({"schedule": "linear", "warmup": 0.34}, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ({"schedule": "linear"}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),  # a twentieth of six steps is none
        ({"schedule": "linear", "warmup": 0.05, "max_steps": 1}, [1]),
        ({"schedule": "cosine", "warmup": 0}, [1, 0.933, 0.75, 0.5, 0.25, 0.067]),
        ({"schedule": "cosine_with_min_lr", "warmup": 0}, [1, 0.94, 0.775, 0.55, 0.325, 0.16]),
        ({"schedule": "constant", "max_steps": 2}, [1, 1]),
    ],
    ids=str,
)
def test_schedules(base: BaseModel, tmp_path: Path, options: dict[str, Any], rates: list[float]) -> None:
    seen: list[float] = []
    trained(base, config(**options), tmp_path, on_step=lambda progress: seen.append(progress.learning_rate / 5e-3))
    assert seen == pytest.approx(rates, abs=2e-3)


@pytest.mark.parametrize("options", [{"micro_batch_size": 4}, {"gradient_checkpointing": True}], ids=str)
def test_what_saves_memory_does_not_change_what_is_learned(
    base: BaseModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = {"batch_size": len(ROWS), "epochs": 2}  # one batch an epoch, so that its rows are the same ones
    plainly = weights(trained(base, config(**whole), tmp_path / "a")[0])
    thriftily = weights(trained(base, config(**whole, **options), tmp_path / "b")[0])
    assert all(torch.allclose(a, b, atol=2e-4) for a, b in zip(plainly, thriftily, strict=True))


def test_gradients_are_cut_and_weights_decay(base: BaseModel, tmp_path: Path) -> None:
    """With steps too small to learn in, only the decay moves weights."""
    asked = config(
        learning_rate=1e-2, weight_decay=1.0, max_grad_norm=1e-12, optimizer="adamw", epochs=1, schedule="constant"
    )
    model, _, steps = trained(base, asked, tmp_path)
    assert all(float(b.norm()) < 1e-3 for name, b in model.named_parameters() if "lora_B" in name)
    start = trainable(load_base(str(base.directory), device="cpu", dtype="float32"), asked, plan(asked))
    for (name, now), (_, before) in zip(model.named_parameters(), start.named_parameters(), strict=True):
        if "lora_A" in name:
            assert float(now.norm()) == pytest.approx(float(before.norm()) * 0.99**2, rel=1e-3)


# --- plans and refusals ---


def test_a_plan_says_why() -> None:
    auto = TrainConfig(data=(Path("x"),), name="x")
    planned = plan_for(auto, hidden_size=320, max_model_len=1024, rows=3000)
    lines = "\n".join(planned.lines())
    assert "learning_rate 0.0032: for hidden size 320" in lines
    assert "lora_alpha 32: twice the rank" in lines
    assert "max_length 1024: what the base reads" in lines
    asked = auto.model_copy(update={"learning_rate": 1e-3, "lora_alpha": 5, "batch_size": 6})
    assert not {"learning_rate", "lora_alpha", "batch_size"} & set(
        plan_for(asked, hidden_size=320, max_model_len=1024, rows=3000).reasons
    )
    tenth, twice = 3.2e-4, 6.4e-3
    for update, rate in (
        ({"objective": "dpo"}, tenth),
        ({"method": "full"}, tenth),
        ({"learning_rate_multiplier": 2.0}, twice),
    ):
        other = plan_for(auto.model_copy(update=update), hidden_size=320, max_model_len=1024, rows=3000)
        assert other.learning_rate == pytest.approx(rate)
    qlora = auto.model_copy(update={"method": "qlora"})
    on_gpu = plan_for(qlora, hidden_size=4096, max_model_len=1024, rows=9, on_cuda=True)
    assert on_gpu.optimizer == "paged_adamw_8bit" and "leaves the GPU" in on_gpu.reasons["optimizer"]
    rs = plan_for(auto.model_copy(update={"use_rslora": True}), hidden_size=320, max_model_len=1024, rows=3000)
    assert rs.lora_alpha == 8


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"method": "qlora", "init": "pissa"}, "init", "use init default, or method lora"),
        ({"method": "full", "use_dora": True}, "use_dora", "trains the base itself"),
        ({"method": "full", "loraplus_ratio": 16}, "loraplus_ratio", "or use lora"),
        ({"init": "olora", "use_dora": True}, "use_dora", "leave out one of the two"),
        ({"objective": "dpo", "packing": True}, "packing", "cannot pack rows"),
        ({"objective": "kto", "replay_data": ["x"]}, "replay_data", "learns from preferences"),
        ({"objective": "orpo", "neftune_alpha": 5}, "neftune_alpha", "would compare noise"),
        ({"beta": 0.2}, "beta", "objective sft has none"),
        ({"objective": "pretrain", "system": "You."}, "system", "no system prompt"),
        ({"objective": "kto", "micro_batch_size": 1}, "micro_batch_size", "must be 2 or more"),
        ({"val_split": 0, "early_stopping": 2}, "early_stopping", "give val_split or validation_data"),
        ({"val_split": 0, "eval_steps": 2}, "eval_steps", "needs held-out rows"),
        ({"replay_share": 0.3}, "replay_share", "give that too"),
        ({"warmup": 2.5}, "warmup", "neither a share"),
        ({"schedule": "constant", "warmup": 10}, "warmup", "use constant_with_warmup"),
    ],
    ids=str,
)
def test_what_makes_no_sense_together_is_refused_with_the_way_out(
    options: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(Invalid, match=message) as caught:
        check_combinations(parse_config({"data": ["x"], "name": "x", **options}))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "micro_batch_size": 4}, "does not divide batch-size 6; use one of 1, 2, 3, 6"),
        ({"optimizer": "paged_adamw_8bit"}, "use adamw_8bit"),
        ({"objective": "kto", "batch_size": 5}, "use an even batch-size"),
    ],
    ids=str,
)
def test_what_this_machine_or_base_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        plan_for(parse_config({"data": ["x"], "name": "x", **options}), hidden_size=2048, max_model_len=512, rows=9)


# --- whole runs ---


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_replayed_rows_are_learned_and_never_validated_on(tiny_base: Path, tmp_path: Path) -> None:
    new = [{"instruction": f"say {n}", "output": f"{n} and {n + 1}"} for n in range(20)]
    old = [{"instruction": f"old {n}", "output": "as before"} for n in range(50)]
    held_out = [{"instruction": "say 99", "output": "99 and 100"}]
    values = {
        "data": [write(tmp_path / "new.jsonl", new)],
        "replay_data": [write(tmp_path / "old.jsonl", old)],
        "validation_data": [write(tmp_path / "held_out.jsonl", held_out)],
        "replay_share": 0.2,
        **{"name": "x", "base": str(tiny_base), "system": "You count.", "epochs": 1, "batch_size": 5, "lora_r": 2},
    }
    started: list[Any] = []
    watcher = Watcher(on_start=started.append)
    finished = start_run(parse_config(values), tmp_path / "home", device="cpu", watcher=watcher)
    assert (started[0].rows, started[0].validation_rows) == (25, 1)  # 20 and a fifth of all
    assert finished.record is not None and finished.record.steps == 5
    document = json.loads((tmp_path / "home" / "runs" / finished.job_id / "plan.json").read_text())
    assert document["values"]["batch_size"] == 5
    assert "learning_rate" in document["reasons"] and "batch_size" not in document["reasons"]


def test_a_preference_run_records_its_margins(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {n} a number?", "chosen": f"Yes, {n} is.", "rejected": "No idea."} for n in range(16)]
    values = {
        "data": [write(tmp_path / "pairs.jsonl", rows)],
        **{"name": "x", "base": str(tiny_base), "objective": "dpo", "epochs": 2, "batch_size": 4, "lora_r": 4},
        "learning_rate": 2e-3,
    }
    finished = start_run(parse_config(values), tmp_path / "home", device="cpu")
    metrics = Journal.open(tmp_path / "home" / "runs", finished.job_id).metrics()
    first = next(metric for metric in metrics if metric.kind == "base_validation")
    last = next(metric for metric in metrics if metric.kind == "tuned_validation")
    assert first.margin is not None and last.margin is not None and last.margin > first.margin
    assert (first.reward_margin, first.reward_accuracy) == (0.0, 0.5)
    assert last.reward_accuracy == 1.0
    assert all(metric.reward_margin is not None for metric in metrics if metric.kind == "step")


def test_the_command_line_names_what_to_change(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIANLIAN_HOME", str(tmp_path / "home"))
    cli = typer.Typer()
    register(cli)
    rows = [{"prompt": f"Is {n} a number?", "chosen": f"Yes, {n} is.", "rejected": "No idea."} for n in range(8)]
    data = write(tmp_path / "pairs.jsonl", rows)
    options = ["train", "--data", data, "--name", "x", "--base", str(tiny_base), "--device", "cpu"]
    refused = CliRunner().invoke(cli, options)
    assert isinstance(refused.exception, Invalid) and "train on them with --objective dpo" in str(refused.exception)
    refused = CliRunner().invoke(cli, [*options, "--objective", "dpo", "--packing"])
    assert isinstance(refused.exception, Invalid) and refused.exception.param == "packing"
    refused = CliRunner().invoke(cli, ["train", "--resume", "x-1", "--lora-r", "4"])
    assert isinstance(refused.exception, Invalid) and "leave out --lora-r" in str(refused.exception)
    done = CliRunner().invoke(
        cli, [*options, "--objective", "dpo", "--max-steps", "2", "--batch-size", "4", "--targets", "q_proj,v_proj"]
    )
    assert done.exit_code == 0, done.output
    assert "learning_rate" in done.output and "a tenth, since preferences" in done.output
    assert "held-out preferences: margin" in done.output
    (saved,) = (tmp_path / "home" / "store" / "x" / "1").glob("*.safetensors")
    assert {name.split(".")[-3] for name in load_file(saved)} == {"q_proj", "v_proj"}
    listed = CliRunner().invoke(cli, ["train", "--help"]).output
    assert (
        listed.index("--objective") < listed.index("--max-length") < listed.index("--lora-r") < listed.index("--seed")
    )
