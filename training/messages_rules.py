"""What a file of chat messages must keep to where it is uploaded for fine-tuning: the rules that SiliconFlow states
and OpenAI checks. `formats.py` is more lenient; who sends a file through the API learns at once what will not port."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.files import BadRow, json_type, read_objects

ROLES = ("system", "developer", "user", "assistant", "tool")
_SYSTEMS = ("system", "developer")
# What may follow what, the system message left out. A tool's answer belongs to the assistant that asked for it.
_FOLLOWS = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}


def validate_messages_file(path: Path) -> list[BadRow]:
    """Every row that breaks a rule, with its first breach. Raises NotFound or Invalid for a file that cannot be read at
    all."""
    bad: list[BadRow] = []
    for item in read_objects(path):
        if isinstance(item, BadRow):
            bad.append(item)
            continue
        place, row = item
        found = next(_breaches(row.get("messages")), None)
        if found:
            bad.append(BadRow(place, *found))
    return bad


def _breaches(messages: Any) -> Iterator[tuple[str, str]]:
    """(field, reason) in the order of reading."""
    if not isinstance(messages, list) or not messages:
        yield "messages", "is missing" if messages is None else "must be a list with at least one message"
        return
    before = ""
    for number, message in enumerate(messages):
        field = f"messages[{number}]"
        if not isinstance(message, Mapping):
            yield field, f"must be an object with role and content, is {json_type(message)}"
            return
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            yield f"{field}.role", f"must be one of {', '.join(ROLES)}, is {role!r}"
            return
        if not _is_text(content) and not (role == "assistant" and message.get("tool_calls")):
            yield f"{field}.content", "must be text that is not empty"
        if role in _SYSTEMS:
            if number:
                yield f"{field}.role", "a system message comes first and once"
        elif not before and role != "user":
            yield f"{field}.role", f"the first message after the system's must be the user's, is the {role}'s"
        elif before and role not in _FOLLOWS[before]:
            wanted = " or ".join(_FOLLOWS[before])
            yield f"{field}.role", f"{role} follows {before}; user and assistant must alternate (wanted: {wanted})"
        before = before if role in _SYSTEMS else role
    if before != "assistant":
        yield f"messages[{len(messages) - 1}].role", "the last message must be the assistant's: it is what is learned"


def _is_text(content: Any) -> bool:
    if isinstance(content, list):  # OpenAI's content parts
        return any(isinstance(part, Mapping) and _is_text(part.get("text")) for part in content)
    return isinstance(content, str) and bool(content.strip())
