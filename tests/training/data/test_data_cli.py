"""`bianlian data`: what a terminal and a program get to see, and the exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from adapters.errors import Invalid
from training.cli import register

ROWS = [{"instruction": f"say {n}", "output": f"{n} and {n + 1}"} for n in range(12)]


def run(*arguments: str) -> Result:
    cli = typer.Typer()
    register(cli)
    return CliRunner().invoke(cli, ["data", *arguments])


def write(directory: Path, rows: list[Any] = ROWS, name: str = "data.jsonl") -> Path:
    path = directory / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_check_prints_rows_lengths_and_costs(tiny_base: Path, tmp_path: Path) -> None:
    path = write(tmp_path, [*ROWS, *ROWS[:1]])
    result = run("check", str(path), "--base", str(tiny_base), "--epochs", "2")
    assert result.exit_code == 0, result.output
    assert f"{path}: alpaca\nrows: 13 good, 0 bad (0.0%), 1 duplicates" in result.output
    assert "█" in result.output
    assert "end of turn learned in 100.0%" in result.output
    assert "languages, by script: en 13" in result.output
    for method in ("lora", "qlora", "full"):
        assert f"\n{method}" in result.output


def test_check_as_json_is_everything_and_still_refuses(tiny_base: Path, tmp_path: Path) -> None:
    result = run("check", str(write(tmp_path, [*ROWS, {"instruction": "x"}])), "--base", str(tiny_base), "--json")
    assert isinstance(result.exception, Invalid) and "more than 5%" in str(result.exception)
    found = json.loads(result.stdout)
    assert found["bad"][0] | {"file": ""} == {
        "file": "",
        "line": 13,
        "row": None,
        "field": "output",
        "reason": "is missing",
    }
    assert found["refused"] == str(result.exception)


def test_preview_marks_what_is_learned(tiny_base: Path, tmp_path: Path) -> None:
    path = str(write(tmp_path))
    shown = run("preview", path, "--rows", "2", "--base", str(tiny_base)).output
    assert "<|im_start|>user\nsay 0<|im_end|>\n<|im_start|>assistant\n⟦0 and 1<|im_end|>⟧" in shown
    rows = json.loads(run("preview", path, "--rows", "1", "--base", str(tiny_base), "--json").stdout)
    assert [piece["learned"] for piece in rows[0]["pieces"]] == [False, True]


def test_a_list_names_data_sets_on_the_command_line(tiny_base: Path, tmp_path: Path) -> None:
    write(tmp_path, [{"q": "Hi", "a": "Ho"}], "named.jsonl")
    info = tmp_path / "dataset_info.json"
    columns = {"prompt": "q", "response": "a"}
    info.write_text(json.dumps({"one": {"file_name": "named.jsonl", "columns": columns}}))
    shown = run("preview", f"{info}:one", "--base", str(tiny_base)).output
    assert "⟦Ho<|im_end|>⟧" in shown
    listed = ["--dataset", "one", "--dataset-dir", str(tmp_path)]
    assert run("preview", *listed, "--base", str(tiny_base)).output == shown
    assert "no data: give files as data" in str(run("preview", "--base", str(tiny_base)).exception)


def test_convert_and_split_write_files_and_say_so(tmp_path: Path) -> None:
    path = write(tmp_path)
    out = tmp_path / "out.jsonl"
    result = run("convert", str(path), "--to", "sharegpt", "--out", str(out))
    assert (result.exit_code, result.stdout) == (0, f"{out}: 12 rows, 0 left out\n")
    assert json.loads(out.read_text().splitlines()[0])["conversations"][0] == {"from": "human", "value": "say 0"}
    result = run("split", str(path), "--share", "0.25", "--out", str(tmp_path))
    assert result.stdout == f"{tmp_path}/data.train.jsonl: 9 rows\n{tmp_path}/data.validation.jsonl: 3 rows\n"


@pytest.mark.parametrize("command", ["check", "preview"])
def test_a_row_that_the_base_cannot_learn_is_said_not_shown(tiny_base: Path, tmp_path: Path, command: str) -> None:
    tool = {"name": "look", "parameters": {"type": "object"}}
    path = write(tmp_path, [{"instruction": "rain?", "output": "yes", "tools": [tool]}])
    result = run(command, str(path), "--base", str(tiny_base))
    assert isinstance(result.exception, Invalid)
    assert "uses tools, and the base's chat template has no place for them" in str(result.exception)
