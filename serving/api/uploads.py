"""multipart/form-data written to disk as it arrives: no part is ever in memory whole, and none under a name that the
client chose."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from adapters.errors import Invalid
from serving.api.streaming import ClientGone

MAX_PARTS = 1000
MAX_FIELD_BYTES = 64 << 10
_WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class ReceivedFile:
    field: str
    filename: str  # as the client sent it
    path: Path


@dataclass
class Form:
    fields: dict[str, str] = field(default_factory=dict)
    files: list[ReceivedFile] = field(default_factory=list)

    def require_only(self, fields: set[str], files: set[str]) -> None:
        """Invalid for what is not in these: it would be ignored."""
        for name in [*(set(self.fields) - fields), *({file.field for file in self.files} - files)]:
            raise Invalid(
                f"form field '{name[:80]}' is not supported here", param=name[:80], code="unsupported_parameter"
            )

    def text(self, name: str, default: str | None = None) -> str:
        """A text field. Invalid when it is missing and has no default."""
        value = self.fields.get(name, default)
        if value is None:
            raise Invalid(f"{name} is required", param=name, code="missing_required_parameter")
        return value


async def receive_form(request: Request, directory: Path) -> Form:
    """Read the request's body, its files into `directory`. Raises Invalid for what is no form, ClientGone when the
    client leaves in the middle. The body's size is BodyLimit's business."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Invalid("send multipart/form-data with a boundary", param="content-type")
    try:
        receiver = _Receiver(directory, options[b"boundary"])
    except FormParserError as error:
        raise Invalid(f"the form cannot be read: {error}", param="content-type") from error
    try:
        unwritten = bytearray()
        async for chunk in request.stream():
            unwritten += chunk
            if len(unwritten) >= _WRITE_BYTES:
                await asyncio.to_thread(receiver.write, bytes(unwritten))  # disks can be slow, and others are streaming
                unwritten.clear()
        await asyncio.to_thread(receiver.finish, bytes(unwritten))
    except ClientDisconnect as error:
        raise ClientGone from error
    except FormParserError as error:
        raise Invalid(f"the form cannot be read: {error}", param="content-type") from error
    finally:
        receiver.close()
    return receiver.form


class _Receiver:
    """Takes the body's pieces in order; the parser calls back for every part of the form."""

    def __init__(self, directory: Path, boundary: bytes):
        self.form = Form()
        self._directory = directory
        self._ended = False
        self._parts = 0
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._text: bytearray | None = None
        self._file: IO[bytes] | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._take_header,
                "on_header_value": self._take_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._open,
                "on_part_data": self._take,
                "on_part_end": self._end,
                "on_end": self._end_form,
            },
        )

    def write(self, data: bytes) -> None:
        self._parser.write(data)

    def finish(self, data: bytes) -> None:
        if data:
            self._parser.write(data)
        self._parser.finalize()
        if not self._ended:
            raise Invalid("the form ends in the middle; send it whole", param="content-type")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Invalid(f"the form has more than {MAX_PARTS} parts", param="file")
        self._headers = {}

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise Invalid("a part of the form has no name", param="content-type")
        self._name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            path = self._directory / f"{len(self.form.files)}"
            self._file = path.open("wb")
            filename = options[b"filename"].decode("utf-8", "replace")
            self.form.files.append(ReceivedFile(self._name, filename, path))
        else:
            self._text = bytearray()

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
        elif self._text is not None:
            self._text += data[start:end]
            if len(self._text) > MAX_FIELD_BYTES:
                raise Invalid(
                    f"form field '{self._name[:80]}' is larger than {MAX_FIELD_BYTES >> 10} KiB", param=self._name[:80]
                )

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self._text is not None:
            if self._name in self.form.fields:
                raise Invalid(f"form field '{self._name[:80]}' comes twice", param=self._name[:80])
            try:
                self.form.fields[self._name] = self._text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Invalid(f"form field '{self._name[:80]}' is not UTF-8", param=self._name[:80]) from error
            self._text = None

    def _end_form(self) -> None:
        self._ended = True
