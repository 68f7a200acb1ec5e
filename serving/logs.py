"""How log lines look: text for people, JSON for programs. Fields of a line are given as `extra={"fields": {...}}`;
lines written while a request is handled carry its id. Neither prompts nor keys are ever logged."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

import orjson

from adapters.settings import LogFormat
from serving.request_record import current_record

OURS = ("adapters", "app", "serving", "training")


def configure_logging(form: LogFormat) -> None:
    """Lines go to stderr: ours from INFO on, those of libraries from WARNING on. For the whole process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={_word(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except orjson.JSONEncodeError:  # half a surrogate pair, which only the other one can write
            return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The line's own fields, those that are known; before them the id of the request being handled."""
    current = current_record.get()
    fields: dict[str, Any] = {"id": current.id} if current else {}
    return fields | {k: v for k, v in getattr(record, "fields", {}).items() if v is not None}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _word(value: object) -> str:
    """A value as one word; what is not one word already is quoted, so that a line stays a line."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)
