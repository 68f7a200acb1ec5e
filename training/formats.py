"""Rows of the formats people have, as three shapes: Example, PreferencePair, Document.

What lives here: telling formats apart, and one small parser a format. What does not: reading files with true line
numbers (`files.py`); tokens, splits and statistics (`dataset.py`)."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from adapters.errors import Invalid
from adapters.renderer import Message, Role
from training.files import BadKind, BadRow, Object, Place, json_type, read_objects

Format = Literal["alpaca", "sharegpt", "messages", "query-response", "dpo", "kto", "qa", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True)
class Example:
    """A conversation to learn from. `learn[i]` says whether message i is learned; only assistant turns are.

    `tools` and `reasoning` are kept as the file gave them; training does not use them yet."""

    messages: tuple[Message, ...]
    learn: tuple[bool, ...]
    place: Place
    tools: str = ""
    reasoning: str = ""

    def with_system(self, system: str) -> "Example":
        """The same conversation under `system`, unless it has a system message of its own."""
        if self.messages[0]["role"] == "system":
            return self
        return replace(
            self, messages=(Message(role="system", content=system), *self.messages), learn=(False, *self.learn)
        )


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a wanted and an unwanted answer (DPO), or with only one of them (KTO)."""

    prompt: tuple[Message, ...]
    chosen: str | None
    rejected: str | None
    place: Place


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


class RowError(Exception):
    """Why a row cannot be used; becomes a BadRow once its place is known."""

    def __init__(self, field: str, reason: str, kind: BadKind = "field"):
        super().__init__(reason)
        self.field = field
        self.reason = reason
        self.kind = kind


def read_data(path: Path, format: Format | Literal["auto"] = "auto") -> DataFile:
    """Read one file. Blocks; the whole file is held in memory.

    Raises NotFound when there is none, and Invalid when it is not what its suffix says, is empty, or its rows
    are of no known format. Single bad rows are in the result."""
    objects: list[tuple[Place, Object]] = []
    bad: list[BadRow] = []
    for item in read_objects(path):
        if isinstance(item, BadRow):
            bad.append(item)
        else:
            objects.append(item)
    if not objects and not bad:
        raise Invalid(f"{path}: no rows", param="data")
    found = detect(objects) if format == "auto" else format
    if found is None:
        raise Invalid(_unknown_format(objects, bad), param="data")
    parse = _PARSERS[found]
    rows: list[Row] = []
    for place, row in objects:
        try:
            rows.append(parse(row, place))
        except RowError as error:
            bad.append(BadRow(place, error.field, error.reason, error.kind))
    return DataFile(path, found, rows, sorted(bad, key=lambda row: (row.place.line, row.place.row or 0)))


def detect(objects: Sequence[tuple[Place, Object]]) -> Format | None:
    """The format most rows have; None when no row has a known one."""
    counted = Counter(name for _, row in objects if (name := recognise(row)))
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


def _unknown_format(objects: Sequence[tuple[Place, Object]], bad: Sequence[BadRow]) -> str:
    if not objects:
        return f"{bad[0]} (and no other row can be read)"
    place, row = objects[0]
    if "dialogue" in row and "role" in row:
        return f"{place}: dialogue lines (role, dialogue): pair them first, each line with the one it answers"
    if any(isinstance(value, Mapping) and "file_name" in value for value in row.values()):
        return f"{place}: a list of datasets, not a dataset; give one of the files it names"
    if any(key.endswith("dataset_id") for key in row):
        return f"{place}: a list of hub datasets, not a dataset; download one and give its file"
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
_SYSTEMS = ("system", "system_prompt")

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
}


def _alpaca(row: Object, place: Place) -> Example:
    query = "\n".join(part for part in (_text(row, "instruction"), _text(row, "input", required=False)) if part)
    answer = _text(row, "output")
    return _example([*_opening(row), _user(query), _assistant(answer)], row, place)


def _query_response(row: Object, place: Place) -> Example:
    query = _first_of(row, _QUERIES, "query")
    answer = _first_of(row, [name for name in _RESPONSES if name != query], "response")
    return _example([*_opening(row), _user(_text(row, query)), _assistant(_text(row, answer))], row, place)


def _qa(row: Object, place: Place) -> Example:
    query = _first_of(row, ("Question", "question"), "Question")
    answer = _first_of(row, ("Response", "Answer", "response", "answer"), "Response")
    example = _example([*_opening(row), _user(_text(row, query)), _assistant(_text(row, answer))], row, place)
    return replace(example, reasoning=_text(row, "Complex_CoT", required=False))


def _sharegpt(row: Object, place: Place) -> Example:
    field = _first_of(row, ("conversations", "conversation", "messages"), "conversations")
    return _conversation(row, field, place)


def _messages(row: Object, place: Place) -> Example:
    _need(row, "messages")
    return _conversation(row, "messages", place)


def _conversation(row: Object, field: str, place: Place) -> Example:
    turns, reasoning = _turns(row[field], field)
    messages = [message for message, _ in turns]
    weights = [weight for _, weight in turns]
    if messages[0]["role"] != "system":
        messages, weights = [*_system(row), *messages], [*([None] * len(_system(row))), *weights]
    return replace(_example(messages, row, place, weights, field), reasoning=reasoning)


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
    return PreferencePair(tuple(prompt), chosen, rejected, place)


def _kto(row: Object, place: Place) -> PreferencePair:
    tag = _first_of(row, ("kto_tag", "label"), "label")
    if not isinstance(row[tag], bool):
        raise RowError(tag, f"must be true or false, is {json_type(row[tag])}")
    turns = next((name for name in ("messages", "conversations", "conversation") if name in row), None)
    example = _conversation(row, turns, place) if turns else _query_response(row, place)
    *prompt, last = example.messages
    if last["role"] != "assistant" or not prompt:
        raise RowError(turns or "response", "must end with the assistant's answer to something")
    good, answer = row[tag], last["content"]
    return PreferencePair(tuple(prompt), answer if good else None, None if good else answer, place)


def _document(row: Object, place: Place) -> Document:
    return Document(_text(row, _first_of(row, ("text", "content", "response"), "text")), place)


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
    return Example(tuple(messages), tuple(learn), place, tools=_as_text(row.get("tools")))


def _turns(value: Any, field: str) -> tuple[list[tuple[Message, bool | None]], str]:
    """Messages, each with its own say on whether it is learned, and the reasoning found in them."""
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of turns, is {json_type(value)}")
    if not value:
        raise RowError(field, "is empty", "empty")
    turns: list[tuple[Message, bool | None]] = []
    thoughts: list[str] = []
    for number, turn in enumerate(value, 1):
        where = f"{field}[{number}]"
        if not isinstance(turn, Mapping):
            raise RowError(where, f"must be an object, is {json_type(turn)}")
        if "from" not in turn and "role" not in turn:
            turns += [(message, None) for message in _pair_in_turn(turn, where)]
            continue
        role = _role(turn, where)
        text, thought = _content(turn, where)
        thoughts += [thought] if thought else []
        if not text.strip() and role in ("user", "assistant"):
            raise RowError(where, f"the {role} turn is empty", "empty")
        turns.append((Message(role=role, content=text), _weight(turn, where)))
    return turns, "\n\n".join(thoughts)


def _pair_in_turn(turn: Object, where: str) -> list[Message]:
    """A turn that holds both sides: {human, assistant} (Firefly, ms-swift) or {system?, input, output} (XTuner)."""
    for asked, answered in (("human", "assistant"), ("input", "output"), ("user", "assistant")):
        if asked in turn and answered in turn:
            system = _system(turn) if where.endswith("[1]") else []
            return [*system, _user(_text(turn, asked, where)), _assistant(_text(turn, answered, where))]
    named = ", ".join(sorted(map(str, turn))) or "none"
    raise RowError(where, f"a turn has from and value, or role and content; found {named}")


def _role(turn: Object, where: str) -> Role:
    name = turn.get("from", turn.get("role"))
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise RowError(where, f"unknown role {name!r}; known: {', '.join(sorted(_ROLES))}")
    return role


def _content(turn: Object, where: str) -> tuple[str, str]:
    """The text of a turn and the reasoning in it. Tool calls stand in the text as JSON, name and arguments."""
    value = turn.get("value", turn.get("content"))
    if isinstance(value, str):
        return value, _as_text(turn.get("reasoning_content"))
    if value is None and turn.get("tool_calls"):
        return "\n".join(_as_text(call.get("function", call)) for call in turn["tool_calls"]), ""
    if not isinstance(value, list):
        raise RowError(where, f"content must be text, is {json_type(value)}")
    said: list[str] = []
    thought: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("value", part.get("text")) if isinstance(part, Mapping) else None
        if kind not in ("text", "tool_call", "reasoning") or not isinstance(text, str):
            raise RowError(where, f"content of type {kind!r} cannot be learned; text can")
        (thought if kind == "reasoning" else said).append(text)
    return "\n".join(said), "\n".join(thought)


def _weight(turn: Object, where: str) -> bool | None:
    """Whether the turn says of itself that it is learned; None when it says nothing."""
    for name in ("loss", "weight", "loss_weight"):
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise RowError(where, f"{name} must be 0 or 1 (or true, false), is {value!r}")
        return bool(value)
    return None


def _answer(row: Object, name: str) -> tuple[list[Message], str]:
    """One side of a preference: the turns it brings along, and the answer itself."""
    _need(row, name)
    value = row[name]
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str):
        return [], _text(row, name)
    turns, _ = _turns(value, name)
    *before, last = [message for message, _ in turns]
    if last["role"] != "assistant":
        raise RowError(name, f"ends with a {last['role']} turn; an assistant turn is wanted")
    return before, last["content"]


def _prompt(row: Object) -> list[Message]:
    value = row.get("input") if isinstance(row.get("input"), Mapping) else None
    field, turns = ("input", value["messages"]) if value and "messages" in value else ("", None)
    for name in ("conversations", "conversation", "prompt"):
        if turns is None and isinstance(row.get(name), list):
            field, turns = name, row[name]
    if turns is not None:
        messages = [message for message, _ in _turns(turns, field)[0]]
        return messages if messages[0]["role"] == "system" else [*_system(row), *messages]
    if "instruction" in row:
        parts = (_text(row, "instruction"), _text(row, "input", required=False))
        return [*_opening(row), _user("\n".join(part for part in parts if part))]
    query = next((name for name in _QUERIES if isinstance(row.get(name), str)), None)
    return [*_opening(row), _user(_text(row, query))] if query else []


def _opening(row: Object) -> list[Message]:
    """System message and history, as messages."""
    messages = _system(row)
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
        messages += [_user(exchange[0]), _assistant(exchange[1])]
    return messages


def _system(row: Object) -> list[Message]:
    for name in _SYSTEMS:
        if row.get(name) not in (None, ""):
            return [Message(role="system", content=_text(row, name))]
    return []


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def _text(row: Object, name: str, where: str = "", *, required: bool = True) -> str:
    field = f"{where}.{name}" if where else name
    value = row.get(name)
    if value is None and not required:
        return ""
    if value is None:
        raise RowError(field, "is missing")
    if not isinstance(value, str):
        raise RowError(field, f"must be text, is {json_type(value)}")
    if required and not value.strip():
        raise RowError(field, "is empty", "empty")
    return value


def _need(row: Object, name: str) -> None:
    if row.get(name) is None:
        raise RowError(name, "is missing")


def _first_of(row: Object, names: Sequence[str], meant: str) -> str:
    """The first of `names` the row has."""
    for name in names:
        if row.get(name) is not None:
            return name
    raise RowError(meant, f"is missing (also looked for {', '.join(name for name in names if name != meant)})")


def _as_text(value: Any) -> str:
    if value in (None, "", []):
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
