"""The table of docs/datasets.md: every file becomes a line, read or refused with the exact reason."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from training.data.datasets_table import BEGIN, END, describe, table, write_table

SETS = os.environ.get("BIANLIAN_DATA_SETS", "")  # read before conftest takes such variables away
PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
LOOK = '[{"name": "look", "description": "", "parameters": {}}]'
CALLS = [
    {"from": "human", "value": "rain?"},
    {"from": "function_call", "value": '{"name": "look", "arguments": {}}'},
    {"from": "observation", "value": "rain"},
    {"from": "gpt", "value": "Yes."},
]


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# One small file of each shape that other projects publish: (name, content, its line of the table).
SHAPES: list[tuple[str, str, str]] = [
    (
        "alpaca.json",
        json.dumps([{"instruction": "a", "input": "", "output": "b"}, {"instruction": "", "output": "b"}]),
        "| alpaca.json | alpaca | 1 | 1 | bad: line 1 (row 2): instruction: is empty |",
    ),
    ("alpaca2.csv", "instruction,output\na,b\n", "| alpaca2.csv | alpaca | 1 | 0 |  |"),
    (
        "chatml.jsonl",
        jsonl({"messages": [{"role": "system", "content": "s"}, *CHAT, *CHAT]}),
        "| chatml.jsonl | messages | 1 | 0 | 1 with a system message; 1 of several turns |",
    ),
    (
        "dataset_info.json",
        json.dumps({"identity": {"file_name": "alpaca.json"}, "far": {"hf_hub_url": "a/b"}}),
        "| dataset_info.json | refused | | | line 1: a list of datasets, not a dataset; name one of them behind a "
        "colon, like dataset_info.json:identity |",
    ),
    (
        "dialogues.jsonl",
        jsonl({"role": "悟空", "dialogue": "俺来也！"}),
        "| dialogues.jsonl | refused | | | line 1: lines of a dialogue (role, dialogue), of which none says what it "
        "answers; make rows of instruction (the line before) and output (the persona's line) first |",
    ),
    (
        "dpo.jsonl",
        jsonl({"conversations": CALLS[:1], "chosen": CALLS[3], "rejected": CALLS[3] | {"value": "No."}}),
        "| dpo.jsonl | dpo | 1 | 0 |  |",
    ),
    (
        "firefly.jsonl",
        jsonl({"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]}),
        "| firefly.jsonl | sharegpt | 1 | 0 | 1 of several turns |",
    ),
    ("kto.json", json.dumps([{"messages": CHAT, "label": True}]), "| kto.json | kto | 1 | 0 |  |"),
    (
        "parts.jsonl",
        jsonl({"messages": [{**turn, "content": [{"type": "text", "value": turn["content"]}]} for turn in CHAT]}),
        "| parts.jsonl | messages | 1 | 0 |  |",
    ),
    (
        "pretty.jsonl",
        '{\n  "role": "悟空",\n  "dialogue": "俺来也！"\n}\n',
        "| pretty.jsonl | refused | | | line 1: an object over several lines (to line 4), but .jsonl is one object a "
        "line; put it in order with: jq -c . FILE > NEW.jsonl |",
    ),
    (
        "register.json",
        json.dumps([{"ms_dataset_id": "a/b", "tags": []}]),
        "| register.json | refused | | | line 1: a list of hub datasets, not a dataset; download one and give its "
        "file |",
    ),
    (
        "thoughts.json",
        json.dumps([{"Question": "a", "Response": "b", "Complex_CoT": "c"}]),
        "| thoughts.json | qa | 1 | 0 | 1 with thoughts |",
    ),
    (
        "tools.json",
        json.dumps([{"conversations": CALLS, "tools": LOOK}]),
        "| tools.json | sharegpt | 1 | 0 | 1 with tools; 1 with calls |",
    ),
    ("voice.tsv", "Question\tAnswer\tMetadata\na\tb\tc\n", "| voice.tsv | qa | 1 | 0 |  |"),
    ("wiki.txt", "one\ntwo\n", "| wiki.txt | text | 2 | 0 | 2 documents |"),
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, content, _ in SHAPES:
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "swift.jsonl.gz").write_bytes(gzip.compress(jsonl({"query": "a", "response": "b"}).encode()))
    return tmp_path


def test_every_shape_is_read_as_what_it_is_or_refused_with_the_reason(directory: Path) -> None:
    lines = {str(line) for line in describe(directory)}
    assert lines == {line for _, _, line in SHAPES} | {"| deep/swift.jsonl.gz | query-response | 1 | 0 |  |"}


def test_the_table_is_written_between_its_marks(directory: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    lines = describe(directory / "deep")
    write_table(page, lines)
    assert page.read_text() == f"before\n{BEGIN}\n{table(lines)}{END}\nafter\n"


@pytest.mark.skipif(not SETS, reason="BIANLIAN_DATA_SETS names no directory of data sets")
def test_the_published_table_is_what_the_files_give() -> None:
    made = table(describe(Path(SETS)))
    assert made in PAGE.read_text(encoding="utf-8")
