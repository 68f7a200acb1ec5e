"""Numbers beyond anything meant, and texts that are none: refused by name, with the limit, wherever they come in."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import Invalid
from tests.training.test_run import config
from training.config import TrainConfig, parse_config
from training.data.formats import read_data
from training.jobs.fine_tuning import FineTuningRequest, _config
from training.recipes.prepare import with_recipe

NUMBERS = [
    name
    for name, field in TrainConfig.model_fields.items()
    if any(kind in str(field.annotation) for kind in ("int", "float")) and name not in ("data_weights", "demo_prompts")
]
HUGE = [10**30, 10**400, 1e308, math.inf, math.nan, -1]


def test_the_numbers_are_all_here() -> None:
    assert {"lora_alpha", "max_steps", "max_samples", "epochs", "max_length", "learning_rate", "warmup"} <= {*NUMBERS}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", HUGE, ids=["1e30", "1e400", "1e308", "inf", "nan", "negative"])
def test_a_number_out_of_bounds_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config({"data": ["x.jsonl"], "name": "x", name: value})
    assert caught.value.param == name and caught.value.message.startswith(f"{name}: ")
    assert len(caught.value.message) < 300
    request = FineTuningRequest(model="m", training_file="f", bianlian={name: value})
    if name in ("epochs", "batch_size", "beta", "seed", "learning_rate_multiplier"):
        return  # OpenAI's words for these have limits of their own
    with pytest.raises(Invalid) as caught:
        _config(request, "x", "m", [Path("x.jsonl")])
    assert caught.value.param == f"bianlian.{name}"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, False])
def test_true_is_no_number(name: str, value: bool) -> None:
    with pytest.raises(Invalid, match=f"^{name}: {str(value).lower()} is no number") as caught:
        parse_config({"data": ["x.jsonl"], "name": "x", name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"format": "alpacka"}, "format"),
        ({"data_weights": [True]}, "data_weights"),
        ({"card": {"samples": [1]}}, "card.samples.0"),
        ({"card": {"sample": []}}, "card.sample"),
        ({"lora_r": []}, "lora_r"),
    ],
)
def test_a_refusal_names_what_was_sent_and_no_type(values: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config({"data": ["x.jsonl"], "name": "x", **values})
    assert caught.value.param == param
    request = FineTuningRequest(model="m", training_file="f", bianlian=values)
    if param == "data_weights":
        return  # not for requests
    with pytest.raises(Invalid) as caught:
        _config(request, "x", "m", [Path("x.jsonl")])
    assert caught.value.param == f"bianlian.{param}"


def test_a_word_that_is_like_none_gets_the_list() -> None:
    with pytest.raises(Invalid, match="unknown option 'patience'; known: "):
        parse_config({"name": "x", "patience": 3})


def test_weights_of_data_sets_are_bounded_too() -> None:
    with pytest.raises(Invalid, match=r"data_weights\.1: .*1000000000"):
        parse_config({"data": ["a", "b"], "name": "x", "data_weights": [1, 1e308]})


@pytest.mark.parametrize("key", ["lora_alpha", "max_steps", "max_samples", "num_train_epochs", "cutoff_len"])
@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "1e999", ".nan", "1" + "0" * 30], ids=len)
def test_recipes_have_the_same_limits(tmp_path: Path, key: str, value: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: x\nstage: sft\ndo_train: true\ndataset: d\n{key}: {value}\n")
    with pytest.raises(Invalid) as caught:
        options, found = with_recipe({"base": "x", "card": {}}, set(), recipe, {})
        found.refuse()
        parse_config(options)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("depth", [1, 100_000], ids=["digits", "depth"])
def test_json_that_python_cannot_hold_is_a_bad_row_or_a_named_file(tmp_path: Path, depth: int) -> None:
    number = "9" * 5000 if depth == 1 else "[" * depth + "]" * depth
    good = '{"instruction": "a", "output": "b"}'
    lines = tmp_path / "rows.jsonl"
    lines.write_text(f'{good}\n{{"instruction": {number}, "output": "b"}}\n')
    (bad,) = read_data(lines).bad
    assert bad.place.line == 2 and ("too many digits" in bad.reason or "nested too deeply" in bad.reason)
    array = tmp_path / "rows.json"
    array.write_text(f'[{good},\n{{"instruction": {number}, "output": "b"}}]')
    with pytest.raises(Invalid, match=r"rows\.json:2: not JSON: (a number with too many digits|nested too deeply)"):
        read_data(array)
    table = tmp_path / "rows.csv"
    table.write_text(f'messages\n"{number}"\n"[{{""role"": ""user"", ""content"": ""a""}}]"\n')
    assert "must be a list of turns" in str(read_data(table).bad[0])
    call = {"role": "tool_call", "content": f'{{"name": "f", "arguments": {{"n": {number}}}}}'}
    lines.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, call]}) + "\n")
    assert read_data(lines).bad[0].field == "messages[2]"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"instruction": "\\ud83d", "output": "b"}, "instruction"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x\\uDE00"}]},
            "messages[2].content",
        ),
        ({"messages": [{"role": "user", "content": "a", "\\ud800": 1}]}, "messages[1]"),
        ({"query": "a", "response": "b", "history": [["c", "\\ud800"]]}, "history[1][2]"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_half_a_surrogate_pair_is_a_bad_row(tmp_path: Path, row: Any, field: str, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    spelled = json.dumps(row, ensure_ascii=False).replace("\\\\", "\\")
    good = '{"instruction": "\\ud83d\\ude00", "output": "b"}'
    path.write_text(f"{good}\n{spelled}\n" if suffix == ".jsonl" else f"[{good},\n{spelled}]")
    found = read_data(path)
    (bad,) = found.bad
    assert (bad.place.line, bad.field) == (2, field) and "surrogate pair" in bad.reason
    assert found.rows[0].messages[0]["content"] == "😀"  # type: ignore[union-attr]


def test_half_a_pair_within_json_within_json_is_found_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {"text": "\\ud800"}}'}
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, call]}) + "\n")
    (bad,) = read_data(path).bad
    assert bad.field == "messages[2].arguments.text" and "surrogate pair" in bad.reason


def test_the_largest_values_still_make_a_run(tiny_base: Path, tmp_path: Path) -> None:
    """The bounds are where something would break, and not before."""
    from training.runs.run import start_run

    largest = {"lora_alpha": 65536, "max_steps": 1, "max_samples": 10**9, "warmup": 10**9, "save_steps": 10**9}
    largest |= {"eval_steps": 10**9, "snapshot_steps": 10**9, "max_grad_norm": 10**9, "early_stopping": 10**9}
    assert start_run(config(tiny_base, tmp_path, **largest), tmp_path / "home", device="cpu").state == "succeeded"
