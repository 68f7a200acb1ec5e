"""Recipes run: from the files and flags of other trainers to a published adapter, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.errors import BianlianError, Invalid
from adapters.settings import load_settings
from adapters.store import AdapterStore
from app import cli
from tests.hub_mirror import Mirror, files_in
from training.config import TrainConfig
from training.runs.journal import Journal

ROWS = [{"instruction": f"say {n}", "input": "", "output": f"{n} and {n + 1}"} for n in range(8)]


def train(*words: object) -> str:
    result = CliRunner().invoke(cli, ["train", *map(str, words), "--device", "cpu"])
    if isinstance(result.exception, BianlianError):
        result.exception.add_note(result.output)
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def the_run() -> tuple[Journal, TrainConfig]:
    (directory,) = (load_settings().root / "runs").iterdir()
    journal = Journal(directory)
    return journal, journal.config().train


def published() -> list[str]:
    return AdapterStore(load_settings().store).names()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


def recipe(path: Path, **keys: Any) -> Path:
    """A file laid out as in LLaMA-Factory's examples."""
    written = {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_target": "q_proj,v_proj",
        "template": "qwen3_nothink",
        "cutoff_len": 2048,
        "overwrite_cache": True,
        "output_dir": "saves/tiny/lora/counting",
        "logging_steps": 1,
        "plot_loss": True,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": "1e-3",
        "num_train_epochs": 1.0,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "bf16": True,
        **keys,
    }
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in written.items()))
    return path


def test_a_llama_factory_recipe_is_trained_and_published(tiny_base: Path, tmp_path: Path, rows: Path) -> None:
    file = recipe(tmp_path / "sft.yaml", model_name_or_path=str(tiny_base), dataset="not_here")
    output = train("--config", file, "--data", rows)
    assert "sft.yaml: a recipe for LLaMA-Factory" in output
    assert "not said there, so as LLaMA-Factory has it" in output
    assert published() == ["tiny-lora-counting"]
    journal, config = the_run()
    assert (config.batch_size, config.epochs, config.learning_rate, config.seed) == (4, 1.0, 1e-3, 42)
    assert config.dataset == (), "the data on the command line take its place"
    assert config.max_length == 512, "cutoff_len is a bound: what the base reads is less"
    assert "max_length 512, all that" in output
    steps = [metric for metric in journal.metrics() if metric.kind == "step"]
    assert len(steps) == 2, "8 rows, none of them held out, 4 a step"
    adapter = json.loads(
        (AdapterStore(load_settings().store).current(published()[0]).directory / "adapter_config.json").read_text()
    )
    assert (adapter["r"], adapter["lora_alpha"], set(adapter["target_modules"])) == (4, 8, {"q_proj", "v_proj"})


def test_data_sets_of_a_recipe_come_from_its_list(tiny_base: Path, tmp_path: Path, rows: Path) -> None:
    pytest.importorskip("training.data.dataset_info", reason="reading dataset_info.json is not part of this tree")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"counting": {"file_name": rows.name}}))
    train(
        "--config",
        recipe(
            tmp_path / "sft.yaml",
            model_name_or_path=str(tiny_base),
            dataset="counting",
            dataset_dir=str(tmp_path),
            max_samples=4,
            val_size=0.25,
        ),
    )
    assert published() == ["tiny-lora-counting"]
    assert len([metric for metric in the_run()[0].metrics() if metric.kind == "step"]) == 1


def test_options_count_over_the_recipe(tiny_base: Path, tmp_path: Path, rows: Path) -> None:
    file = recipe(tmp_path / "sft.yaml", model_name_or_path="/models/not-here", dataset="x")
    train("--config", file, "--data", rows, "--base", tiny_base, "--name", "mine", "--lora-r", 2, "--epochs", 0.5)
    assert published() == ["mine"]
    config = the_run()[1]
    assert (config.lora_r, config.epochs, config.batch_size) == (2, 0.5, 4)


def test_swift_flags_are_trained_and_published(tiny_base: Path, rows: Path) -> None:
    output = train(
        *("--model", tiny_base, "--custom_train_dataset_path", f"{rows}#6", "--sft_type", "lora"),
        *("--lora_rank", 2, "--lora_dropout_p", 0.1, "--lora_target_modules", "ALL", "--num_train_epochs", 1),
        *("--batch_size", 2, "--gradient_accumulation_steps", 1, "--max_steps", -1, "--use_flash_attn", "false"),
        *("--save_steps", 3, "--dataset_test_ratio", 0.34, "--name", "swift-face"),
    )
    assert "command line: a recipe for ms-swift 2" in output
    assert published() == ["swift-face"]
    config = the_run()[1]
    assert (config.lora_r, config.lora_dropout, config.batch_size, config.save_steps) == (2, 0.1, 2, 3)
    assert (config.max_samples, config.val_split, config.epochs) == (6, 0.34, 1.0)


def test_args_json_of_swift_names_the_adapter_by_its_model(tiny_base: Path, tmp_path: Path, rows: Path) -> None:
    written = {
        "model": str(tiny_base),
        "dataset": [str(rows)],
        "tuner_type": "lora",
        "lora_rank": 2,
        "target_modules": ["q_proj"],
        "torch_dtype": "bfloat16",
        "output_dir": str(tmp_path / "output" / "v0-20260101-120000"),
        "num_train_epochs": 1,
        "adam_beta2": 0.95,
        "swift_version": "4.6.0",
        "model_name": None,
        "ref_model": None,
    }
    (tmp_path / "args.json").write_text(json.dumps(written))
    output = train("--config", tmp_path / "args.json")
    assert published() == ["tiny-lora"]
    assert any(line.split() == "adam_beta2: 0.95 → is 0.999 here".split() for line in output.splitlines())
    assert the_run()[1].max_length == 512, "none given: all that the base reads"


def test_our_own_recipe_is_trained_and_published(tiny_base: Path, tmp_path: Path, rows: Path) -> None:
    (tmp_path / "own.toml").write_text(
        f'name = "own"\ndata = ["{rows.name}"]\nbase = "{tiny_base}"\nepochs = 1\nlora_r = 2\nbatch_size = 4\n'
    )
    assert "a recipe for" not in train("--config", tmp_path / "own.toml", "--seed", 5)
    assert published() == ["own"]
    assert the_run()[1].seed == 5


@pytest.mark.parametrize("hub", ["hf", "modelscope"])
def test_base_and_data_come_from_a_hub(hub: str, mirror: Mirror, tiny_base: Path) -> None:
    mirror.models["org/Tiny-1"] = files_in(tiny_base)
    mirror.datasets["org/counting"] = {"README.md": b"#", "train.json": json.dumps(ROWS).encode()}
    train(
        *("--base", f"{hub}:org/Tiny-1", "--data", f"{hub}:org/counting", "--name", "far", "--epochs", 1),
        *("--lora-r", 2, "--batch-size", 4),
    )
    version = AdapterStore(load_settings().store).current("far")
    assert version.manifest is not None and version.manifest.base_name == "Tiny-1"
    assert the_run()[1].data[0].name == "train.json"


def test_a_recipe_that_asks_for_more_is_refused_after_its_report(tiny_base: Path, tmp_path: Path, rows: Path) -> None:
    file = recipe(tmp_path / "sft.yaml", model_name_or_path=str(tiny_base), use_galore=True, typo_here=1)
    with pytest.raises(Invalid, match="use_galore: .*; typo_here: not a key of LLaMA-Factory") as refusal:
        train("--config", file, "--data", rows)
    assert "✗ leave it out" in refusal.value.__notes__[0]
    assert not load_settings().root.exists()


def test_a_base_that_is_not_here_names_the_ways_out(mirror: Mirror, tmp_path: Path, rows: Path) -> None:
    mirror.models["org/gone"] = {}
    file = recipe(tmp_path / "sft.yaml", model_name_or_path="org/nobody")
    with pytest.raises(BianlianError, match="no model 'org/nobody'.*give a directory or 'bianlian-mini' as --base"):
        train("--config", file, "--data", rows)


def test_a_resumed_run_takes_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="leave out --data, --name and --config"):
        train("--resume", "x", "--config", recipe(tmp_path / "sft.yaml"))
    with pytest.raises(Invalid, match="leave out --data, --name and --config"):
        train("--resume", "x", "--lora_rank", 8)
