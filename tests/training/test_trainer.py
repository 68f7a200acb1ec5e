"""What training promises: the right tokens move the right weights, and a break changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from adapters.base_model import BaseModel, load_base
from adapters.errors import Invalid
from adapters.renderer import ChatRenderer
from training.config import Plan, TrainConfig, auto_learning_rate, plan_for
from training.data.dataset import TrainingRow, load_dataset
from training.trainer import (
    KEPT_CHECKPOINTS,
    LengthGroupedRows,
    Progress,
    add_adapter,
    last_checkpoint,
    pick_targets,
    save_adapter,
    train,
    validation_loss,
)

BLOCK_LINEARS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def base(tiny_base: Path) -> BaseModel:
    """Loaded anew for each test: an adapter wraps the base's modules in place."""
    return load_base(str(tiny_base), device="cpu", dtype="float32")


@pytest.fixture
def rows(base: BaseModel, tmp_path: Path) -> list[TrainingRow]:
    path = tmp_path / "data.jsonl"
    lines = [{"instruction": f"say {n}", "output": f"{n} " * (1 + n % 4)} for n in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_dataset([path], ChatRenderer(base.tokenizer, base.stop_token_ids), max_length=64).rows


def config(**options: object) -> TrainConfig:
    values = {"data": ["unused"], "name": "x", "epochs": 2, "batch_size": 4, "lora_r": 4, "learning_rate": 1e-2}
    return TrainConfig.model_validate({**values, **options})


def plan(asked: TrainConfig) -> Plan:
    return plan_for(asked, hidden_size=64, max_model_len=512, rows=12)


def train_it(
    base: BaseModel, rows: list[TrainingRow], asked: TrainConfig, directory: Path, **options: object
) -> PeftModel:
    model = add_adapter(base, asked, plan(asked))
    train(base, model, rows, asked, plan(asked), directory, **options)  # type: ignore[arg-type]
    return model


def weights(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name}


def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    model.eval()
    out = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)  # type: ignore[operator]
    return list(out[0, len(prompt) :])


def test_every_linear_layer_of_the_blocks_is_tuned_and_nothing_else(base: BaseModel) -> None:
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    assert pick_targets(base, ()) == BLOCK_LINEARS
    model = add_adapter(base, config(), plan(config()))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 2 * len(BLOCK_LINEARS)  # A and B, in two layers
    assert all("lora_" in name and "lm_head" not in name for name in trained)
    assert all(
        torch.equal(weight, before[name.replace(".base_layer", "")])
        for name, weight in base.model.state_dict().items()
        if "lora_" not in name
    )


def test_an_unknown_target_is_refused_with_the_nearest(base: BaseModel) -> None:
    with pytest.raises(Invalid, match="did you mean 'q_proj'"):
        pick_targets(base, ["q_prjo"])


def test_validation_loss_is_the_mean_over_learned_tokens(base: BaseModel, rows: list[TrainingRow]) -> None:
    total, count = 0.0, 0
    for row in rows:  # one by one, by transformers' own loss
        with torch.no_grad():
            loss = base.model(torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        total += float(loss) * row.learned_tokens
        count += row.learned_tokens
    assert validation_loss(base.model, rows, base.tokenizer.pad_token_id) == pytest.approx(total / count, rel=1e-5)


def test_a_fresh_adapter_changes_nothing(base: BaseModel, rows: list[TrainingRow]) -> None:
    pad = base.tokenizer.pad_token_id
    before = validation_loss(base.model, rows, pad)
    assert validation_loss(add_adapter(base, config(), plan(config())), rows, pad) == pytest.approx(before, rel=1e-6)


def test_the_first_reported_loss_is_that_of_the_base(base: BaseModel, rows: list[TrainingRow], tmp_path: Path) -> None:
    seen: list[Progress] = []
    expected = validation_loss(base.model, rows, base.tokenizer.pad_token_id)
    train_it(base, rows, config(batch_size=12, epochs=1), tmp_path / "run", on_step=seen.append)
    (only,) = seen
    assert only.loss == pytest.approx(expected, rel=1e-3)
    assert (only.step, only.steps) == (1, 1)
    assert only.tokens_per_s > 0


def test_training_lowers_the_loss_and_keeps_two_checkpoints(
    base: BaseModel, rows: list[TrainingRow], tmp_path: Path
) -> None:
    pad = base.tokenizer.pad_token_id
    before = validation_loss(base.model, rows, pad)
    model = train_it(base, rows, config(epochs=4, save_steps=2), tmp_path / "run")
    assert validation_loss(model, rows, pad) < 0.8 * before
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == KEPT_CHECKPOINTS
    assert last_checkpoint(tmp_path / "run") == (tmp_path / "run" / "checkpoint-12", 12)


def test_a_resumed_run_equals_one_that_never_stopped(tiny_base: Path, rows: list[TrainingRow], tmp_path: Path) -> None:
    def fresh() -> BaseModel:
        return load_base(str(tiny_base), device="cpu", dtype="float32")

    # Dropout: the random state must be resumed too. It stops in the middle of the warm-up.
    asked = config(epochs=3, lora_dropout=0.2, warmup=5)
    whole = weights(train_it(fresh(), rows, asked, tmp_path / "whole"))

    seen: list[int] = []
    stopped = train_it(
        fresh(),
        rows,
        asked,
        tmp_path / "broken",
        on_step=lambda progress: seen.append(progress.step),
        cancelled=lambda: len(seen) >= 3,  # in the middle of the second epoch
    )
    checkpoint, step = last_checkpoint(tmp_path / "broken") or (None, 0)
    assert 3 <= step < 9
    assert any(not torch.equal(weights(stopped)[name], whole[name]) for name in whole)
    resumed = weights(train_it(fresh(), rows, asked, tmp_path / "broken", resume_from=checkpoint))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_saved_adapter_says_the_same_in_plain_peft(
    base: BaseModel, rows: list[TrainingRow], tmp_path: Path, tiny_base: Path
) -> None:
    model = train_it(base, rows, config(epochs=4), tmp_path / "run")
    save_adapter(model, tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "tiny"  # the name, not a path of this machine
    plain = PeftModel.from_pretrained(
        load_base(str(tiny_base), device="cpu", dtype="float32").model, tmp_path / "adapter"
    )
    prompt = rows[0].input_ids[:6]
    assert greedy(plain, prompt) == greedy(model, prompt)
    assert greedy(plain, prompt) != greedy(plain.unload(), prompt)


def test_each_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    lengths = [(n * 37) % 50 for n in range(103)]
    sampler = LengthGroupedRows(lengths, batch_size=8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(103))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    batches = [first[i : i + 8] for i in range(0, 96, 8)]
    assert max(max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches) <= 8


def test_wide_bases_get_smaller_steps() -> None:
    assert 2e-3 <= auto_learning_rate(320) <= 4e-3
    assert all(1e-4 <= auto_learning_rate(width) <= 2e-4 for width in (2048, 4096, 8192))


def test_a_plan_fits_the_base_and_the_data() -> None:
    auto = TrainConfig(data=(Path("x"),), name="x")
    small = plan_for(auto, hidden_size=320, max_model_len=1024, rows=3000)
    large = plan_for(auto, hidden_size=4096, max_model_len=32768, rows=3000)
    assert (small.batch_size, small.micro_batch_size, small.max_length) == (16, 16, 1024)
    assert (large.batch_size, large.micro_batch_size, large.max_length) == (16, 4, 2048)
    assert large.gradient_checkpointing and not small.gradient_checkpointing
    assert plan_for(auto, hidden_size=320, max_model_len=1024, rows=90).batch_size == 4
    with pytest.raises(Invalid, match="max-length 2000 is more than the base 'bianlian-mini' reads"):
        plan_for(auto.model_copy(update={"max_length": 2000}), hidden_size=320, max_model_len=1024, rows=9)
