"""Rows of the formats people have, as three shapes: Example, PreferencePair, Document.

What lives here: telling formats apart, and one small parser a format. What does not: reading files with true line
numbers (`files.py`); lists of turns (`turns.py`); tokens, splits and statistics (`dataset.py`)."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from adapters.errors import Invalid
from adapters.renderer import Message
from training.data.fields import RowError, first_of, need, text_of
from training.data.files import BadRow, Object, Place, json_type, read_objects
from training.data.turns import assistant, read_tools, read_turns, system_of, user

Format = Literal["alpaca", "sharegpt", "messages", "query-response", "dpo", "kto", "qa", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)
# A tokenizer takes ninety bytes for a character of one long text, and a conversation beyond this is a mistake.
MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Example:
    """A conversation to learn from. `learn[i]` says whether message i is learned; only assistant turns are.

    Calls and thoughts are in the messages; `tools` are those the model is offered, as chat templates take them."""

    messages: tuple[Message, ...]
    learn: tuple[bool, ...]
    place: Place
    tools: tuple[dict[str, Any], ...] = ()
    fields: tuple[str, ...] = field(default=(), compare=False)  # where in the row each message is from

    @property
    def has_reasoning(self) -> bool:
        return any(message.get("reasoning_content") for message in self.messages)

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools) or any(m["role"] == "tool" or "tool_calls" in m for m in self.messages)

    def with_system(self, system: str) -> "Example":
        """The same conversation under `system`, unless it has a system message of its own."""
        if self.messages[0]["role"] == "system":
            return self
        return replace(
            self,
            messages=(Message(role="system", content=system), *self.messages),
            learn=(False, *self.learn),
            fields=("", *self.fields),
        )

    def with_last_answer(self) -> "Example":
        """The same conversation, of which only the last learned answer is learned."""
        last = max(index for index, learned in enumerate(self.learn) if learned)
        return replace(self, learn=tuple(index == last for index in range(len(self.learn))))


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a wanted and an unwanted answer (DPO), or with only one of them (KTO)."""

    prompt: tuple[Message, ...]
    chosen: str | None
    rejected: str | None
    place: Place
    tools: tuple[dict[str, Any], ...] = ()
    left_out_reasoning: bool = False  # the row has thoughts, which preferences are not learned with
    fields: tuple[str, str] = field(default=("chosen", "rejected"), compare=False)  # where the answers are from


@dataclass(frozen=True)
class Document:
    """Plain text, all of it learned."""

    text: str
    place: Place


Row = Example | PreferencePair | Document


@dataclass(frozen=True)
class DataFile:
    """One file, read."""

    path: Path
    format: Format
    rows: list[Row]
    bad: list[BadRow]


RowMapping = Callable[[Object], Object]  # raises RowError


def read_data(
    path: Path,
    format: Format | Literal["auto"] = "auto",
    *,
    mapping: RowMapping | None = None,
    limit: int | None = None,
) -> DataFile:
    """Read one file, its first `limit` rows if that is given. `mapping` turns rows of another layout into ones known
    here. Blocks; the whole file is held in memory.

    Raises NotFound when there is none, and Invalid when it is not what its suffix says, is empty, or its rows
    are of no known format. Single bad rows are in the result."""
    objects: list[tuple[Place, Object]] = []
    bad: list[BadRow] = []
    for item in islice(read_objects(path), limit):
        if isinstance(item, BadRow):
            bad.append(item)
            continue
        place, row = item
        try:
            objects.append((place, mapping(row) if mapping else row))
        except RowError as error:
            bad.append(error.at(place))
    if not objects and not bad:
        raise Invalid(f"{path}: no rows", param="data")
    if reason := _register(objects):
        raise Invalid(reason, param="data")
    found = detect([row for _, row in objects]) if format == "auto" else format
    if found is None:
        raise Invalid(_unknown_format(objects, bad), param="data")
    parse = _PARSERS[found]
    rows: list[Row] = []
    for place, row in objects:
        try:
            rows.append(_within_bounds(parse(row, place)))
        except RowError as error:
            bad.append(error.at(place))
    return DataFile(path, found, rows, sorted(bad, key=lambda row: (row.place.line, row.place.row or 0)))


def _within_bounds(row: Row) -> Row:
    """Raises RowError for a conversation of more than MAX_CHARACTERS. Documents may be as long as they like: they are
    tokenized in pieces."""
    match row:
        case Document():
            return row
        case Example():
            lengths = [(where, _characters(message)) for message, where in zip(row.messages, row.fields, strict=True)]
        case PreferencePair():
            lengths = [("prompt", _characters(message)) for message in row.prompt]
            lengths += [
                (where, len(text or "")) for where, text in zip(row.fields, (row.chosen, row.rejected), strict=True)
            ]
    if (total := sum(length for _, length in lengths)) > MAX_CHARACTERS:
        where, longest = max(lengths, key=lambda one: one[1])
        whole = "" if longest == total else f", {total:,} in the row"
        raise RowError(
            where, f"has {longest:,} characters{whole}; a row may have {MAX_CHARACTERS:,}: split it into several"
        )
    return row


def _characters(message: Message) -> int:
    calls = message.get("tool_calls", [])
    return len(message["content"]) + len(message.get("reasoning_content", "")) + sum(map(len, map(json.dumps, calls)))


def detect(rows: Iterable[Object]) -> Format | None:
    """The format most rows have; None when no row has a known one."""
    counted = Counter(name for row in rows if (name := recognise(row)))
    return counted.most_common(1)[0][0] if counted else None


def recognise(row: Object) -> Format | None:
    """The format one row has by the names of its fields, from the most to the least particular."""
    keys = {key for key, value in row.items() if value is not None}
    if keys & {"chosen_messages", "preferred_output"} or {"chosen", "rejected"} <= keys:
        return "dpo"
    turns = keys & {"messages", "conversations", "conversation"}
    if (isinstance(row.get("label"), bool) or isinstance(row.get("kto_tag"), bool)) and (turns or _has_query(keys)):
        return "kto"
    if "messages" in keys:
        return "sharegpt" if _first_turn_has(row["messages"], "from") else "messages"
    if turns:
        return "sharegpt"
    if "Question" in keys and keys & {"Response", "Answer"}:
        return "qa"
    if {"instruction", "output"} <= keys:
        return "alpaca"
    if _has_query(keys) and keys & set(_RESPONSES):
        return "query-response"
    if keys & {"text", "content"} or keys <= {"response", "system", "history"} and "response" in keys:
        return "text"
    return None


def _has_query(keys: set[str]) -> bool:
    return bool(keys & set(_QUERIES))


def _first_turn_has(turns: Any, key: str) -> bool:
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and key in turns[0]


def _register(objects: Sequence[tuple[Place, Object]]) -> str:
    """Why rows that name data sets, instead of being one, are refused; "" when these do not."""
    if not objects:
        return ""
    place, row = objects[0]
    lists = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name")
    if row and all(isinstance(value, Mapping) and any(key in value for key in lists) for value in row.values()):
        return (
            f"{place}: a list of datasets, not a dataset; name one of them behind a colon, "
            f"like {Path(place.path).name}:{next(iter(row))}"
        )
    if any(str(key).endswith("dataset_id") for key in row):
        return f"{place}: a list of hub datasets, not a dataset; download one and give its file"
    return ""


def _unknown_format(objects: Sequence[tuple[Place, Object]], bad: Sequence[BadRow]) -> str:
    if not objects:
        return f"{bad[0]} (and no other row can be read)"
    place, row = objects[0]
    if "dialogue" in row and "role" in row:
        return (
            f"{place}: lines of a dialogue (role, dialogue), of which none says what it answers; make rows of "
            "instruction (the line before) and output (the persona's line) first"
        )
    named = ", ".join(sorted(map(str, row))) or "none"
    return (
        f"{place}: no known format has the fields {named}; known: alpaca (instruction, output), sharegpt "
        "(conversations), messages, query and response, chosen and rejected, Question and Response, text"
    )


# --- objects → rows, one parser a format ---

_QUERIES = ("query", "prompt", "input", "instruction", "question", "problem")
_RESPONSES = (
    "response",
    "answer",
    "output",
    "targets",
    "target",
    "answer_key",
    "answers",
    "solution",
    "text",
    "completion",
    "content",
)
_REASONING = ("Complex_CoT", "reasoning_content", "reasoning", "cot")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")


def _alpaca(row: Object, place: Place) -> Example:
    return _answered(row, "instruction", _instruction(row), "output", place)


def _query_response(row: Object, place: Place) -> Example:
    query = first_of(row, _QUERIES, "query")
    answer = first_of(row, [name for name in _RESPONSES if name != query], "response")
    return _answered(row, query, text_of(row, query), answer, place)


def _qa(row: Object, place: Place) -> Example:
    query = first_of(row, ("Question", "question"), "Question")
    answer = first_of(row, ("Response", "Answer", "response", "answer"), "Response")
    return _answered(row, query, text_of(row, query), answer, place)


def _answered(row: Object, asked: str, query: str, answer: str, place: Place) -> Example:
    """System message, history, one more question, from field `asked`, and the answer in field `answer`."""
    thoughts = next((text_of(row, name, required=False) for name in _REASONING if row.get(name)), "")
    opening = _opening(row)
    fields = [*(["history"] * len(opening)), asked, answer]
    return _example([*opening, user(query), assistant(text_of(row, answer), thoughts)], row, place, fields)


def _sharegpt(row: Object, place: Place) -> Example:
    field = first_of(row, ("conversations", "conversation", "messages"), "conversations")
    return _conversation(row, field, place)


def _messages(row: Object, place: Place) -> Example:
    need(row, "messages")
    return _conversation(row, "messages", place)


def _conversation(row: Object, field: str, place: Place) -> Example:
    turns = read_turns(row[field], field)
    before = system_of(row) if turns.messages[0]["role"] != "system" else []
    fields = [*(["system"] * len(before)), *turns.fields]
    weights = [*([None] * len(before)), *turns.weights]
    return _example([*before, *turns.messages], row, place, fields, weights, field)


def _dpo(row: Object, place: Place) -> PreferencePair:
    if "chosen_messages" in row or "rejected_messages" in row:
        names = ("chosen_messages", "rejected_messages")
    elif "preferred_output" in row or "non_preferred_output" in row:
        names = ("preferred_output", "non_preferred_output")
    else:
        names = ("chosen", "rejected")
    (before, chosen), (other, rejected) = (_answer(row, name) for name in names)
    if before != other:
        raise RowError(names[1], f"answers another conversation than '{names[0]}'; both must follow the same turns")
    prompt = _prompt(row)
    if before and before[: len(prompt)] != prompt[: len(before)]:
        prompt = [*prompt, *before]
    elif before:
        prompt = before
    if not prompt:
        raise RowError("prompt", "is missing: what do the two answers answer?")
    return _preference(row, prompt, chosen, rejected, place, names)


def _kto(row: Object, place: Place) -> PreferencePair:
    tag = first_of(row, ("kto_tag", "label"), "label")
    if not isinstance(row[tag], bool):
        raise RowError(tag, f"must be true or false, is {json_type(row[tag])}")
    turns = next((name for name in ("messages", "conversations", "conversation") if name in row), None)
    if turns:
        messages = read_turns(row[turns], turns).messages
        messages = messages if messages[0]["role"] == "system" else [*system_of(row), *messages]
    else:
        messages = list((_alpaca if "instruction" in row else _query_response)(row, place).messages)
    *prompt, last = messages
    answer = turns or "response"
    if last["role"] != "assistant" or not prompt:
        raise RowError(answer, "must end with the assistant's answer to something")
    return _preference(row, prompt, last if row[tag] else None, None if row[tag] else last, place, (answer, answer))


def _preference(
    row: Object,
    prompt: list[Message],
    chosen: Message | None,
    rejected: Message | None,
    place: Place,
    fields: tuple[str, str],
) -> PreferencePair:
    _refuse_media(row)
    asked = row.get("input")
    answers = [answer for answer in (chosen, rejected) if answer]
    if any("tool_calls" in answer for answer in answers):
        raise RowError("", "prefers a function call to another answer; preferences are learned between texts")
    for number, message in enumerate(prompt, 1):
        if message["role"] == "system" and number > 1:
            raise RowError(f"turn {number}", "a system message may only come first")
    return PreferencePair(
        tuple(prompt),
        chosen["content"] if chosen else None,
        rejected["content"] if rejected else None,
        place,
        read_tools(row.get("tools") or (asked.get("tools") if isinstance(asked, Mapping) else None)),
        any("reasoning_content" in answer for answer in answers),
        fields,
    )


def _document(row: Object, place: Place) -> Document:
    return Document(text_of(row, first_of(row, ("text", "content", "response"), "text")), place)


_PARSERS: dict[Format, Callable[[Object, Place], Row]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "query-response": _query_response,
    "dpo": _dpo,
    "kto": _kto,
    "qa": _qa,
    "text": _document,
}


# --- the parts parsers share ---


def _example(
    messages: list[Message],
    row: Object,
    place: Place,
    fields: Sequence[str],
    weights: Sequence[bool | None] | None = None,
    field: str = "history",
) -> Example:
    """All assistant turns learned, unless `weights` says otherwise. A greeting before the first user turn is
    context: nobody can ask for it again when the adapter is served."""
    weights = weights or [None] * len(messages)
    spoken_to = False
    learn: list[bool] = []
    for number, (message, weight) in enumerate(zip(messages, weights, strict=True), 1):
        spoken_to = spoken_to or message["role"] in ("user", "tool")
        if message["role"] == "assistant":
            learn.append(spoken_to and weight is not False)
        elif weight:
            raise RowError(f"{field}[{number}]", f"a {message['role']} turn cannot be learned; assistant turns can")
        else:
            learn.append(False)
        if message["role"] == "system" and number > 1:
            raise RowError(f"{field}[{number}]", "a system message may only come first")
    if not any(learn):
        raise RowError(field, "no assistant turn to learn: the conversation needs an answer to a user turn")
    if messages[-1]["role"] != "assistant":
        raise RowError(field, f"ends with a {messages[-1]['role']} turn that nothing answers")
    _refuse_media(row)
    return Example(tuple(messages), tuple(learn), place, read_tools(row.get("tools")), tuple(fields))


def _refuse_media(row: Object) -> None:
    for name in _MEDIA:
        if row.get(name):
            raise RowError(name, "the row shows more than text, and only text is learned")


def _answer(row: Object, name: str) -> tuple[list[Message], Message]:
    """One side of a preference: the turns it brings along, and the answer itself."""
    need(row, name)
    value = row[name]
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str):
        return [], assistant(text_of(row, name))
    *before, last = read_turns(value, name).messages
    if last["role"] != "assistant":
        raise RowError(name, f"ends with a {last['role']} turn; an assistant turn is wanted")
    return before, last


def _prompt(row: Object) -> list[Message]:
    value = row.get("input") if isinstance(row.get("input"), Mapping) else None
    field, turns = ("input", value["messages"]) if value and "messages" in value else ("", None)
    for name in ("conversations", "conversation", "prompt"):
        if turns is None and isinstance(row.get(name), list):
            field, turns = name, row[name]
    if turns is not None:
        messages = read_turns(turns, field).messages
        return messages if messages[0]["role"] == "system" else [*system_of(row), *messages]
    if "instruction" in row:
        return [*_opening(row), user(_instruction(row))]
    query = next((name for name in _QUERIES if isinstance(row.get(name), str)), None)
    return [*_opening(row), user(text_of(row, query))] if query else []


def _instruction(row: Object) -> str:
    """Instruction and input as one question."""
    parts = (text_of(row, "instruction"), text_of(row, "input", required=False))
    return "\n".join(part for part in parts if part)


def _opening(row: Object) -> list[Message]:
    """System message and history, as messages."""
    messages = system_of(row)
    history = row.get("history")
    if history in (None, "", []):
        return messages
    if not isinstance(history, list):
        raise RowError("history", f"must be a list of [question, answer], is {json_type(history)}")
    for number, exchange in enumerate(history, 1):
        if not (isinstance(exchange, list) and len(exchange) == 2 and all(isinstance(one, str) for one in exchange)):
            raise RowError(f"history[{number}]", "must be [question, answer], two texts")
        if not all(one.strip() for one in exchange):
            raise RowError(f"history[{number}]", "has an empty side", "empty")
        messages += [user(exchange[0]), assistant(exchange[1])]
    return messages
