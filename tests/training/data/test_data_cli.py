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


def test_personal_data_is_counted_by_rows(tiny_base: Path, tmp_path: Path) -> None:
    told = {"instruction": "who?", "output": "13812345678, wukong@huaguo.example"}
    result = run("check", str(write(tmp_path, [*ROWS, told])), "--base", str(tiny_base))
    assert "privacy: 1 row holds what may be personal data (2 found)" in result.output


def test_single_answers_are_for_kto_and_so_is_what_is_said_of_them(tiny_base: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"say {n}", "completion": "word " * (100 if n == 0 else 1), "label": n % 2 == 0} for n in range(30)
    ]
    result = run("check", str(write(tmp_path, rows)), "--base", str(tiny_base), "--max-length", "48")
    assert "for kto" in result.output and "its last question and its answer have more than" in result.output


def test_a_directory_is_answered_with_the_data_sets_in_it(tiny_base: Path, tmp_path: Path) -> None:
    write(tmp_path)
    bare = run("check", str(tmp_path), "--base", str(tiny_base))
    assert isinstance(bare.exception, Invalid) and "is a directory; give its files" in str(bare.exception)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"b": {"file_name": "data.jsonl"}, "a": {}}))
    listed = run("check", str(tmp_path), "--base", str(tiny_base))
    assert f"as {tmp_path}/dataset_info.json:NAME, of a, b" in str(listed.exception)
    assert run("check", f"{tmp_path}/dataset_info.json:b", "--base", str(tiny_base)).exit_code == 0


def test_rows_that_cannot_be_split_are_refused_by_what_they_are(tiny_base: Path, tmp_path: Path) -> None:
    for rows, reason in ((ROWS[:1] * 20, "all 20 rows are equal"), (ROWS[:1], "one row cannot be split")):
        result = run("check", str(write(tmp_path, rows)), "--base", str(tiny_base))
        assert isinstance(result.exception, Invalid) and reason in str(result.exception)
        assert "--val-split 0" in str(result.exception)


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
