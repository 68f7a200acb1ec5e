"""Files as rows: .json, .jsonl, .csv, .tsv, .parquet and .txt, also as .gz, each row with the line it begins on.

What a row means is `formats.py`'s business. A bad row never stops the reading; a file that is not what its suffix says
does, with the place and the way out."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adapters.errors import Invalid, NotFound

BadKind = Literal["syntax", "field", "empty"]
Object = Mapping[str, Any]  # one row as JSON, CSV or Parquet gives it

MAX_UNPACKED = 2**31  # bytes of a packed file
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")


@dataclass(frozen=True)
class Place:
    """Where a row begins. Lines count from 1; a Parquet file has rows instead. `row` is there where several rows
    share a line."""

    path: str
    line: int
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" + (f" (row {self.row})" if self.row else "")


@dataclass(frozen=True)
class BadRow:
    """A row left out, and why. `str()` is the line a user reads: file:line: field: reason."""

    place: Place
    field: str
    reason: str
    kind: BadKind = "field"

    def __str__(self) -> str:
        return f"{self.place}: {self.field + ': ' if self.field else ''}{self.reason}"


def read_objects(path: Path) -> Iterator[tuple[Place, Object] | BadRow]:
    """The rows of one file, in order. Blocks; the whole file is held in memory.

    Raises NotFound when there is none, and Invalid when it is not what its suffix says."""
    suffix, zipped = _suffix(path)
    if path.is_dir():
        raise Invalid(f"{path} is a directory; give one of its files", param="data")
    if suffix not in SUFFIXES:
        raise Invalid(
            f"{path}: unknown suffix '{suffix}'; known: {', '.join(SUFFIXES)}, each also as .gz", param="data"
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist", param="data") from None
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}", param="data") from error
    if zipped:
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as unpacking:
                content = unpacking.read(MAX_UNPACKED + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise Invalid(f"{path}: not a whole gzip file ({error}); pack it again", param="data") from error
        if len(content) > MAX_UNPACKED:
            raise Invalid(
                f"{path}: unpacks to more than {MAX_UNPACKED >> 20} MiB, which would be held in memory; split the file",
                param="data",
            )
    if suffix == ".parquet":
        return _parquet_objects(path, content)
    text = _decode(path, content)
    match suffix:
        case ".json":
            return _json_objects(path, text)
        case ".jsonl":
            return _jsonl_objects(path, text)
        case ".txt":
            return ((Place(str(path), n), {"text": line}) for n, line in _lines(text))
    return _csv_objects(path, text, "\t" if suffix == ".tsv" else ",")


def _suffix(path: Path) -> tuple[str, bool]:
    zipped = path.suffix.lower() == ".gz"
    return (path.with_suffix("") if zipped else path).suffix.lower(), zipped


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Invalid(
            f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}); convert it, for example with "
            f"iconv -f GB18030 -t UTF-8",
            param="data",
        ) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. Only "\\n" ends a line: JSON strings may hold U+2028 and its kin."""
    return ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())


def _jsonl_objects(path: Path, text: str) -> Iterator[tuple[Place, Object] | BadRow]:
    offset = 0
    for number, line in enumerate(text.split("\n"), 1):
        start, offset = offset, offset + len(line) + 1
        if not line.strip():
            continue
        place = Place(str(path), number)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            _refuse_spread_object(place, text, start)
            yield BadRow(place, "", f"not JSON: {json_reason(error)}", "syntax")
            continue
        if isinstance(row, list) and number == 1:
            raise Invalid(f"{place}: a JSON array, not one object a line; rename the file to .json", param="data")
        yield _object(place, row, line)


def _refuse_spread_object(place: Place, text: str, start: int) -> None:
    """Invalid when the value that begins at `start` is whole, but takes more than its line."""
    start += len(text[start:]) - len(text[start:].lstrip())
    if text[start] not in "{[":
        return
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return
    last = place.line + text.count("\n", start, end)
    raise Invalid(
        f"{place}: an object over several lines (to line {last}), but .jsonl is one object a line; "
        f"put it in order with: jq -c . FILE > NEW.jsonl",
        param="data",
    )


def _json_objects(path: Path, text: str) -> Iterator[tuple[Place, Object] | BadRow]:
    """Elements of the array in `text`, each with the line it begins on."""
    scan = _Scan(path, text)
    if scan.peek() != "[":
        value = scan.value()
        if not scan.peek():
            if isinstance(value, Mapping) and not all(isinstance(inner, Mapping) for inner in value.values()):
                raise scan.wrong("one object where an array of rows is wanted; put it in [ ]", at=0)
            yield _object(Place(str(path), 1), value, text)
            return
        raise scan.wrong("text after the first value: this looks like one object a line; rename the file to .jsonl")
    scan.take("[")
    number, last_line = 0, 0
    while scan.peek() != "]":
        number += 1
        place = Place(str(path), scan.line, number if scan.line == last_line else None)
        last_line, start = scan.line, scan.position
        value = scan.value()
        yield _object(place, value, text[start : scan.position])
        if scan.peek() != "]":
            scan.take(",")
    scan.take("]")
    if scan.peek():
        raise scan.wrong("text after the end of the array")


class _Scan:
    """A place in JSON text that knows its line."""

    def __init__(self, path: Path, text: str):
        self.path = path
        self.text = text
        self.position = 0
        self.line = 1
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not space, "" at the end."""
        end = self.position
        while end < len(self.text) and self.text[end] in " \t\r\n":
            end += 1
        self._move(end)
        return self.text[end : end + 1]

    def take(self, wanted: str) -> None:
        if (found := self.peek()) != wanted:
            raise self.wrong(f"expected '{wanted}', found {repr(found) if found else 'the end of the file'}")
        self._move(self.position + 1)

    def value(self) -> Any:
        if not self.peek():
            raise self.wrong("the file ends inside the JSON")
        try:
            value, end = self._decoder.raw_decode(self.text, self.position)
        except (ValueError, RecursionError) as error:
            raise self.wrong(f"not JSON: {json_reason(error)}", at=getattr(error, "pos", None)) from error
        self._move(end)
        return value

    def wrong(self, reason: str, at: int | None = None) -> Invalid:
        line = self.line if at is None else self.text.count("\n", 0, at) + 1
        return Invalid(f"{self.path}:{line}: {reason}", param="data")

    def _move(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position


def json_reason(error: ValueError | RecursionError) -> str:
    """Why `json.loads` raised."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def _object(place: Place, value: Any, spelled: str) -> tuple[Place, Object] | BadRow:
    """A row, of which `spelled` is the JSON."""
    if not isinstance(value, Mapping):
        return BadRow(place, "", f"expected an object, found {json_type(value)}", "syntax")
    if "\\ud" in spelled.lower() and (found := half_pair(value)) is not None:  # the only spelling of a surrogate
        return BadRow(place, *found)
    return place, value


def half_pair(value: Any, where: str = "") -> tuple[str, str] | None:
    """(field, reason) of the first text in a JSON value with half of a surrogate pair, which no file and no model can
    take; None when there is none."""
    match value:
        case str():
            half = next((character for character in value if "\ud800" <= character <= "\udfff"), None)
            reason = "is half of a surrogate pair and no character; write the whole pair, or the character itself"
            return (where, f"\\u{ord(half):04x} {reason}") if half else None
        case Mapping():
            inside = ((one, f"{where}.{key}" if where else str(key)) for key, one in value.items())
            if any(half_pair(str(key)) for key in value):
                return where, "the name of a field has half of a surrogate pair; leave the field out"
        case list():
            inside = ((one, f"{where}[{number}]") for number, one in enumerate(value, 1))
        case _:
            return None
    return next((found for one, place in inside if (found := half_pair(one, place))), None)


def _csv_objects(path: Path, text: str, delimiter: str) -> Iterator[tuple[Place, Object] | BadRow]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        place = Place(str(path), line)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise Invalid(f"{place}: not CSV: {error}", param="data") from error
        if cells is None:
            return
        line = reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if twice := next((name for name in header if name and header.count(name) > 1), None):
                raise Invalid(f"{place}: the column '{twice}' is there twice; rename or remove one", param="data")
        elif len(cells) != len(header):
            yield BadRow(place, "", f"{len(cells)} cells where the header has {len(header)}", "syntax")
        else:
            yield place, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True) if cell}


# Columns whose cells hold JSON, for want of another way into a table. Any other cell is the text it is.
_JSON_COLUMNS = {
    "history",
    "messages",
    "conversations",
    "conversation",
    "chosen",
    "rejected",
    "label",
    "kto_tag",
    "tools",
}


def _cell(name: str, cell: str) -> Any:
    if name in _JSON_COLUMNS:
        with suppress(ValueError, RecursionError):  # then it is text, and the field's parser says what it wants
            return json.loads(cell.lower() if name in ("label", "kto_tag") else cell)
    return cell


def _parquet_objects(path: Path, content: bytes) -> Iterator[tuple[Place, Object] | BadRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Invalid(f"{path}: not a Parquet file that can be read ({reason})", param="data") from error
    for number, row in enumerate(rows, 1):
        yield Place(str(path), number), {key: value for key, value in row.items() if value is not None}


def json_type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return f"the number {value}"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"
