"""Mistral: after [TOOL_CALLS] either a JSON list of calls, or for each call the marker, its name, [ARGS] and the
arguments. Templates of the first kind want ids of nine letters and digits."""

import json
import re
import secrets
import string
from collections.abc import Sequence

from serving.parsing.calls import NAME, CallFormat, CallReader, Malformed, MarkedReader, Spell
from serving.parsing.json_call import JsonCall, ObjectSpan, as_json, json_rules, skip_space
from serving.parsing.marked_rules import marked_rules, offered_rules
from serving.parsing.tools import Function

OPENING, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_HEAD = re.compile(r"\s*([A-Za-z0-9_.\-]{1,128})\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*(?=\{)")
_HEAD_BEGUN = re.compile(r"\s*[A-Za-z0-9_.\-\[\]\s]{0,200}")


def nine_characters() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class MistralListReader(CallReader):
    _in_list = False

    def _advance(self, final: bool) -> bool:
        if not self._in_list:
            self._in_list = self._reach(OPENING, final)
            return self._in_list
        prefix = OPENING if self._text.startswith(OPENING) else ""
        at = skip_space(self._text, len(prefix))
        if at == len(self._text):
            if final:
                self._reject()
            return final
        if not prefix and self._text[at] == "]":  # the list is complete
            self._in_list, self._text = False, self._text[at + 1 :]
            return True
        if self._text[at] == ("[" if prefix else ","):
            self._call = JsonCall(at + 1)
        else:
            self._reject()
        return True

    def _reject(self) -> None:
        marked = self._text.startswith(OPENING)
        self._in_list = False
        self._say(OPENING if marked else self._text[:1])
        self._text = self._text[len(OPENING) if marked else 1 :]

    def new_id(self) -> str:
        return nine_characters()


class MistralList(CallFormat):
    markers = (OPENING,)

    def reader(self, functions: Sequence[Function], *, live: bool) -> CallReader:
        return MistralListReader(functions, live=live)

    def rules(self, functions: Sequence[Function], spell: Spell, *, several: bool) -> str:
        each = [json_rules(number, function.name, "arguments") for number, function in enumerate(functions)]
        more = ' (", " function)*' if several else ""
        return marked_rules(OPENING, f'"[" function{more} "]"', each, spell, several=False)

    def offered(self, spell: Spell) -> str:
        return offered_rules(OPENING, spell)


class _NamedCall:
    """[TOOL_CALLS]name[ARGS]{…}, with [CALL_ID]id before the arguments in some versions."""

    def __init__(self) -> None:
        self.id: str | None = None
        self.name: str | None = None
        self.arguments = ""
        self._value: ObjectSpan | None = None
        self._start = 0

    def read(self, text: str, *, final: bool) -> int | None:
        if self._value is None:
            head = _HEAD.match(text, len(OPENING))
            if head is None:
                begun = _HEAD_BEGUN.match(text, len(OPENING))
                if final or begun is None or begun.end() < len(text):
                    raise Malformed
                return None
            if not NAME.fullmatch(head[1]):
                raise Malformed
            self.name, self.id, self._start = head[1], head[2], head.end()
            self._value = ObjectSpan(self._start)
        end = self._value.end(text)
        self.arguments = text[self._start : end]
        if end is None:
            if final:
                raise Malformed
            return None
        try:
            value = json.loads(self.arguments, strict=False)
            if not _strictly(self.arguments):
                self.arguments = as_json(value)
        except (ValueError, RecursionError) as error:
            raise Malformed from error
        return end


class MistralNamedReader(MarkedReader):
    def new_id(self) -> str:
        return nine_characters()


class MistralNamed(CallFormat):
    markers = (OPENING, ARGUMENTS, CALL_ID)

    def reader(self, functions: Sequence[Function], *, live: bool) -> CallReader:
        return MistralNamedReader(functions, OPENING, _NamedCall, live=live)

    def rules(self, functions: Sequence[Function], spell: Spell, *, several: bool) -> str:
        each = [
            f"function{number}: {json.dumps(function.name)} {spell(ARGUMENTS)} @arguments{number}\n"
            for number, function in enumerate(functions)
        ]
        return marked_rules(OPENING, "function", each, spell, several=several, between="")

    def offered(self, spell: Spell) -> str:
        return offered_rules(OPENING, spell)


def _strictly(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
