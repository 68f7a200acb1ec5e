"""The JSON object that most formats wrap: {"name": …, "arguments": {…}}."""

import json
import re
from typing import Any

from serving.parsing.calls import NAME, Malformed

_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([A-Za-z0-9_.\-]{1,128})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_SPACE = re.compile(r"\s*")


class ObjectSpan:
    """Where the JSON object that begins at `start` of a growing text ends. Looks at every character about once."""

    def __init__(self, start: int):
        self._at = start
        self._depth = 0
        self._closed = False

    def end(self, text: str) -> int | None:
        """Past its closing brace; None while it is open."""
        if self._closed:
            return self._at
        while found := _STRUCTURE.search(text, self._at):
            if found[0] == '"':
                string = _STRING_END.match(text, found.end())
                if string is None:
                    self._at = found.start()
                    return None
                self._at = string.end()
                continue
            self._at = found.end()
            self._depth += 1 if found[0] in "{[" else -1
            if self._depth <= 0:
                self._closed = True
                return self._at
        self._at = len(text)
        return None


class JsonCall:
    """A call `offset` characters into its text, spaces aside. `closing` follows it where the model remembers to."""

    def __init__(self, offset: int, *, closing: str = ""):
        self.id: str | None = None
        self.name: str | None = None
        self.arguments = ""
        self._offset = offset
        self._closing = closing
        self._whole: ObjectSpan | None = None
        self._value: ObjectSpan | None = None
        self._value_start = 0
        self._end: int | None = None

    def read(self, text: str, *, final: bool) -> int | None:
        if self._end is None:
            self._end = self._read_object(text)
        if self._end is None:
            if final:
                raise Malformed
            return None
        return self._past_closing(text, self._end, final)

    def _read_object(self, text: str) -> int | None:
        start = skip_space(text, self._offset)
        if start == len(text):
            return None
        if text[start] != "{":
            raise Malformed
        self._whole = self._whole or ObjectSpan(start)
        if self._value is None and (head := _HEAD.match(text, start)):
            self.name, self._value_start = head[1], head.end()
            self._value = ObjectSpan(head.end())
        if self._value is not None:
            self.arguments = text[self._value_start : self._value.end(text)]
        end = self._whole.end(text)
        if end is not None:
            self._check(text[start:end])
        return end

    def _check(self, spelled: str) -> None:
        """Name and arguments of a complete object; the arguments as they were spelled where that is JSON."""
        try:
            call = json.loads(spelled, strict=False)  # models leave line breaks in strings as they are
            if not (isinstance(call, dict) and isinstance(call.get("name"), str) and NAME.fullmatch(call["name"])):
                raise Malformed
            given: Any = next((call[key] for key in ("arguments", "parameters") if key in call), {})
            arguments = json.loads(given) if isinstance(given, str) else given
        except (ValueError, RecursionError) as error:
            raise Malformed from error
        if not isinstance(arguments, dict):
            raise Malformed
        self.name = call["name"]
        own_id = call.get("id")
        self.id = own_id if isinstance(own_id, str) and NAME.fullmatch(own_id) else None
        if not _is_json(self.arguments):
            self.arguments = given if isinstance(given, str) else as_json(arguments)

    def _past_closing(self, text: str, end: int, final: bool) -> int | None:
        if not self._closing:
            return end
        after = skip_space(text, end)
        rest = text[after : after + len(self._closing)]
        if rest == self._closing:
            return after + len(rest)
        if self._closing.startswith(rest):  # perhaps it comes
            return len(text) if final else None
        return end


def skip_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return found.end() if found else start


def as_json(value: Any) -> str:
    spelled = json.dumps(value, ensure_ascii=False)
    try:
        spelled.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can spell
        return json.dumps(value)
    return spelled


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def json_rules(number: int, name: str, key: str) -> str:
    """The rule `function<number>`: a call of it as JSON, its arguments under `key`."""
    head = json.dumps(f'{{"name": "{name}", "{key}": ')
    return f'function{number}: {head} @arguments{number} "}}"\n'
