"""Llama 3.1 and later: the whole answer is {"name": …, "parameters": {…}}, perhaps after <|python_tag|>; several are
separated by semicolons."""

import re
from collections.abc import Sequence

from serving.parsing.calls import CallFormat, CallReader, Malformed, Spell
from serving.parsing.json_call import JsonCall, json_rules
from serving.parsing.tools import Function

TAG = "<|python_tag|>"
_BETWEEN = re.compile(r"[\s;]*")


class LlamaReader(CallReader):
    """Calls begin where the answer does, or right after another call; there is no mark to tell one from other JSON, so
    only functions that were offered count."""

    _open = True  # a call may begin here

    def _advance(self, final: bool) -> bool:
        if not self._open:
            self._say(self._text)
            self._text = ""
            return False
        start = self._start()
        begun = self._text[start:]
        if begun.startswith("{"):
            self._call = _KnownCall(start, self)
            return True
        if not final and (TAG.startswith(begun) or begun.startswith(TAG) and not begun[len(TAG) :].strip()):
            return False
        if begun or final:
            self._reject()
        return not final

    def _start(self) -> int:
        """Where `_text` goes on after spaces, a separator and the tag."""
        between = _BETWEEN if self._count else re.compile(r"\s*")
        start = _end(between, self._text, 0)
        if self._text.startswith(TAG, start):
            start = _end(re.compile(r"\s*"), self._text, start + len(TAG))
        return start

    def _reject(self) -> None:
        self._open = False
        self._say(self._text)
        self._text = ""


class _KnownCall(JsonCall):
    def __init__(self, offset: int, reader: LlamaReader):
        super().__init__(offset)
        self._reader = reader

    def read(self, text: str, *, final: bool) -> int | None:
        end = super().read(text, final=final)
        if self.name is not None and self.name not in self._reader.functions:
            raise Malformed
        return end


class Llama(CallFormat):
    markers = (TAG,)

    def reader(self, functions: Sequence[Function], *, live: bool) -> CallReader:
        return LlamaReader(functions, live=live)

    def rules(self, functions: Sequence[Function], spell: Spell, *, several: bool) -> str:
        choice = " | ".join(f"function{number}" for number in range(len(functions)))
        each = [json_rules(number, function.name, "parameters") for number, function in enumerate(functions)]
        more = ' ("; " function)*' if several else ""
        return f"calls: function{more}\nfunction: {choice}\n" + "".join(each)

    def offered(self, spell: Spell) -> str:
        return "offered: calls | FREE_TEXT\nFREE_TEXT: /([^{\\s](?s:.*))?/\n"


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start
