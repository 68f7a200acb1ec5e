"""What the kinds of adapter promise: what was trained is what is published, in plain PEFT and in our engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

from adapters.base_model import BaseModel, load_base
from adapters.errors import Conflict, Invalid
from adapters.manifest import read_manifest
from adapters.settings import Settings
from adapters.store import AdapterStore
from serving.engine.engine import Engine
from tests.serving.test_engine import version_of
from tests.serving.test_peft_variants import answers
from tests.serving.test_peft_variants import asked as request_for
from training.api.objects import checkpoint_objects, job_object
from training.config import Plan, TrainConfig, plan_for
from training.data.dataset import TrainingRow
from training.data.files import Place
from training.jobs.queue import JobQueue
from training.runs.bases import check_base_name
from training.runs.run import run_job, start_run
from training.trainer import Progress, Trained, Validation, add_adapter, last_checkpoint, save_adapter, train, trainable
from training.trainer.objectives import build
from training.trainer.scoring import validation_loss

PROMPT = torch.tensor([[11, 45, 99, 310, 7, 23, 512, 8, 64, 5]])


def fresh(tiny_base: Path) -> BaseModel:
    return load_base(str(tiny_base), device="cpu", dtype="float32")


@pytest.fixture
def base(tiny_base: Path) -> BaseModel:
    return fresh(tiny_base)


ROWS = [TrainingRow([*range(9 + n, 19 + n)], [-100] * 4 + [*range(13 + n, 19 + n)], Place("x", n)) for n in range(8)]


def config(**options: object) -> TrainConfig:
    values = {"data": ["unused"], "name": "x", "epochs": 3, "batch_size": 4, "lora_r": 4, "learning_rate": 2e-3}
    return TrainConfig.model_validate({**values, **options})


def plan(asked: TrainConfig) -> Plan:
    return plan_for(asked, hidden_size=64, max_model_len=512, rows=len(ROWS))


def logits(model: Any, ids: torch.Tensor = PROMPT) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(ids, use_cache=False).logits[0].float()  # type: ignore[no-any-return]


def served(tiny_base: Path, adapter: Path) -> tuple[list[int], torch.Tensor]:
    """What our engine says to PROMPT, greedily, and the logits (tokens, vocabulary) it chose from."""
    engine = Engine(fresh(tiny_base), Settings(kv_cache_memory=0.02, max_batch_tokens=64, prefix_cache=False))
    version = version_of("a", adapter)
    engine.bank.warm(version)
    tokens, chosen_from = answers(engine, [request_for("one", PROMPT[0].tolist(), ((version.digest, 1.0),))])
    return tokens["one"][PROMPT.shape[1] :], chosen_from["one"]


@pytest.mark.parametrize(
    "options",
    [
        {"init": "pissa"},
        {"init": "olora"},
        {"init": "pissa", "use_rslora": True},
        {"use_dora": True},
        {"use_dora": True, "lora_dropout": 0.2},
        {"init": "gaussian", "use_rslora": True},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_what_was_trained_is_what_peft_and_the_engine_serve(
    tiny_base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    base = fresh(tiny_base)
    untrained = logits(base.model)
    asked = config(**options)
    model = trainable(base, asked, plan(asked))
    assert torch.allclose(logits(model), untrained, atol=1e-3)  # whatever the start, it is the base's
    train(base, model, ROWS, asked, plan(asked), tmp_path / "run")
    trained = logits(model)
    assert (trained - untrained).abs().max() > 0.1
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(model), trained)  # saving changes nothing
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] in (True, "gaussian")
    plain = PeftModel.from_pretrained(fresh(tiny_base).model, tmp_path / "adapter")
    assert torch.allclose(logits(plain), trained, atol=1e-3)
    tokens, chosen_from = served(tiny_base, tmp_path / "adapter")
    whole = torch.cat([PROMPT, torch.tensor([tokens])], dim=1)
    assert torch.allclose(chosen_from, logits(model, whole)[PROMPT.shape[1] - 1 : -1], atol=1e-3)


def test_a_snapshot_between_steps_changes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    """Turning PiSSA into plain LoRA while it trains; training must not notice."""
    asked = config(init="pissa", lora_dropout=0.2)

    def trained(directory: Path, *, snapshots: bool) -> list[torch.Tensor]:
        base = fresh(tiny_base)
        model = trainable(base, asked, plan(asked))

        def snapshot(progress: Progress) -> None:
            if snapshots:
                save_adapter(model, directory / f"snapshot-{progress.step}")

        train(base, model, ROWS, asked, plan(asked), directory / "run", on_step=snapshot)
        return [weight.detach() for name, weight in model.named_parameters() if "lora_" in name]

    quietly = trained(tmp_path / "a", snapshots=False)
    watched = trained(tmp_path / "b", snapshots=True)
    assert all(torch.equal(a, b) for a, b in zip(quietly, watched, strict=True))


def test_a_run_that_began_with_pissa_resumes_exactly(tiny_base: Path, tmp_path: Path) -> None:
    asked = config(init="pissa")

    def trained(directory: Path, **options: Any) -> list[torch.Tensor]:
        base = fresh(tiny_base)
        model = trainable(base, asked, plan(asked))
        train(base, model, ROWS, asked, plan(asked), directory, **options)
        return [weight.detach() for name, weight in model.named_parameters() if "lora_" in name]

    whole = trained(tmp_path / "whole")
    seen: list[int] = []
    trained(tmp_path / "run", on_step=lambda progress: seen.append(progress.step), cancelled=lambda: len(seen) >= 3)
    found = last_checkpoint(tmp_path / "run")
    assert found is not None and found[1] == 4
    assert all(torch.equal(a, b) for a, b in zip(trained(tmp_path / "run", resume_from=found[0]), whole, strict=True))


def test_a_rank_beyond_the_narrowest_layer_is_refused_for_pissa(base: BaseModel) -> None:
    with pytest.raises(Invalid, match="lora-r 65 is more than the 64 directions of the narrowest layer"):
        add_adapter(base, config(init="pissa", lora_r=65), plan(config(lora_r=65)))


def test_lora_plus_has_two_learning_rates_and_they_follow_the_schedule(base: BaseModel, tmp_path: Path) -> None:
    asked = config(loraplus_ratio=16, weight_decay=0.01)
    model = trainable(base, asked, plan(asked))
    trainer: Any = build(base, model, ROWS, asked, plan(asked), tmp_path, validation=None, callback=TrainerCallback())
    groups = {group["lr"]: group for group in trainer.create_optimizer().param_groups if group["params"]}
    assert set(groups) == {2e-3, 16 * 2e-3}
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert all("lora_A" in names[id(weight)] for weight in groups[2e-3]["params"])
    assert all("lora_B" in names[id(weight)] for weight in groups[16 * 2e-3]["params"])
    assert all(group["weight_decay"] == 0.01 for group in groups.values())
    seen: list[float] = []
    train(base, model, ROWS, asked, plan(asked), tmp_path, on_step=lambda progress: seen.append(progress.learning_rate))
    assert max(seen) == pytest.approx(2e-3) and seen[-1] < 1e-3


def test_neftune_makes_noise_in_training_and_none_in_evaluation(base: BaseModel, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"train": [], "plain": []}
    pad = base.tokenizer.pad_token_id
    quiet = validation_loss(base.model, ROWS, pad)
    measured: list[float] = []
    for kind, alpha in (("train", 50.0), ("plain", None)):
        asked = config(neftune_alpha=alpha, batch_size=8, epochs=2, learning_rate=1e-9)
        fresh_base = load_base(str(base.directory), device="cpu", dtype="float32")
        model = trainable(fresh_base, asked, plan(asked))
        train(
            fresh_base,
            model,
            ROWS,
            asked,
            plan(asked),
            tmp_path / kind,
            validation=Validation(model, ROWS, objective="sft", beta=0.1, pad_token_id=pad),
            on_step=lambda progress, kind=kind: losses[kind].append(progress.loss),  # type: ignore[misc]
            on_evaluation=lambda step, evaluation: measured.append(evaluation.loss),
        )
    assert losses["plain"] == pytest.approx([quiet, quiet], rel=1e-4)
    assert all(abs(noisy - quiet) > 1e-2 for noisy in losses["train"]) and losses["train"][0] != losses["train"][1]
    assert measured == pytest.approx([quiet] * 4, rel=1e-4)


# --- in four bits, and whole ---


def write(directory: Path, count: int = 12) -> Path:
    path = directory / "data.jsonl"
    rows = [{"instruction": f"say {n}", "output": f"{n} and {n + 1}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_base_in_four_bits_learns_through_bitsandbytes(tiny_base: Path, tmp_path: Path) -> None:
    asked = config(
        data=[write(tmp_path)], base=str(tiny_base), method="qlora", epochs=6, optimizer="adamw_8bit", max_length=64
    )
    loaded = load_base(str(tiny_base), device="cpu", quantize="4bit")
    layer = loaded.model.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "Linear4bit"
    assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    finished = start_run(asked, tmp_path / "home", device="cpu")
    assert finished.before is not None and finished.after is not None
    assert finished.after.loss < 0.9 * finished.before.loss
    assert finished.version is not None
    tuned = PeftModel.from_pretrained(fresh(tiny_base).model, finished.version.directory)
    assert not torch.allclose(logits(tuned), logits(fresh(tiny_base).model), atol=1e-2)


def test_a_base_trained_whole_is_served_from_its_directory(tiny_base: Path, tmp_path: Path) -> None:
    options = {"data": [write(tmp_path)], "base": str(tiny_base), "method": "full", "learning_rate": 1e-3}
    asked = TrainConfig.model_validate({"name": "counter", "epochs": 6, "batch_size": 4, **options})
    finished = start_run(asked, tmp_path / "home", device="cpu")
    assert finished.base == tmp_path / "home" / "bases" / "counter"
    assert finished.before is not None and finished.after is not None
    assert finished.after.loss < 0.9 * finished.before.loss
    before, after = fresh(tiny_base), fresh(finished.base)
    assert after.name == "counter" and after.fingerprint != before.fingerprint
    assert after.tokenizer.chat_template == before.tokenizer.chat_template
    assert after.stop_token_ids == before.stop_token_ids
    assert not torch.allclose(logits(after.model), logits(before.model), atol=1e-2)
    manifest = read_manifest(finished.base)
    assert manifest is not None and manifest.base_fingerprint == before.fingerprint
    engine = Engine(after, Settings(kv_cache_memory=0.02, max_batch_tokens=64))
    tokens, _ = answers(engine, [request_for("one", PROMPT[0].tolist(), ())])
    assert len(tokens["one"]) > PROMPT.shape[1]
    with pytest.raises(Conflict, match="there is a base at"):
        start_run(asked, tmp_path / "home", device="cpu")
    assert not list((tmp_path / "home" / "bases").glob(".incoming-*"))
    job = JobQueue(tmp_path / "home").get(finished.job_id)
    shown = job_object(job, [])
    assert (shown["status"], shown["fine_tuned_model"]) == ("succeeded", None), "no request can ask for it here"
    assert (shown["bianlian"]["version"], shown["bianlian"]["base"]) == (None, "counter")
    assert f"bianlian serve --base {finished.base}" in shown["bianlian"]["message"]
    assert checkpoint_objects(job) == []


def test_a_base_takes_no_name_that_means_something_else(
    tmp_path: Path, tiny_base: Path, tiny_adapters: dict[str, Path]
) -> None:
    AdapterStore(tmp_path / "store").publish(tiny_adapters["r2"], "taken")
    with pytest.raises(Conflict, match="adapter called 'taken'"):
        check_base_name(tmp_path, "taken")
    with pytest.raises(Conflict, match="bundled base"):
        check_base_name(tmp_path, "bianlian-mini")
    check_base_name(tmp_path, "free")
    (tmp_path / "bases" / "taken-too").mkdir(parents=True)
    options = {"data": [write(tmp_path)], "base": str(tiny_base)}
    with pytest.raises(Conflict, match="there is a base at .*choose another name") as caught:
        start_run(TrainConfig.model_validate({"name": "taken-too", **options}), tmp_path, device="cpu")
    assert caught.value.param == "name"
    with pytest.raises(Conflict, match="there is a base at"):
        run_job(
            JobQueue(tmp_path).submit(TrainConfig.model_validate({"name": "taken-too", **options})).journal.directory
        )
    assert AdapterStore(tmp_path / "store").names() == ["taken"]


def test_a_base_trained_whole_resumes_exactly_and_keeps_its_best(tiny_base: Path, tmp_path: Path) -> None:
    asked = TrainConfig.model_validate(
        {"data": ["unused"], "name": "x", "method": "full", "epochs": 4, "batch_size": 4, "learning_rate": 3e-3}
        | {"keep_best": True}
    )
    base = fresh(tiny_base)
    own = []  # what the base says by itself: the more of ROWS is learned, the less likely that becomes
    for row in ROWS:
        prompt = torch.tensor([row.input_ids[:4]])
        said = base.model.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)[0].tolist()
        own.append(TrainingRow(said, [-100] * 4 + said[4:], row.place))

    def trained(directory: Path, **options: Any) -> tuple[Any, Trained, list[float]]:
        base = fresh(tiny_base)
        model = trainable(base, asked, plan(asked))
        seen: list[float] = []
        validation = Validation(model, own, objective="sft", beta=0.1, pad_token_id=base.tokenizer.pad_token_id)
        result = train(
            base,
            model,
            ROWS,
            asked,
            plan(asked),
            directory,
            validation=validation,
            on_evaluation=lambda step, evaluation: seen.append(evaluation.loss),
            **options,
        )
        return model, result, seen

    whole, result, losses = trained(tmp_path / "whole")
    best = losses.index(min(losses))
    assert best < 3, losses
    assert result.best_step == 2 * (1 + best)  # the last is not the best, or this shows nothing
    pad = fresh(tiny_base).tokenizer.pad_token_id
    assert validation_loss(whole, own, pad, compute_in=torch.bfloat16) == pytest.approx(losses[best], rel=1e-2)
    steps: list[int] = []
    trained(tmp_path / "run", on_step=lambda progress: steps.append(progress.step), cancelled=lambda: len(steps) >= 2)
    found = last_checkpoint(tmp_path / "run")
    assert found is not None and found[1] == 3
    resumed, again, _ = trained(tmp_path / "run", resume_from=found[0])
    assert again.best_step == result.best_step
    for (name, a), (_, b) in zip(resumed.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(a, b), name
