"""Recipes of other trainers: every key is mapped, or means nothing here, or is refused with the way out."""

import re
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import Invalid, NotFound
from training.config import TrainConfig, parse_config
from training.recipes.flags import split_flags
from training.recipes.hub_names import adapter_name
from training.recipes.llama_factory import LLAMA_FACTORY
from training.recipes.prepare import with_recipe
from training.recipes.read import foreign_names, read_recipe
from training.recipes.recipe import WHOLE_BASE, Recipe, translate
from training.recipes.swift import SWIFT, SWIFT_2


def llama_factory(**keys: Any) -> Recipe:
    return translate(LLAMA_FACTORY, keys, "recipe.yaml")


def swift(**keys: Any) -> Recipe:
    return translate(SWIFT, keys, "args.json")


def fields(recipe: Recipe) -> dict[str, Any]:
    """What differs from our own defaults; the recipe must be a valid configuration."""
    recipe.refuse()
    config = parse_config({"name": "x", "data": ["x.json"], **recipe.values})
    return {name: getattr(config, name) for name in recipe.values}


# --- LLaMA-Factory ---

SFT = """\
model_name_or_path: meta-llama/Llama-3.2-1B-Instruct
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 12
lora_dropout: 0.05
lora_target: q_proj,v_proj
use_rslora: true
loraplus_lr_ratio: 16.0
neftune_noise_alpha: 5
dataset: identity, weather
dataset_dir: my_data
template: llama3
cutoff_len: 1024
max_samples: 500
overwrite_cache: true
preprocessing_num_workers: 8
val_size: 0.05
packing: true
output_dir: saves/llama3-1b/lora/weather
logging_steps: 5
save_steps: 250
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 3
learning_rate: 1e-4
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
weight_decay: 0.01
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
eval_strategy: steps
eval_steps: 125
load_best_model_at_end: true
early_stopping_steps: 4
seed: 7
"""


def test_a_llama_factory_recipe_means_here_what_it_means_there(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text(SFT)
    recipe = read_recipe(tmp_path / "sft.yaml", {})
    assert fields(recipe) == {
        "base": "meta-llama/Llama-3.2-1B-Instruct",
        "objective": "sft",
        "method": "lora",
        "lora_r": 12,
        "lora_alpha": 24,  # twice the rank, for rsLoRA too
        "lora_dropout": 0.05,
        "targets": ("q_proj", "v_proj"),
        "use_rslora": True,
        "loraplus_ratio": 16.0,
        "neftune_alpha": 5.0,
        "dataset": ("identity", "weather"),
        "dataset_dir": Path("my_data"),
        "max_length": 1024,
        "max_samples": 500,
        "val_split": 0.05,
        "packing": True,
        "name": "llama3-1b-lora-weather",
        "save_steps": 250,
        "micro_batch_size": 2,
        "batch_size": 6,
        "learning_rate": 1e-4,  # YAML reads 1e-4 as a word
        "epochs": 2.0,
        "schedule": "cosine",
        "warmup": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "eval_steps": 125,
        "keep_best": True,
        "early_stopping": 4,
        "seed": 7,
        "optimizer": "adamw",
    }


def test_where_a_recipe_is_silent_its_own_trainers_defaults_apply_and_are_printed() -> None:
    recipe = llama_factory(model_name_or_path="org/model", dataset="d", output_dir="saves/x")
    values = fields(recipe)
    expected = {
        "learning_rate": 5e-5,
        "micro_batch_size": 8,
        "batch_size": 8,
        "schedule": "linear",
        "warmup": 0.0,
        "val_split": 0.0,
        "lora_r": 8,
        "seed": 42,
        "save_steps": 500,
        "keep_best": False,
        "dataset_dir": Path("data"),
    }
    assert expected.items() <= values.items()
    assert "max_length" not in values, "2048, or what the base reads if that is less: ours as well"
    report = "\n".join(recipe.report()).split("not said there, so as LLaMA-Factory has it:")[1]
    for name, value in expected.items():
        assert f"{name} {value}" in report
    assert "epochs" not in report, "where theirs is ours there is nothing to say"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"stage": "pt"}, {"objective": "pretrain"}),
        ({"stage": "dpo"}, {"objective": "dpo", "beta": 0.1}),
        ({"stage": "dpo", "pref_loss": "orpo", "pref_beta": 0.2}, {"objective": "orpo", "beta": 0.2}),
        ({"stage": "kto"}, {"objective": "kto", "beta": 0.1}),
        ({"quantization_bit": 4}, {"method": "qlora"}),
        (
            {"stage": "kto", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
            {"batch_size": 8, "micro_batch_size": None},
        ),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {"warmup": 0.0}),
        ({"lora_rank": 4, "lora_alpha": 4}, {"lora_r": 4, "lora_alpha": 4}),
        ({"pissa_init": True, "pissa_iter": 16, "pissa_convert": True}, {"init": "pissa"}),
        ({"use_dora": "true"}, {"use_dora": True}),
        ({"neat_packing": True}, {"packing": True}),
        ({"mask_history": True}, {"mask_history": True}),
        ({"default_system": "You count."}, {"system": "You count."}),
        ({"enable_thinking": False}, {"thinking": False}),
        ({"warmup_steps": 20}, {"warmup": 20.0}),
        ({"max_steps": 30}, {"max_steps": 30}),
        ({"max_steps": -1}, {"epochs": 3.0}),
        ({"eval_strategy": "steps", "logging_steps": 10}, {"eval_steps": 10}),
        ({"evaluation_strategy": "epoch"}, {"eval_steps": None}),
        ({"save_strategy": "epoch"}, {"save_steps": None}),
        ({"optim": "paged_adamw_8bit"}, {"optimizer": "paged_adamw_8bit"}),
        ({"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"model_revision": "v2"}, {"base": "org/model@v2"}),
        ({"dataset": "a,b", "mix_strategy": "interleave_under"}, {"data_weights": (1.0, 1.0)}),
        (
            {"dataset": "a,b", "mix_strategy": "interleave_under", "interleave_probs": "0.7,0.3"},
            {"data_weights": (0.7, 0.3)},
        ),
        ({"use_galore": False, "deepspeed": "ds_z2.json", "flash_attn": "fa2"}, {}),
    ],
)
def test_keys_of_llama_factory(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    values = fields(llama_factory(**{"model_name_or_path": "org/model", "dataset": "d", **keys}))
    assert expected.items() <= values.items()


@pytest.mark.parametrize("recipe", [llama_factory(finetuning_type="full", lora_rank=4), swift(tuner_type="full")])
def test_where_all_weights_are_trained_nothing_is_said_of_adapters(recipe: Recipe) -> None:
    values = fields(recipe)
    assert values["method"] == "full"
    assert not {"lora_r", "lora_alpha", "lora_dropout", "targets"} & set(values)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stage": "ppo"}, "stage: 'ppo' needs a reward model; use dpo"),
        ({"stage": "dpo", "pref_loss": "simpo"}, r"pref_loss: 'simpo' is not there; use sigmoid \(DPO\) or orpo"),
        ({"finetuning_type": "freeze"}, "use finetuning_type lora or full"),
        ({"quantization_bit": 8}, "use quantization_bit 4"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "use finetuning_type lora"),
        ({"quantization_method": "hqq"}, "use bnb"),
        ({"use_galore": True}, "use_galore: leave it out"),
        ({"val_size": 100}, "val_size: is a number of rows; give a share"),
        ({"resume_from_checkpoint": "saves/x"}, "bianlian train --resume RUN"),
        ({"adapter_name_or_path": "saves/x"}, "training begins at the base"),
        ({"train_on_prompt": True}, "train_on_prompt: leave it out"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type: use one of cosine"),
        ({"optim": "lion_8bit"}, "optim: use one of adamw_torch"),
        ({"adam_beta2": 0.95}, "adam_beta2: is 0.999 here"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "keep one of them"),
        ({"do_train": False}, "use `bianlian eval`"),
        ({"do_predict": True}, "use `bianlian eval`"),
        ({"dataset_dir": "ONLINE"}, "use --data hf:owner/name"),
        ({"hf_hub_token": "hf_secret"}, "set HF_TOKEN"),
        ({"lora_rnak": 8}, "lora_rnak: not a key of LLaMA-Factory; did you mean 'lora_rank'"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
        ({"lora_rank": 2.5}, "lora_rank: 2.5 is not a whole number"),
        ({"packing": "maybe"}, "packing: 'maybe' is neither true nor false"),
    ],
)
def test_what_llama_factory_can_and_we_cannot_is_refused_with_what_to_use(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message) as refusal:
        llama_factory(**{"model_name_or_path": "org/model", "dataset": "d", **keys}).refuse()
    assert refusal.value.param in keys
    assert "\n" not in refusal.value.message


def test_all_refused_keys_are_named_at_once_and_the_report_marks_them() -> None:
    recipe = llama_factory(dataset="d", use_badam=True, shift_attn=True, lora_rank=4)
    with pytest.raises(Invalid, match=r"use_badam: .*; shift_attn: "):
        recipe.refuse()
    marks = {line.key: line.outcome for line in recipe.lines}
    assert (marks["use_badam"], marks["shift_attn"], marks["lora_rank"]) == ("refused", "refused", "mapped")
    assert "\n".join(recipe.report()).count("✗") == 2


def test_secrets_are_not_printed() -> None:
    report = "\n".join(llama_factory(dataset="d", swanlab_api_key="sk-123", hf_hub_token="hf_456").report())
    assert "sk-123" not in report and "hf_456" not in report


def test_eval_dataset_names_entries_of_the_same_list() -> None:
    values = fields(llama_factory(dataset="a", dataset_dir="lists", eval_dataset="b, c"))
    assert values["validation_data"] == (Path("lists/dataset_info.json:b"), Path("lists/dataset_info.json:c"))
    assert values["val_split"] == 0.0


def test_modelscope_is_asked_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert fields(llama_factory(model_name_or_path="org/model"))["base"] == "modelscope:org/model"


# --- ms-swift ---


def test_a_swift_recipe_means_here_what_it_means_there() -> None:
    recipe = swift(model="Qwen/Qwen3-0.6B", dataset=["rows.jsonl#300"], tuner_type="lora", lora_rank=4)
    assert fields(recipe) == {
        "base": "modelscope:Qwen/Qwen3-0.6B",
        "data": (Path("rows.jsonl"),),
        "max_samples": 300,
        "method": "lora",
        "lora_r": 4,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "targets": (),
        "learning_rate": 1e-4,
        "micro_batch_size": 1,
        "batch_size": 16,
        "epochs": 3.0,
        "schedule": "cosine",
        "warmup": 0.0,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "max_length": WHOLE_BASE,
        "val_split": 0.0,
        "save_steps": 500,
        "keep_best": False,
        "optimizer": "adamw",
        "seed": 42,
    }
    different = [line for line in recipe.lines if line.outcome == "differs"]
    assert [(line.key, line.text) for line in different] == [("adam_beta2", "is 0.999 here")]


def test_names_and_defaults_of_swift_2() -> None:
    keys = {
        "model_type": "qwen1half-7b-chat",
        "model_id_or_path": "/models/qwen",
        "sft_type": "lora",
        "template_type": "qwen",
        "dtype": "AUTO",
        "custom_train_dataset_path": ["huanhuan.jsonl"],
        "train_dataset_sample": "-1",
        "lora_dropout_p": "0.1",
        "lora_target_modules": "ALL",
        "batch_size": "2",
        "quantization_bit": "0",
        "use_flash_attn": "false",
        "only_save_model": "true",
    }
    recipe = read_recipe(None, keys)
    assert recipe.title == SWIFT_2.title
    expected = {
        "base": "/models/qwen",
        "data": (Path("huanhuan.jsonl"),),
        "lora_dropout": 0.1,
        "targets": (),
        "micro_batch_size": 2,
        "batch_size": 16,
        "epochs": 1.0,
        "warmup": 0.05,
        "val_split": 0.01,
        "max_length": 2048,
        "save_steps": 50,
    }
    assert expected.items() <= fields(recipe).items()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"train_type": "full"}, {"method": "full", "learning_rate": 1e-5}),
        ({"split_dataset_ratio": 0.1, "save_steps": 40}, {"eval_steps": 40}),
        ({"split_dataset_ratio": 0.1, "eval_strategy": "epoch"}, {"eval_steps": None}),
        ({"quant_bits": 4, "quant_method": "bnb"}, {"method": "qlora"}),
        ({"rlhf_type": "dpo"}, {"objective": "dpo", "beta": 0.1}),
        ({"rlhf_type": "kto", "beta": "0.3"}, {"objective": "kto", "beta": 0.3}),
        ({"use_chat_template": False, "loss_scale": "all"}, {"objective": "pretrain"}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"targets": ("q_proj", "v_proj")}),
        ({"init_weights": "pissa_niter_16"}, {"init": "pissa"}),
        ({"init_weights": "true"}, {"init": "default"}),
        ({"lorap_lr_ratio": 16, "optimizer": "lorap"}, {"loraplus_ratio": 16.0}),
        ({"loss_scale": "last_round"}, {"mask_history": True}),
        ({"use_hf": True}, {"base": "org/model"}),
        ({"dataset": ["HF::org/rows"]}, {"data": (Path("hf:org/rows"),)}),
        ({"dataset": "org/rows#50 org/more#50"}, {"data": (Path("modelscope:org/rows"), Path("modelscope:org/more"))}),
        ({"val_dataset": ["v.jsonl"]}, {"validation_data": (Path("v.jsonl"),), "val_split": 0.0}),
        ({"split_dataset_ratio": "0.02"}, {"val_split": 0.02}),
        ({"per_device_train_batch_size": 3}, {"micro_batch_size": 3, "batch_size": 18}),
        ({"interleave_prob": ["0.5", "0.5"]}, {"data_weights": (0.5, 0.5)}),
        ({"adam_beta2": 0.95, "model_name": [None, None]}, {}),  # as its args.json writes what nobody chose
        ({"early_stop_interval": 3, "callbacks": ["early_stop"]}, {"early_stopping": 3}),
        ({"strict": True}, {"strict": True}),
    ],
)
def test_keys_of_swift(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    values = fields(swift(**{"model": "org/model", "dataset": ["d.jsonl"], **keys}))
    assert expected.items() <= values.items()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tuner_type": "adalora"}, "tuner_type: 'adalora' is not there; use lora or full"),
        ({"rlhf_type": "grpo"}, "rlhf_type: 'grpo' is not there; use dpo, kto or orpo"),
        ({"quant_bits": 8, "quant_method": "bnb"}, "use quant_bits 4"),
        ({"dataset": ["a.jsonl#5", "b.jsonl#6"]}, "#N differs among the data sets"),
        ({"dataset": ["org/rows:subset"]}, "name the file, as --data modelscope:org/rows:FILE"),
        ({"columns": '{"a": "query"}'}, "columns: write a dataset_info.json"),
        ({"callbacks": ["mine"]}, "callbacks: leave it out"),
        ({"ENV": {"CUDA_VISIBLE_DEVICES": "0"}}, "ENV: set environment variables before the command"),
        ({"adapters": ["x"]}, "training begins at the base"),
        ({"external_plugins": ["plugin.py"]}, "external_plugins: leave it out"),
        ({"loss_scale": "react"}, 'messages rows say with "loss"'),
        ({"truncation_strategy": "split"}, "truncation_strategy: leave it out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: leave it out"),
        ({"adam_beta2": 0.9}, "adam_beta2: is 0.999 here"),
        ({"lora_rnak": 4}, "did you mean 'lora_rank'"),
    ],
)
def test_what_swift_can_and_we_cannot_is_refused_with_what_to_use(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        swift(**{"model": "org/model", "dataset": ["d.jsonl"], **keys}).refuse()


def test_a_model_type_alone_names_no_base() -> None:
    with pytest.raises(Invalid, match="model_type: names no place to load from; say --base"):
        swift(model_type="qwen2", dataset=["d.jsonl"]).refuse()
    translate(SWIFT, {"model_type": "qwen2", "dataset": ["d.jsonl"]}, "x", ours=["base"]).refuse()


def test_two_names_for_one_thing_must_agree() -> None:
    assert fields(swift(train_type="lora", sft_type="lora"))["method"] == "lora"
    with pytest.raises(Invalid, match="train_type and sft_type mean the same, and differ"):
        swift(train_type="lora", sft_type="full")
    joined = swift(dataset=["a.jsonl"], custom_train_dataset_path=["b.jsonl"])
    assert joined.values["data"] == ("a.jsonl", "b.jsonl")


# --- whose recipe it is, and our own ---


@pytest.mark.parametrize(
    ("name", "content", "title"),
    [
        ("a.yaml", "stage: sft\nlora_rank: 8\ndataset: x\n", "LLaMA-Factory"),
        ("a.yml", "model: org/m\ntuner_type: lora\nlora_rank: 8\ndataset: [x.jsonl]\n", "ms-swift"),
        ("args.json", '{"model": "org/m", "sft_type": "lora", "lora_rank": 8}', "ms-swift 2"),
        ("a.yaml", "data: [x.json]\nname: x\nlora_r: 8\nepochs: 2\n", "Bianlian"),
        ("a.toml", 'data = ["x.json"]\nname = "x"\nseed = 3\n', "Bianlian"),
        ("a.yaml", "lora_rank: 8\nlearning_rate: 1.0e-4\nnum_train_epochs: 2\n", "LLaMA-Factory"),
    ],
)
def test_whose_recipe_it_is_follows_from_its_keys(name: str, content: str, title: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_recipe(tmp_path / name, {}).title == title


def test_our_own_recipe_is_fields_of_ours(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "own.toml").write_text(
        'name = "huanhuan"\ndata = "rows.jsonl"\ntargets = "q_proj,v_proj"\nlora_r = 4\n[card]\ntitle = "H"\n'
    )
    recipe = read_recipe(tmp_path / "own.toml", {}, ours={"lora_r"})
    config = parse_config(recipe.values)
    assert config.data == (tmp_path / "rows.jsonl",), "beside the recipe, where it is not in the working directory"
    assert (config.targets, config.card.title, config.lora_r) == (("q_proj", "v_proj"), "H", 16)
    assert list(recipe.report()) == []


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.yaml", "epochs: 3\nlora_rr: 8\nname: x\n", Invalid, "a.yaml: unknown key 'lora_rr'; did you mean"),
        ("a.yaml", "a: [1\nb: 2\n", Invalid, "line 2"),
        ("a.yaml", "- 1\n- 2\n", Invalid, "holds no keys"),
        ("a.yaml", "", Invalid, "is empty"),
        ("a.toml", "a = \n", Invalid, "at line 1"),
        ("a.json", "{", Invalid, "line 1 column 2"),
        ("a.ini", "a = 1", Invalid, "unknown suffix '.ini'; a recipe is .toml"),
        ("a.yaml", "model: m\nmodel_class: llm\npeft_config: {name: lora}\n", Invalid, "LLaMA-Factory's v1"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(
    name: str, content: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message) as refusal:
        read_recipe(tmp_path / name, {})
    assert "\n" not in str(refusal.value)
    with pytest.raises(NotFound, match="no recipe at"):
        read_recipe(tmp_path / "other.yaml", {})


def test_flags_count_over_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("stage: sft\nlora_rank: 8\nnum_train_epochs: 3\ndataset: x\n")
    recipe = read_recipe(tmp_path / "a.yaml", {"num_train_epochs": "1"}, ours={"lora_r"})
    assert recipe.values["epochs"] == 1.0
    assert "lora_r" not in recipe.values, "given on the command line"
    assert any("lora_r as the command line has it" in line.text for line in recipe.lines)


# --- flags ---

OURS = {"data", "name", "base", "lora-r", "learning-rate", "seed", "system", "strict", "packing"}


@pytest.mark.parametrize(
    ("line", "kept", "foreign"),
    [
        ("--data x --lora-r 4 --seed 3", "--data x --lora-r 4 --seed 3", {}),
        ("--data x --learning_rate 1e-4", "--data x --learning-rate 1e-4", {}),
        ("--data x --learning_rate=1e-4", "--data x --learning-rate=1e-4", {}),
        (
            "--sft_type lora --name x --dataset a.json b.json#5 --seed 3 --strict",
            "--name x",
            {"sft_type": "lora", "dataset": ["a.json", "b.json#5"], "seed": "3", "strict": True},
        ),
        (
            "--max_steps -1 --packing true --lora_rank=4 --base b --system you",
            "--base b",
            {"max_steps": "-1", "packing": "true", "lora_rank": "4", "system": "you"},
        ),
        ("--lora_rnak 4", "", {"lora_rnak": "4"}),
        (
            "--config a.yaml learning_rate=1e-5 --lora_rank 4 template=x --seed 3 --name lora_rank=8",
            "--config a.yaml --seed 3 --name lora_rank=8",
            {"learning_rate": "1e-5", "lora_rank": "4", "template": "x"},
        ),
    ],
)
def test_foreign_flags_are_told_apart(line: str, kept: str, foreign: dict[str, Any]) -> None:
    assert split_flags(line.split(), OURS, foreign_names()) == (kept.split(), foreign)


def test_a_flag_of_nobody_names_the_nearest() -> None:
    with pytest.raises(Invalid, match="'lora_rnak'; did you mean 'lora_rank'"):
        read_recipe(None, {"lora_rnak": "4"})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("saves/qwen3-4b/lora/sft", "qwen3-4b-lora-sft"),
        ("output", None),
        ("./output/v0-20260101-120000", None),
        ("/data/someone/output/Qwen3-0.6B/v0-20260101-120000", "Qwen3-0.6B"),
        ("/data/someone/甄嬛", None),
        ("/data/huanhuan lora", "huanhuan-lora"),
    ],
)
def test_the_adapter_is_called_by_its_directory(path: str, name: str | None) -> None:
    assert adapter_name(path) == name


def test_every_field_that_a_table_sets_is_one_of_ours() -> None:
    everything = [llama_factory(dataset="d", model_name_or_path="o/m"), swift(dataset=["d.json"], model="o/m")]
    for recipe in everything:
        assert set(recipe.values) <= set(TrainConfig.model_fields)


def test_recipes_in_the_documentation_are_understood(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(toml|yaml)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for suffix, content in blocks:
        (tmp_path / f"recipe.{suffix}").write_text(content, encoding="utf-8")
        config = parse_config(read_recipe(tmp_path / f"recipe.{suffix}", {}).values)
        assert (config.name, config.lora_r, config.lora_alpha) == ("huanhuan", 8, 32)


def test_keys_in_the_documentation_are_known() -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = text.split("## LLaMA-Factory")[1].split("## ms-swift")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines() if row.startswith("| `")]
    theirs = {key for left, _ in rows for key in re.findall(r"`([a-z_]+)", left)}
    ours = {key for _, right in rows for key in re.findall(r"`([a-z_]+)`", right)}
    assert len(theirs) > 20 and all(LLAMA_FACTORY.knows(key) for key in theirs)
    assert ours <= {*TrainConfig.model_fields, "dataset_info"}


def test_a_count_of_rows_goes_with_the_data_it_was_for(tmp_path: Path) -> None:
    """--data stands in place of the recipe's, and the report says that, and not what nobody wrote."""
    recipe = tmp_path / "sft.yaml"
    recipe.write_text(
        "model_name_or_path: x\nstage: sft\ndo_train: true\ndataset: theirs\nmax_samples: 5\nlora_rank: 4\n"
    )
    options = {"base": "x", "data": ["mine.jsonl"], "lora_r": 8, "card": {}}
    merged, found = with_recipe(options, {"data", "lora_r"}, recipe, {})
    report = "\n".join(found.report())
    assert "max_samples left out: the command line has --data in place of the recipe's data" in report
    assert "lora_r as the command line has it" in report and "max_samples as the command line" not in report
    assert "max_samples" not in merged and merged["lora_r"] == 8
