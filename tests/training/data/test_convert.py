"""Data in another shape is the same data: what is written reads back as the same rows, or is named and left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import Invalid
from training.config import parse_config
from training.data.convert import TARGETS, convert_files, split_file
from training.data.formats import Document, Example, PreferencePair, read_data

LOOK = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
PLAIN = [
    {"instruction": "a", "output": "b", "system": "Be brief.", "history": [["c", "d"]]},
    {"Question": "e", "Response": "f", "Complex_CoT": "why"},
]
CALLS = {
    "conversations": [
        {"from": "human", "value": "rain?"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"city": "北京"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "Yes."},
    ],
    "tools": [LOOK],
}
WEIGHTED = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}
WEIGHTED["messages"] += [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def convert(path: Path, to: str, out: Path) -> tuple[int, list[Any]]:
    """(rows written, rows left out)."""
    converted = convert_files(parse_config({"data": [path], "name": "n"}), to, out)
    return converted.written, converted.bad


def meaning(path: Path) -> list[Any]:
    """The rows of a file without their places."""
    said: list[Any] = []
    for row in read_data(path).rows:
        match row:
            case Example():
                said.append((row.messages, row.learn, row.tools))
            case PreferencePair():
                said.append((row.prompt, row.chosen, row.rejected))
            case Document():
                said.append(row.text)
    return said


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("rows", [PLAIN[:1], PLAIN[1:]], ids=["history", "thoughts"])
def test_chats_read_back_the_same(tmp_path: Path, to: str, rows: list[Any]) -> None:
    path = write(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.json"
    assert convert(path, to, out) == (1, [])
    assert meaning(out) == meaning(path)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "yes", "rejected": "no", "system": "Be brief."},
        {"prompt": "q", "completion": "a", "label": False},
    ],
    ids=["pair", "labelled"],
)
def test_preferences_read_back_the_same(tmp_path: Path, to: str, row: dict[str, Any]) -> None:
    path = write(tmp_path / "in.jsonl", [row])
    out = tmp_path / "out.jsonl"
    assert convert(path, to, out) == (1, [])
    assert meaning(out) == meaning(path)


def test_what_keeps_its_shape_is_said_with_what_it_is_for(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "yes", "rejected": "no"}] * 2 + [{"text": "only words"}]
    rows += [{"prompt": "q", "completion": "a", "label": False}]
    for name, own in (("pairs", rows[:2]), ("text", rows[2:3]), ("kto", rows[3:]), ("chats", PLAIN[:1])):
        asked = parse_config({"data": [write(tmp_path / f"{name}.jsonl", own)], "name": "n"})
        said = " ".join(convert_files(asked, "messages", tmp_path / f"{name}.out.jsonl").kept)
        wanted = {
            "pairs": "2 of them have chosen and rejected",
            "text": "the field text",
            "kto": "a verdict",
            "chats": "",
        }
        assert wanted[name] in said and bool(said) == bool(wanted[name])


@pytest.mark.parametrize("to", ["messages", "sharegpt"])
def test_calls_read_back_the_same(tmp_path: Path, to: str) -> None:
    path = write(tmp_path / "in.jsonl", [CALLS])
    convert(path, to, tmp_path / "out.jsonl")
    assert meaning(tmp_path / "out.jsonl") == meaning(path)


def test_what_a_format_has_no_place_for_is_left_out_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [WEIGHTED, *PLAIN[:1], CALLS])
    alpaca = [{"instruction": "x", "output": "y"}]
    chats = write(tmp_path / "chats.jsonl", [WEIGHTED, {"messages": WEIGHTED["messages"][2:]}])
    written, left_out = convert(chats, "sharegpt", tmp_path / "out.jsonl")
    assert written == 1
    assert [(bad.place.line, "convert to messages" in bad.reason) for bad in left_out] == [(1, True)]
    with pytest.raises(Invalid, match=r"no row can be written as alpaca.*in\.jsonl:1: tools: are used"):
        convert(write(path, [CALLS]), "alpaca", tmp_path / "none.jsonl")
    assert convert(write(tmp_path / "a.jsonl", alpaca), "messages", tmp_path / "b.jsonl") == (1, [])
    convert(write(tmp_path / "w.jsonl", [WEIGHTED]), "messages", tmp_path / "w2.jsonl")
    assert meaning(tmp_path / "w2.jsonl") == meaning(tmp_path / "w.jsonl")


@pytest.mark.parametrize(
    ("to", "out", "param"), [("aplaca", "b.jsonl", "to"), ("alpaca", "b.csv", "out"), ("alpaca", "in.jsonl", "out")]
)
def test_nothing_is_overwritten_or_guessed(tmp_path: Path, to: str, out: str, param: str) -> None:
    path = write(tmp_path / "in.jsonl", PLAIN[:1])
    before = path.read_bytes()
    with pytest.raises(Invalid) as caught:
        convert(path, to, tmp_path / out)
    assert caught.value.param == param
    assert path.read_bytes() == before


def test_a_split_keeps_rows_as_they_are_and_equal_ones_together(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n % 20}", "output": "a", "note": n % 20} for n in range(40)]
    path = write(tmp_path / "in.jsonl", rows)
    parts = split_file(path, 0.2, 7, tmp_path / "out")
    assert [(part.name, count) for part, count in parts] == [("in.train.jsonl", 32), ("in.validation.jsonl", 8)]
    training, validation = ([json.loads(line) for line in part.read_text().splitlines()] for part, _ in parts)
    assert sorted([*training, *validation], key=str) == sorted(rows, key=str)
    assert not {row["note"] for row in training} & {row["note"] for row in validation}
    again = split_file(path, 0.2, 7, tmp_path / "again")
    assert [part.read_text() for part, _ in again] == [part.read_text() for part, _ in parts]
    with pytest.raises(Invalid, match="there already"):
        split_file(path, 0.2, 7, tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "share", "reason"),
    [
        (PLAIN, 1.0, "between 0 and 1"),
        (PLAIN[:1] * 3, 0.5, "fewer than two distinct rows"),
        ([*PLAIN, 3], 0.5, "in.jsonl:3: expected an object"),
    ],
)
def test_a_file_that_cannot_be_split_is_refused(tmp_path: Path, rows: list[Any], share: float, reason: str) -> None:
    path = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(Invalid, match=reason):
        split_file(path, share, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()
