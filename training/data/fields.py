"""Reading the fields of a row: what is missing, empty or of another type is said with the field's name."""

import json
from collections.abc import Sequence
from typing import Any

from training.data.files import BadKind, BadRow, Object, Place, half_pair, json_reason, json_type


class RowError(Exception):
    """Why a row cannot be used; becomes a BadRow once its place is known."""

    def __init__(self, field: str, reason: str, kind: BadKind = "field"):
        super().__init__(reason)
        self.field = field
        self.reason = reason
        self.kind = kind

    def at(self, place: Place) -> BadRow:
        return BadRow(place, self.field, self.reason, self.kind)


def text_of(row: Object, name: str, where: str = "", *, required: bool = True) -> str:
    """The text in field `name`, "" when it may be missing and is. `where` is the object's own place in the row."""
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


def need(row: Object, name: str) -> None:
    if row.get(name) is None:
        raise RowError(name, "is missing")


def first_of(row: Object, names: Sequence[str], meant: str) -> str:
    """The first of `names` the row has."""
    for name in names:
        if row.get(name) is not None:
            return name
    raise RowError(meant, f"is missing (also looked for {', '.join(name for name in names if name != meant)})")


def parsed(value: Any, where: str, what: str) -> Any:
    """`value`, read as JSON if it is text."""
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(where, f"{what} must be JSON, but: {json_reason(error)} ({value[:40]!r})") from None
    if found := half_pair(read, where):
        raise RowError(*found)
    return read
