"""Data files in another shape: every format → messages, Alpaca or ShareGPT; and one file → two."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from adapters.errors import Invalid, nearest
from adapters.renderer import Message
from training.config import TrainConfig
from training.data.dataset import read_sources, split_rows
from training.data.fields import RowError
from training.data.files import BadRow, Object, read_objects
from training.data.formats import Document, Example, PreferencePair, Row, recognise
from training.data.sources import sources_of

Target = Literal["messages", "alpaca", "sharegpt"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Converted:
    """`kept` says of rows for which the target has no words in what shape they are, a line a shape."""

    written: int
    bad: list[BadRow]
    kept: list[str]


def convert_files(config: TrainConfig, to: str, out: Path) -> Converted:
    """Write the data of `config` as one file. Reading it again gives the same rows.

    Raises Invalid for an unknown target or suffix, for a file that is there, or when no row is left."""
    if to not in TARGETS:
        raise Invalid(f"cannot convert to '{to}'{nearest(to, TARGETS)}", param="to")
    if out.suffix not in (".json", ".jsonl"):
        raise Invalid(f"{out}: rows are written as .jsonl or .json; choose one of them", param="out")
    read = read_sources(sources_of(config), max_samples=config.max_samples, seed=config.seed)
    bad = list(read.bad)
    written: list[Object] = []
    for _, row in read.rows:
        try:
            written.append(_WRITERS[to](row))
        except RowError as error:
            bad.append(error.at(row.place))
    if not written:
        raise Invalid(f"no row can be written as {to}; the first: {bad[0]}", param="to")
    _write(out, written)
    return Converted(len(written), bad, list(_kept(written, to)))


def _kept(written: Sequence[Object], to: str) -> Iterator[str]:
    """Where what was written is no `to`: none of them has a field for preferences, and messages none for plain text."""
    counted = Counter(recognise(row) for row in written)
    for format, shape, train in (
        ("dpo", "chosen and rejected beside what was asked", "dpo, orpo or kto"),
        ("kto", "one answer and a verdict on it (label or kto_tag)", "kto"),
        ("text", "the field text", "pretrain"),
    ):
        if rows := counted[format]:  # type: ignore[index]
            yield f"{rows} of them have {shape}, for which {to} has no words; they are for --objective {train}"


def split_file(file: Path, share: float, seed: int, out: Path) -> list[tuple[Path, int]]:
    """Write `out`/STEM.train.jsonl and `out`/STEM.validation.jsonl, `share` of the distinct rows in the latter; each
    with its number of rows. Rows keep their fields; equal rows stay together.

    Raises Invalid for a share outside 0 to 1, a bad row, fewer than two distinct rows, or a file that is there."""
    if not 0 < share < 1:
        raise Invalid(f"share is {share:g}; it must be between 0 and 1, such as 0.1", param="share")
    rows: list[Object] = []
    for item in read_objects(file):
        if isinstance(item, BadRow):
            raise Invalid(f"{item}; mend or remove it first", param="data")
        rows.append(item[1])
    training, validation = split_rows(rows, lambda row: json.dumps(row, sort_keys=True), share, seed)
    if not training or not validation:
        raise Invalid(f"{file}: fewer than two distinct rows cannot be split", param="data")
    stem = file.name.removesuffix(".gz").rpartition(".")[0]
    parts = [(out / f"{stem}.train.jsonl", training), (out / f"{stem}.validation.jsonl", validation)]
    for path, _ in parts:
        _refuse_existing(path)
    out.mkdir(parents=True, exist_ok=True)
    for path, part in parts:
        _write(path, part)
    return [(path, len(part)) for path, part in parts]


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise Invalid(f"{path} is there already; name another file, or remove it", param="out")


def _write(path: Path, rows: Iterable[Object]) -> None:
    _refuse_existing(path)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "[\n" + ",\n".join(lines) + "\n]\n" if path.suffix == ".json" else "".join(line + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


# --- a row → an object of the target ---


def _messages(row: Row) -> Object:
    match row:
        case Document():
            return {"text": row.text}
        case PreferencePair(prompt=prompt):
            turns = [_message(message, True) for message in prompt]
            if row.chosen is not None and row.rejected is not None:
                sides = {"chosen": [_said(row.chosen)], "rejected": [_said(row.rejected)]}
                return {"conversations": turns, **sides} | _tools(row)
            return {"messages": [*turns, _said(_only(row))], "label": row.chosen is not None} | _tools(row)
    marked = _weighted(row)
    turns = [_message(message, learned, marked) for message, learned in zip(row.messages, row.learn, strict=True)]
    return {"messages": turns} | _tools(row)


def _message(message: Message, learned: bool, marked: bool = False) -> dict[str, Any]:
    """As OpenAI writes it: arguments are text, and a turn that is not learned has weight 0."""
    turn: dict[str, Any] = {**message}
    if "tool_calls" in message:
        turn["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _text(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
        turn["content"] = message["content"] or None
    if marked and message["role"] == "assistant":
        turn["weight"] = int(learned)
    return turn


def _said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _sharegpt(row: Row) -> Object:
    match row:
        case Document():
            raise RowError("text", "is plain text, not a conversation")
        case PreferencePair():
            turns = [turn for message in row.prompt for turn in _from_value(message)]
            if row.chosen is not None and row.rejected is not None:
                sides = {side: {"from": "gpt", "value": text} for side, text in _sides(row)}
                return {"conversations": turns, **sides} | _tools(row, text=True)
            last = {"from": "gpt", "value": _only(row)}
            return {"conversations": [*turns, last], "kto_tag": row.chosen is not None} | _tools(row, text=True)
    if _weighted(row):
        raise RowError("", "has turns that are not learned, for which ShareGPT has no field; convert to messages")
    turns = [turn for message in row.messages for turn in _from_value(message)]
    return {"conversations": turns} | _tools(row, text=True)


def _from_value(message: Message) -> list[Object]:
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    turns: list[Object] = []
    if message["content"] or "tool_calls" not in message:
        value = message["content"]
        if thoughts := message.get("reasoning_content"):
            value = f"<think>\n{thoughts}\n</think>\n\n{value}"
        turns.append({"from": names[message["role"]], "value": value})
    elif message.get("reasoning_content"):
        raise RowError("", "has thoughts before a call, for which ShareGPT has no field; convert to messages")
    if "tool_calls" in message:
        calls = [call["function"] for call in message["tool_calls"]]
        turns.append({"from": "function_call", "value": _text(calls[0] if len(calls) == 1 else calls)})
    return turns


def _alpaca(row: Row) -> Object:
    match row:
        case Document():
            raise RowError("text", "is plain text, not a question and its answer")
        case PreferencePair():
            asked = _exchanges([*row.prompt, Message(role="assistant", content="")])
            if row.chosen is not None and row.rejected is not None:
                return {**asked, "chosen": row.chosen, "rejected": row.rejected}
            return {**asked, "output": _only(row), "kto_tag": row.chosen is not None}
    if row.uses_tools:
        raise RowError("tools", "are used, for which Alpaca has no field; convert to messages or sharegpt")
    if _weighted(row):
        raise RowError("", "has turns that are not learned, for which Alpaca has no field; convert to messages")
    object = {**_exchanges(row.messages), "output": row.messages[-1]["content"]}
    if any("reasoning_content" in message for message in row.messages[:-1]):
        raise RowError("", "has thoughts in earlier turns, for which Alpaca has no field; convert to messages")
    if thoughts := row.messages[-1].get("reasoning_content"):
        object["reasoning_content"] = thoughts
    return object


def _exchanges(messages: Iterable[Message]) -> dict[str, Any]:
    """System, history and the last question of turns that alternate and end with an answer."""
    turns = list(messages)
    object: dict[str, Any] = {}
    if turns[0]["role"] == "system":
        object["system"] = turns.pop(0)["content"]
    if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise RowError("", "has turns that do not alternate, for which Alpaca has no field; convert to messages")
    *before, asked, _ = [turn["content"] for turn in turns]
    object |= {"instruction": asked, "input": ""}
    if before:
        object["history"] = [before[index : index + 2] for index in range(0, len(before), 2)]
    return object


_WRITERS: dict[str, Callable[[Row], Object]] = {"messages": _messages, "alpaca": _alpaca, "sharegpt": _sharegpt}


def _weighted(row: Example) -> bool:
    """Whether it must be said which turns are learned. A greeting before the first question never is."""
    spoken_to = False
    for message, learned in zip(row.messages, row.learn, strict=True):
        spoken_to = spoken_to or message["role"] in ("user", "tool")
        if message["role"] == "assistant" and learned != spoken_to:
            return True
    return False


def _sides(row: PreferencePair) -> list[tuple[str, str]]:
    return [(name, text) for name, text in (("chosen", row.chosen), ("rejected", row.rejected)) if text is not None]


def _only(row: PreferencePair) -> str:
    return next(text for _, text in _sides(row))


def _tools(row: Example | PreferencePair, *, text: bool = False) -> dict[str, Any]:
    if not row.tools:
        return {}
    return {"tools": _text([tool["function"] for tool in row.tools]) if text else list(row.tools)}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
