"""The rules of hosted fine-tuning, held against rows that break them one by one."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.messages_file import validate_messages_file, warnings_of

S, U, A = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
}
TOOL = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}


def check(directory: Path, *rows: Any) -> list[str]:
    path = directory / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(bad).rpartition("data.jsonl:")[2] for bad in validate_messages_file(path)]


@pytest.mark.parametrize(
    "messages",
    [
        [U, A],
        [S, U, A, U, A],
        [S, PARTS, A | {"weight": 0}, U, A | {"weight": 1}],
        [U, CALL, TOOL, A],
        [U, CALL, TOOL, TOOL, CALL, TOOL, A],
        [{"role": "developer", "content": "x"}, U, A],
    ],
)
def test_good_conversations_pass(tmp_path: Path, messages: list[Any]) -> None:
    assert check(tmp_path, {"messages": messages}) == []


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (3, "1: expected an object, found the number 3"),
        ({}, "1: messages: is missing"),
        ({"messages": []}, "1: messages: is empty"),
        ({"messages": "Hi"}, "1: messages: must be a list, is text"),
        ({"messages": [U, A], "prompt": "x"}, "1: prompt: is no field of an example"),
        ({"messages": [U, S, A]}, "1: messages[2].role: a system message may only come first"),
        ({"messages": [S, S, U, A]}, "1: messages[2].role: a system message may only come first"),
        ({"messages": [A, U, A]}, "1: messages[1].role: the first message after the system's is the user's"),
        ({"messages": [S]}, "1: messages[2].role: the first message after the system's is the user's, not nothing's"),
        ({"messages": [U, U, A]}, "1: messages[2].role: user cannot follow user; assistant does"),
        ({"messages": [U, A, A]}, "1: messages[3].role: assistant cannot follow assistant; user does"),
        ({"messages": [U, CALL, A]}, "1: messages[3].role: assistant cannot follow assistant; tool does"),
        ({"messages": [U, A, U]}, "1: messages[3].role: the last message is the assistant's"),
        ({"messages": [U, {"role": "gpt", "content": "x"}]}, "1: messages[2].role: must be one of system"),
        ({"messages": [U, {"role": "assistant"}]}, "1: messages[2].content: is missing"),
        ({"messages": [U, A | {"content": " "}]}, "1: messages[2].content: the assistant turn is empty"),
        ({"messages": [U, A | {"weight": 0.5}]}, "1: messages[2].weight: must be 0 or 1"),
        ({"messages": [U | {"weight": 1}, A]}, "1: messages[1].weight: goes with an assistant's message only"),
        ({"messages": [U, A], "tools": [{"type": "function"}]}, "1: tools[1]: a function needs a name"),
    ],
)
def test_each_rule_is_kept_and_its_breach_named_by_line(tmp_path: Path, row: Any, complaint: str) -> None:
    (found,) = check(tmp_path, row)
    assert found.startswith(complaint)


def test_every_bad_line_is_found_and_an_empty_file_is_one(tmp_path: Path) -> None:
    good = {"messages": [U, A]}
    assert [line.partition(":")[0] for line in check(tmp_path, good, {}, good, {"messages": [U]})] == ["2", "4"]
    assert "the file is empty" in check(tmp_path)[0]


def test_few_examples_are_a_warning_only(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    for count, warned in ((9, True), (10, False)):
        path.write_text((json.dumps({"messages": [U, A]}) + "\n") * count)
        assert validate_messages_file(path) == []
        assert bool(warnings_of(path)) == warned
