"""The rules that hosted fine-tuning has for an uploaded file of conversations: OpenAI's and SiliconFlow's, as one.

Stricter than `formats.py`, which reads what it can: a file that passes here is taken by those services too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.fields import RowError
from training.data.files import BadRow, Object, Place, json_type, read_objects
from training.data.turns import read_tools, read_turns

MIN_EXAMPLES = 10  # below it OpenAI refuses a file; here it is a warning
_ROLES = ("system", "developer", "user", "assistant", "tool")
_FIELDS = {"messages", "tools", "parallel_tool_calls", "functions"}


def validate_messages_file(path: Path) -> list[BadRow]:
    """Rows that break a rule, each with its line; empty for a good file. Blocks.

    Every line is an object with a non-empty list `messages`, each with role and content; the system message comes
    first if there is one, the first of the others is a user's, then assistant and user take turns (tools answer between
    an assistant's call and its next word), and an assistant has the last word. Raises NotFound or Invalid for a file
    that cannot be read at all."""
    bad: list[BadRow] = []
    rows = 0
    for item in read_objects(path):
        rows += 1
        if isinstance(item, BadRow):
            bad.append(item)
            continue
        place, row = item
        try:
            _check_row(row)
        except RowError as error:
            bad.append(error.at(place))
    if not rows:
        bad.append(BadRow(Place(str(path), 1), "", "the file is empty; one example a line is wanted", "empty"))
    return bad


def warnings_of(path: Path) -> list[str]:
    """What hosted services would refuse and we do not."""
    rows = sum(1 for _ in read_objects(path))
    if rows < MIN_EXAMPLES:
        return [f"{path}: {rows} examples; OpenAI wants at least {MIN_EXAMPLES}, and so few rarely change a style"]
    return []


def _check_row(row: Object) -> None:
    unknown = sorted(set(map(str, row)) - _FIELDS)
    if unknown:
        raise RowError(unknown[0], f"is no field of an example; there are {', '.join(sorted(_FIELDS))}")
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise RowError("messages", "is missing" if messages is None else f"must be a list, is {json_type(messages)}")
    if not messages:
        raise RowError("messages", "is empty", "empty")
    roles = [_role_of(message, f"messages[{number}]") for number, message in enumerate(messages, 1)]
    read_turns(messages, "messages")  # content, calls and weights
    read_tools(row.get("tools"))
    _check_order(roles, messages)


def _role_of(message: Any, where: str) -> str:
    if not isinstance(message, Mapping):
        raise RowError(where, f"must be an object, is {json_type(message)}")
    role = message.get("role")
    if role not in _ROLES:
        raise RowError(f"{where}.role", f"must be one of {', '.join(_ROLES)}, is {role!r}")
    if message.get("content") is None and not (role == "assistant" and message.get("tool_calls")):
        raise RowError(f"{where}.content", "is missing")
    if message.get("weight") is not None and role != "assistant":
        raise RowError(f"{where}.weight", "goes with an assistant's message only")
    return "system" if role == "developer" else str(role)


def _check_order(roles: Sequence[str], messages: Sequence[Object]) -> None:
    first = 1 if roles[0] == "system" else 0
    if "system" in roles[first:]:
        number = roles.index("system", first) + 1
        raise RowError(f"messages[{number}].role", "a system message may only come first, and only once")
    if roles[first:][:1] != ["user"]:
        found = roles[first] if first < len(roles) else "nothing"
        reason = f"the first message after the system's is the user's, not {found}'s"
        raise RowError(f"messages[{first + 1}].role", reason)
    for index in range(first + 1, len(roles)):
        before, role = roles[index - 1], roles[index]
        calls = before == "assistant" and bool(messages[index - 1].get("tool_calls"))
        allowed = {
            "user": ("assistant",),
            "assistant": ("tool",) if calls else ("user",),
            "tool": ("tool", "assistant"),
        }[before]
        if role not in allowed:
            raise RowError(f"messages[{index + 1}].role", f"{role} cannot follow {before}; {' or '.join(allowed)} does")
    if roles[-1] != "assistant":
        raise RowError(f"messages[{len(roles)}].role", f"the last message is the assistant's, not the {roles[-1]}'s")
