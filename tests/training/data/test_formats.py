"""What reading data promises: every known format, true line numbers, and reasons a user can act on."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import Invalid, NotFound
from training.data.formats import MAX_CHARACTERS, DataFile, Document, Example, PreferencePair, read_data

SYSTEM = {"role": "system", "content": "Be brief."}


LONG = "a" * (MAX_CHARACTERS + 1)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(directory: Path, rows: list[Any], name: str = "data.jsonl") -> Path:
    path = directory / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_one(directory: Path, row: Any) -> tuple[str, Any]:
    file = read_data(write(directory, [row]))
    assert not file.bad, file.bad
    (read,) = file.rows
    return file.format, read


@pytest.mark.parametrize(
    ("format", "row", "messages"),
    [
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Ho"}, [user("Hi"), assistant("Ho")]),
        (
            "alpaca",
            {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["a", "b"]]},
            [SYSTEM, user("a"), assistant("b"), user("Add\n1 2"), assistant("3")],
        ),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
                "system": "Be brief.",
            },
            [SYSTEM, user("Hi"), assistant("Ho")],
        ),
        ("sharegpt", {"conversations": [user("Hi"), assistant("Ho")]}, [user("Hi"), assistant("Ho")]),
        (
            "sharegpt",
            {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]},
            [user("a"), assistant("b"), user("c"), assistant("d")],
        ),
        (
            "sharegpt",
            {"conversation": [{"system": "Be brief.", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
            [SYSTEM, user("a"), assistant("b"), user("c"), assistant("d")],
        ),
        ("messages", {"messages": [SYSTEM, user("Hi"), assistant("Ho")]}, [SYSTEM, user("Hi"), assistant("Ho")]),
        (
            "messages",
            {"messages": [user([{"type": "text", "text": "Hi"}]), assistant([{"type": "text", "value": "Ho"}])]},
            [user("Hi"), assistant("Ho")],
        ),
        (
            "query-response",
            {"query": "c", "response": "d", "history": [["a", "b"]], "system": "Be brief."},
            [SYSTEM, user("a"), assistant("b"), user("c"), assistant("d")],
        ),
        ("query-response", {"prompt": "Hi", "completion": "Ho"}, [user("Hi"), assistant("Ho")]),
        ("query-response", {"problem": "1+1", "solution": "2"}, [user("1+1"), assistant("2")]),
        ("query-response", {"question": "Hi", "answer": "Ho"}, [user("Hi"), assistant("Ho")]),
        ("query-response", {"input": "Hi", "target": "Ho"}, [user("Hi"), assistant("Ho")]),
        ("qa", {"Question": "Hi", "Response": "Ho"}, [user("Hi"), assistant("Ho")]),
    ],
)
def test_a_row_is_told_by_its_fields_and_becomes_messages(
    tmp_path: Path, format: str, row: dict[str, Any], messages: list[dict[str, str]]
) -> None:
    found, example = read_one(tmp_path, row)
    assert found == format
    assert list(example.messages) == messages
    assert list(example.learn) == [message["role"] == "assistant" for message in messages]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"}}
        | {"rejected": {"from": "gpt", "value": "bad"}},
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {"input": {"messages": [user("q")], "tools": []}, "preferred_output": [assistant("good")]}
        | {"non_preferred_output": [assistant("bad")]},
        {"chosen_messages": [user("q"), assistant("good")], "rejected_messages": [user("q"), assistant("bad")]},
    ],
)
def test_preferences_of_every_dialect_are_the_same_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    format, pair = read_one(tmp_path, row)
    assert format == "dpo"
    assert isinstance(pair, PreferencePair)
    assert (list(pair.prompt), pair.chosen, pair.rejected) == ([user("q")], "good", "bad")


def test_kto_rows_have_one_side(tmp_path: Path) -> None:
    rows = [{"messages": [user("q"), assistant("a")], "label": label} for label in (True, False)]
    file = read_data(write(tmp_path, rows))
    assert file.format == "kto"
    assert [(row.chosen, row.rejected) for row in file.rows if isinstance(row, PreferencePair)] == [
        ("a", None),
        (None, "a"),
    ]


def test_a_kto_row_of_instruction_and_input_keeps_both(tmp_path: Path) -> None:
    _, pair = read_one(tmp_path, {"instruction": "Add", "input": "1 2", "output": "3", "kto_tag": True})
    assert (list(pair.prompt), pair.chosen) == ([user("Add\n1 2")], "3")


def test_a_row_that_shows_more_than_text_is_bad(tmp_path: Path) -> None:
    (bad,) = read_data(write(tmp_path, [{"messages": [user("<image>?"), assistant("b")], "images": ["a.png"]}])).bad
    assert (bad.field, bad.reason) == ("images", "the row shows more than text, and only text is learned")


def test_turns_say_for_themselves_whether_they_are_learned(tmp_path: Path) -> None:
    turns = [user("a"), assistant("b") | {"loss": False}, user("c"), assistant("d") | {"weight": 1}]
    _, example = read_one(tmp_path, {"messages": turns})
    assert example.learn == (False, False, False, True)


def test_a_greeting_before_any_question_is_context(tmp_path: Path) -> None:
    _, example = read_one(tmp_path, {"messages": [assistant("Welcome!"), user("Hi"), assistant("Ho")]})
    assert example.learn == (False, False, True)


LOOK = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [
                {"from": "human", "value": "weather?"},
                {"from": "function_call", "value": '{"name": "look", "arguments": {"city": "Paris"}}'},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": "Rain."},
            ],
            "tools": json.dumps([LOOK]),
        },
        {
            "messages": [
                user("weather?"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"type": "function", "function": {"name": "look", "arguments": '{"city": "Paris"}'}}
                    ],
                },
                {"role": "tool", "content": "rain"},
                assistant("Rain."),
            ],
            "tools": [{"type": "function", "function": LOOK | {"strict": True}}],
        },
        {
            "messages": [
                user([{"type": "text", "value": "weather?"}]),
                assistant([{"type": "tool_call", "value": '{"name": "look", "arguments": {"city": "Paris"}}'}]),
                {"role": "tool", "content": [{"type": "text", "value": "rain"}]},
                assistant([{"type": "text", "value": "Rain."}]),
            ],
            "tools": [LOOK],
        },
    ],
    ids=["sharegpt", "openai", "parts"],
)
def test_calls_of_every_dialect_are_the_same_messages(tmp_path: Path, row: dict[str, Any]) -> None:
    _, example = read_one(tmp_path, row)
    function = {"name": "look", "arguments": {"city": "Paris"}}
    assert list(example.messages) == [
        user("weather?"),
        assistant("") | {"tool_calls": [{"id": "call00001", "type": "function", "function": function}]},
        {"role": "tool", "content": "rain", "tool_call_id": "call00001"},
        assistant("Rain."),
    ]
    assert example.learn == (False, True, False, True)
    assert example.tools == ({"type": "function", "function": LOOK},)  # as the server hands them to the template


def test_several_calls_are_one_turn_with_what_was_said_before_them(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "weather?"},
        {"from": "gpt", "value": "Let me look."},
        {"from": "function_call", "value": '[{"name": "look", "arguments": {"city": "Paris"}}, {"name": "look"}]'},
        {"from": "observation", "value": "rain"},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "Rain and sun."},
    ]
    _, example = read_one(tmp_path, {"conversations": turns, "tools": [LOOK]})
    calling = example.messages[1]
    assert calling["content"] == "Let me look."
    assert [call["function"]["arguments"] for call in calling["tool_calls"]] == [{"city": "Paris"}, {}]
    assert [m["tool_call_id"] for m in example.messages if m["role"] == "tool"] == ["call00001", "call00002"]


@pytest.mark.parametrize(
    "row",
    [
        {"Question": "q", "Response": "a", "Complex_CoT": "why"},
        {"query": "q", "response": "a", "reasoning_content": "why"},
        {"query": "q", "response": "<think>\nwhy\n</think>\n\na"},
        {"messages": [user("q"), assistant("a") | {"reasoning_content": "why"}]},
        {"messages": [user("q"), assistant([{"type": "reasoning", "value": "why"}, {"type": "text", "value": "a"}])]},
    ],
)
def test_thoughts_of_every_dialect_belong_to_their_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    _, example = read_one(tmp_path, row)
    assert list(example.messages) == [user("q"), assistant("a") | {"reasoning_content": "why"}]
    assert example.has_reasoning


def test_history_is_turns_that_are_learned_unless_it_is_masked(tmp_path: Path) -> None:
    _, example = read_one(tmp_path, {"instruction": "c", "output": "d", "history": [["a", "b"]]})
    assert example.learn == (False, True, False, True)
    assert example.with_last_answer().learn == (False, False, False, True)


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"instruction": "a", "input": ""}, "output", "is missing"),
        ({"instruction": "a", "output": " "}, "output", "is empty"),
        ({"instruction": "a", "output": 3}, "output", "must be text, is the number 3"),
        (
            {"instruction": "a", "output": "b", "history": [["c"]]},
            "history[1]",
            "must be [question, answer], two texts",
        ),
        (["a", "b"], "", "expected an object, found a list"),
    ],
)
def test_a_bad_row_is_reported_with_field_and_reason(tmp_path: Path, row: Any, field: str, reason: str) -> None:
    good = {"instruction": "a", "output": "b"}
    file = read_data(write(tmp_path, [good, good, row]))
    (bad,) = file.bad
    assert (bad.place.line, bad.field, bad.reason) == (3, field, reason)
    assert len(file.rows) == 2


@pytest.mark.parametrize(
    ("turns", "field", "reason"),
    [
        ([user("a")], "messages", "no assistant turn to learn"),
        ([user("a"), assistant("b"), user("c")], "messages", "ends with a user turn that nothing answers"),
        ([user("a"), {"role": "wizard", "content": "b"}], "messages[2].role", "unknown role 'wizard'"),
        ([user("a"), SYSTEM, assistant("b")], "messages[2]", "a system message may only come first"),
        ([user("a") | {"weight": 1}, assistant("b")], "messages[1]", "a user turn cannot be learned"),
        ([user("a"), assistant("b") | {"weight": 0.5}], "messages[2].weight", "must be 0 or 1"),
        (
            [user("a"), assistant([{"type": "image"}])],
            "messages[2].content",
            "content of type 'image' cannot be learned",
        ),
        ([user("a"), {"role": "tool_call", "content": "look!"}], "messages[2]", "a function call must be JSON"),
        ([user("a"), {"role": "tool_call", "content": "{}"}], "messages[2]", "a function call has a name"),
    ],
)
def test_a_conversation_that_cannot_be_learned_says_where(
    tmp_path: Path, turns: list[Any], field: str, reason: str
) -> None:
    (bad,) = read_data(write(tmp_path, [{"messages": turns}])).bad
    assert bad.field == field
    assert bad.reason.startswith(reason)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"instruction": LONG, "output": "b"}, "instruction"),
        ({"query": "a", "response": LONG}, "response"),
        ({"messages": [user("a"), assistant(LONG)]}, "messages[2]"),
        ({"messages": [user("a"), assistant("b")], "system": LONG}, "system"),
        ({"messages": [user("a"), {"role": "assistant", "content": "b", "reasoning_content": LONG}]}, "messages[2]"),
        ({"prompt": "a", "chosen": LONG, "rejected": "c"}, "chosen"),
        ({"prompt": LONG, "completion": "b", "label": True}, "prompt"),
    ],
)
def test_a_conversation_of_a_million_characters_is_a_bad_row(tmp_path: Path, row: Any, field: str) -> None:
    rows = [{**row}, json.loads(json.dumps(row).replace(LONG, "short"))]
    found = read_data(write(tmp_path, rows))
    assert len(found.rows) == 1
    (bad,) = found.bad
    assert (bad.place.line, bad.field) == (1, field)
    assert "has 1,000,00" in bad.reason and "a row may have 1,000,000: split it" in bad.reason


def test_the_format_is_that_of_most_rows_not_of_the_first(tmp_path: Path) -> None:
    odd = {"query": "a", "response": "b"}
    file = read_data(write(tmp_path, [odd, *[{"instruction": "a", "output": "b"}] * 3]))
    assert file.format == "alpaca"
    assert [bad.place.line for bad in file.bad] == [1]


def test_rows_of_a_json_array_have_the_lines_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[\n  {"instruction": "a",\n   "output": "b"},\n\n  {"instruction": "c"},\n  {"output": "d"}\n]\n')
    file = read_data(path)
    assert [row.place.line for row in file.rows] == [2]
    assert [str(bad).rpartition("data.json")[2] for bad in file.bad] == [
        ":5: output: is missing",
        ":6: instruction: is missing",
    ]


def test_rows_that_share_a_line_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]')
    assert str(read_data(path).bad[0]).endswith("data.json:1 (row 2): output: is missing")


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"instruction": "a\u2028b", "output": "c"}\n{"instruction": "d"}\n', encoding="utf-8")
    file = read_data(path)
    assert len(file.rows) == 1
    assert file.bad[0].place.line == 2


def test_the_same_rows_come_from_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c, d", "output": "two\nlines"}]
    files = [write(tmp_path, rows), tmp_path / "data.json", tmp_path / "data.csv", tmp_path / "data.tsv"]
    files[1].write_text(json.dumps(rows))
    files[2].write_text('instruction,output\na,b\n"c, d","two\nlines"\n')
    files[3].write_text('instruction\toutput\na\tb\nc, d\t"two\nlines"\n')
    zipped = tmp_path / "data2.jsonl.gz"
    zipped.write_bytes(gzip.compress(files[0].read_bytes()))
    parquet = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    for path in [*files, zipped, parquet]:
        file = read_data(path)
        assert (file.format, file.bad) == ("alpaca", []), path
        assert [[m["content"] for m in row.messages] for row in file.rows if isinstance(row, Example)] == [
            ["a", "b"],
            ["c, d", "two\nlines"],
        ]


def test_a_csv_row_of_several_lines_does_not_shift_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('instruction,output\na,"two\nlines"\nb,\n')
    assert [bad.place.line for bad in read_data(path).bad] == [4]


def test_a_text_file_is_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("first\n\nsecond\n")
    file = read_data(path)
    assert file.rows == [
        Document("first", file.rows[0].place),
        Document("second", file.rows[1].place),
    ]
    assert [row.place.line for row in file.rows] == [1, 3]


@pytest.mark.parametrize(
    ("name", "content", "line", "reason", "way_out"),
    [
        ("a.jsonl", b'{\n "instruction": "a",\n "output": "b"\n}\n', 1, "an object over several lines", "jq -c"),
        ("a.jsonl", b'[{"instruction": "a", "output": "b"}]', 1, "a JSON array", ".json"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', 2, "text after the first value", ".jsonl"),
        ("a.json", b'{"a": 1}', 1, "one object where an array", "[ ]"),
        ("a.json", b'[\n{"instruction": "a"\n', 3, "not JSON", "column"),
        ("a.json", b'[{"instruction": "a", "output": "b"}\n', 2, "expected ','", "end of the file"),
        ("a.jsonl", "\n\n你好".encode("gb18030"), 3, "not UTF-8", "iconv"),
        ("a.jsonl", b'{"role": "Wukong", "dialogue": "Ha!"}', 1, "lines of a dialogue", "make rows of"),
        ("a.csv", b"instruction,output,output\na,b,c\n", 1, "the column 'output' is there twice", "rename or remove"),
        ("a.jsonl", b'{"colour": "red"}', 1, "no known format has the fields colour", "alpaca"),
    ],
)
def test_a_file_that_is_something_else_is_refused_with_the_way_out(
    tmp_path: Path, name: str, content: bytes, line: int, reason: str, way_out: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Invalid) as caught:
        read_data(path)
    assert caught.value.message.startswith(f"{path}:{line}: {reason}")
    assert way_out in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.docx", b"", "unknown suffix '.docx'"),
        ("a.json", b"[]", "no rows"),
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl.gz", b"plain", "not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}' * 99)[:-9], "not a whole gzip file"),
        ("a.parquet", b"plain", "not a Parquet file"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Invalid, match=reason):
        read_data(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere\.json does not exist"):
        read_data(tmp_path / "nowhere.json")


def test_one_broken_line_is_a_bad_row_not_a_bad_file(tmp_path: Path) -> None:
    path = write(tmp_path, [{"instruction": "a", "output": "b"}] * 2)
    path.write_text(path.read_text() + '{"instruction": "a", "outp\n' + path.read_text())
    file: DataFile = read_data(path)
    assert len(file.rows) == 4
    assert [(bad.place.line, bad.kind) for bad in file.bad] == [(3, "syntax")]


def test_a_named_format_is_not_second_guessed(tmp_path: Path) -> None:
    file = read_data(write(tmp_path, [{"text": "a", "instruction": "b", "output": "c"}]), "text")
    assert isinstance(file.rows[0], Document)
