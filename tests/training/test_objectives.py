"""What each objective promises: it is fed our own tokens, it moves held-out rows the right way, and a break changes
nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.base_model import BaseModel, load_base
from adapters.errors import Invalid
from adapters.renderer import ChatRenderer
from training.config import Plan, TrainConfig, plan_for
from training.data.dataset import load_dataset
from training.data.preferences import PreferenceDataset, load_preferences
from training.trainer import (
    Evaluation,
    Progress,
    Validation,
    keeps_rows_apart,
    last_checkpoint,
    train,
    trainable,
)
from training.trainer.objectives import build
from training.trainer.packing import PackedBatch, pack
from training.trainer.scoring import log_likelihoods, preference_likelihoods, token_losses

PREFERENCES = ["dpo", "kto", "orpo"]


def fresh(tiny_base: Path) -> BaseModel:
    """Loaded anew: an adapter wraps the base's modules in place."""
    return load_base(str(tiny_base), device="cpu", dtype="float32")


@pytest.fixture
def base(tiny_base: Path) -> BaseModel:
    return fresh(tiny_base)


@pytest.fixture
def renderer(base: BaseModel) -> ChatRenderer:
    return ChatRenderer(base.tokenizer, base.stop_token_ids)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs_file(directory: Path, count: int = 24) -> Path:
    rows = [
        {"prompt": f"Is {n} a number?", "chosen": f"Yes, {n} is one.", "rejected": f"No idea, ask {n + 1}."}
        for n in range(count)
    ]
    return write(directory / "pairs.jsonl", rows)


def preferences(directory: Path, renderer: ChatRenderer, objective: Any) -> PreferenceDataset:
    return load_preferences([pairs_file(directory)], renderer, objective=objective, max_length=128)


def config(objective: str = "sft", **options: object) -> TrainConfig:
    values = {"data": ["unused"], "name": "x", "epochs": 4, "batch_size": 4, "lora_r": 4, "learning_rate": 5e-3}
    return TrainConfig.model_validate({**values, "objective": objective, **options})


def plan(asked: TrainConfig, max_length: int = 128) -> Plan:
    sized = asked.model_copy(update={"max_length": max_length})
    return plan_for(sized, hidden_size=64, max_model_len=512, rows=12, packed_rows=6)


def run(
    base: BaseModel, asked: TrainConfig, rows: Any, held_out: Any, directory: Path, **options: Any
) -> tuple[Any, Evaluation, Evaluation]:
    """The trained model, and `held_out` before and after."""
    model = trainable(base, asked, plan(asked))
    pad = base.tokenizer.pad_token_id
    validation = Validation(model, held_out, objective=asked.objective, beta=plan(asked).beta, pad_token_id=pad)
    before = validation.measure(model)
    train(base, model, rows, asked, plan(asked), directory, validation=validation, **options)
    return model, before, validation.measure(model)


@pytest.mark.parametrize("objective", PREFERENCES)
def test_held_out_pairs_are_told_apart_better_after_training(
    base: BaseModel, renderer: ChatRenderer, tmp_path: Path, objective: str
) -> None:
    training, held_out = preferences(tmp_path, renderer, objective).split(0.25, seed=0)
    assert not {tuple(row.prompt_ids) for row in training} & {tuple(row.prompt_ids) for row in held_out}
    seen: list[Progress] = []
    _, before, after = run(base, config(objective), training, held_out, tmp_path / "run", on_step=seen.append)
    assert before.margin is not None and after.margin is not None
    assert after.margin > before.margin + (0.5 if objective == "orpo" else 5)
    assert after.reward_margin is not None and before.reward_margin is not None
    assert after.reward_margin > before.reward_margin
    assert after.reward_accuracy is not None and after.reward_accuracy > 0.9
    assert after.loss < before.loss
    assert seen[-1].reward_margin is not None
    if objective != "orpo":  # measured against the model before training, so nothing has been gained yet
        assert (before.reward_margin, before.reward_accuracy) == (0.0, 0.5)


@pytest.mark.parametrize("options", [{"method": "full", "lora_r": 16}, {"method": "qlora"}, {"init": "pissa"}], ids=str)
def test_preferences_are_learned_by_any_method(
    tiny_base: Path, renderer: ChatRenderer, tmp_path: Path, options: dict[str, Any]
) -> None:
    """A reference that TRL would load a second time (full), or get wrong with the adapter off (PiSSA)."""
    rows = preferences(tmp_path, renderer, "dpo").rows[:8]
    quantize: Any = "4bit" if options.get("method") == "qlora" else "none"
    base = load_base(str(tiny_base), device="cpu", dtype="float32", quantize=quantize)
    asked = config("dpo", **{"epochs": 2, "learning_rate": 1e-3, **options})
    seen: list[Progress] = []
    _, before, after = run(base, asked, rows, rows, tmp_path / "run", on_step=seen.append)
    assert seen[0].loss == pytest.approx(0.6931, abs=2e-2)  # against itself
    assert (before.reward_margin, before.reward_accuracy) == (0.0, 0.5)
    assert after.reward_margin is not None and after.reward_margin > 0.1


def test_what_preferences_are_measured_against_is_the_base_with_the_adapter_off(
    base: BaseModel, renderer: ChatRenderer, tmp_path: Path
) -> None:
    rows = preferences(tmp_path, renderer, "dpo").rows
    pad = base.tokenizer.pad_token_id
    model, _, _ = run(base, config("dpo", epochs=1), rows, rows[:2], tmp_path / "run")
    with model.disable_adapter():
        off = preference_likelihoods(model, rows, "dpo", pad_token_id=pad)
    untrained = preference_likelihoods(fresh(base.directory).model, rows, "dpo", pad_token_id=pad)
    assert off.wanted == pytest.approx(untrained.wanted, abs=1e-3)
    assert list(model.peft_config) == ["default"]  # no copy of the adapter beside it


@pytest.mark.parametrize("objective", PREFERENCES)
def test_our_validation_loss_is_the_one_that_trl_trains_on(
    base: BaseModel, renderer: ChatRenderer, tmp_path: Path, objective: str
) -> None:
    rows = preferences(tmp_path, renderer, objective).rows[:8]
    asked = config(objective, batch_size=8, epochs=1, learning_rate=1e-2)
    model = trainable(base, asked, plan(asked))
    validation = Validation(
        model, rows, objective=asked.objective, beta=plan(asked).beta, pad_token_id=base.tokenizer.pad_token_id
    )
    trainer = build(base, model, rows, asked, plan(asked), tmp_path, validation=validation, callback=nothing())
    for _, weight in model.named_parameters():
        if weight.requires_grad:  # as if trained, and still small
            weight.data += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])  # type: ignore[attr-defined]
    with torch.no_grad():
        theirs = float(trainer.compute_loss(model, batch))
    measured = validation.measure(model)
    assert measured.loss == pytest.approx(theirs, rel=1e-3)
    if objective == "dpo":
        assert abs(measured.loss - 0.6931) > 1e-3  # it has moved


def test_prompts_are_the_served_ones_to_the_token(renderer: ChatRenderer, tmp_path: Path) -> None:
    row = preferences(tmp_path, renderer, "dpo").rows[3]
    assert row.prompt_ids == renderer.prompt_ids([{"role": "user", "content": "Is 3 a number?"}])
    assert row.chosen_ids is not None and row.chosen_ids[-1] in renderer.stop_token_ids
    assert renderer.tokenizer.decode(row.chosen_ids[:-1]) == "Yes, 3 is one."


def test_kto_learns_from_pairs_as_two_verdicts_and_splits_by_prompt(renderer: ChatRenderer, tmp_path: Path) -> None:
    dataset = preferences(tmp_path, renderer, "kto")
    assert [row.wanted for row in dataset.rows[:4]] == [True, False, True, False]
    training, held_out = dataset.split(0.25, seed=1)
    assert (len(training), len(held_out)) == (36, 12)


@pytest.mark.parametrize(
    ("objective", "row", "message"),
    [
        (
            "dpo",
            {"instruction": "a", "output": "b"},
            "learns from preferences, and these are alpaca rows; use --obj",
        ),
        ("kto", {"text": "only words"}, "use --objective pretrain"),
        ("orpo", {"prompt": "a", "completion": "b", "label": True}, "compares two answers.*use --objective kto"),
        ("kto", {"prompt": "a", "completion": "b", "label": True}, "all of these have the same label"),
    ],
)
def test_rows_an_objective_cannot_learn_from_are_refused_with_the_one_that_can(
    renderer: ChatRenderer, tmp_path: Path, objective: Any, row: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [row] * 2)
    with pytest.raises(Invalid, match=message):
        load_preferences([path], renderer, objective=objective, max_length=128)


# --- plain text, packed ---


def test_packed_rows_do_not_read_each_other(base: BaseModel, renderer: ChatRenderer, tmp_path: Path) -> None:
    """For eager and fused attention: the likelihood of every row is the same alone and in company."""
    path = write(tmp_path / "texts.jsonl", [{"text": f"Row {n}. " + "word " * (3 * n)} for n in range(1, 7)])
    rows = load_dataset([path], renderer, max_length=64).rows
    table = pack(rows, 64)
    assert len(table) < len(rows)
    assert any(len(lengths) > 1 for lengths in table["seq_lengths"])
    batch = PackedBatch(base.tokenizer.pad_token_id)([table[index] for index in range(len(table))])
    for attention in ("eager", "sdpa"):
        base.model.set_attn_implementation(attention)
        alone = log_likelihoods(base.model, rows, base.tokenizer.pad_token_id)
        with torch.no_grad():
            losses, _ = token_losses(base.model, dict(batch))
        assert float(losses.sum()) == pytest.approx(-sum(alone), rel=1e-5)
        misled = {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])}
        with torch.no_grad():
            mixed, _ = token_losses(base.model, misled)
        assert abs(float(mixed.sum() - losses.sum())) > 1e-2 * float(losses.sum())  # else the test shows nothing
    assert keeps_rows_apart(base)


def test_a_base_that_reads_across_packed_rows_is_found_out(base: BaseModel) -> None:
    forward = base.model.forward
    base.model.forward = lambda *args, position_ids, **kwargs: forward(*args, **kwargs)
    assert not keeps_rows_apart(base)
    asked = config(packing=True)
    with pytest.raises(Invalid, match="would read each other"):
        plan_for(asked, hidden_size=64, max_model_len=512, rows=12, packed_rows=None)


def test_packed_text_is_learned(base: BaseModel, renderer: ChatRenderer, tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", [{"text": f"{n} comes after {n - 1}. " * 2} for n in range(24)])
    training, held_out = load_dataset([path], renderer, max_length=64).split(0.25, seed=0)
    asked = config("pretrain", epochs=6, batch_size=2, learning_rate=1e-2)
    assert plan(asked).packing and "each reading itself alone" in plan(asked).reasons["packing"]
    seen: list[Progress] = []
    _, before, after = run(base, asked, training, held_out, tmp_path / "run", on_step=seen.append)
    assert after.loss < 0.8 * before.loss
    assert after.margin is None
    assert len(seen) < 6 * len(training) / 2  # fewer steps than rows would need unpacked


@pytest.mark.parametrize("objective", [*PREFERENCES, "pretrain"])
def test_a_resumed_run_equals_one_that_never_stopped(
    tiny_base: Path, renderer: ChatRenderer, tmp_path: Path, objective: str
) -> None:
    if objective == "pretrain":
        path = write(tmp_path / "texts.jsonl", [{"text": f"{n} comes after {n - 1}. " * 2} for n in range(24)])
        rows: Any = load_dataset([path], renderer, max_length=64).rows
    else:
        rows = preferences(tmp_path, renderer, objective).rows[:12]
    size = 1 if objective == "pretrain" else 4
    asked = config(objective, epochs=3, batch_size=size, lora_dropout=0.2)  # dropout: random state is resumed too

    def weights(model: Any) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name}

    whole = weights(run(fresh(tiny_base), asked, rows, rows[:3], tmp_path / "whole")[0])
    seen: list[int] = []
    run(
        fresh(tiny_base),
        asked,
        rows,
        rows[:3],
        tmp_path / "broken",
        on_step=lambda progress: seen.append(progress.step),
        cancelled=lambda: len(seen) >= 4,  # in the middle of the second epoch
    )
    checkpoint, step = last_checkpoint(tmp_path / "broken") or (None, 0)
    assert step == 5
    resumed = run(fresh(tiny_base), asked, rows, rows[:3], tmp_path / "broken", resume_from=checkpoint)[0]
    assert all(torch.equal(value, whole[name]) for name, value in weights(resumed).items())


def nothing() -> Any:
    from transformers import TrainerCallback

    return TrainerCallback()
