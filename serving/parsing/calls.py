"""What the formats of tool calls have in common: finding calls in an answer that arrives in pieces.

A call is passed on when it is complete and well-formed; one that is not comes out as the text it is. Where a grammar
rules that out (`live`), its arguments are passed on as they arrive."""

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from serving.parsing.pieces import CallPiece, Pieces, Reader, cut_at, joined
from serving.parsing.tools import Function

NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")

Spell = Callable[[str], str]  # a marker as an element of a rule: a special token, or its text


class Malformed(Exception):
    """What looked like a call is none."""


class Call(Protocol):
    """One call at the beginning of a growing text."""

    id: str | None
    name: str | None  # as soon as it is certain
    arguments: str  # as much as is certain, if the text is well-formed

    def read(self, text: str, *, final: bool) -> int | None:
        """Where the call ends in `text`, None while it goes on. Nothing follows a `final` text. Raises Malformed."""


class CallReader(Reader):
    """An answer's text → content and calls, whatever pieces it comes in. Spaces between calls are nobody's."""

    def __init__(self, functions: Sequence[Function], *, live: bool):
        self.functions = {function.name: function for function in functions}
        self.live = live
        self.cut = False  # the answer ended inside a call that has been passed on
        self._text = ""  # not yet decided
        self._call: Call | None = None  # what `_text` begins with
        self._told = -1  # characters of its arguments that were passed on; -1: not even its name
        self._count = 0
        self._space = ""  # content, unless a call follows
        self._after_call = False
        self._content: list[str] = []
        self._pieces: list[CallPiece] = []

    def _read(self, text: str, *, final: bool) -> Pieces:
        self._text += text
        while self._read_call(final) if self._call else self._advance(final):
            pass
        if final and not self._after_call:
            self._content.append(self._space)
        found = Pieces("".join(self._content), calls=joined(tuple(self._pieces)))
        self._content, self._pieces = [], []
        return found

    @abstractmethod
    def _advance(self, final: bool) -> bool:
        """Pass on content, up to where a call may begin, and begin it. False: more text is needed."""

    @abstractmethod
    def _reject(self) -> None:
        """`_text` begins with no call after all: pass on at least what made it look so."""

    def new_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"

    def _reach(self, marker: str, final: bool) -> bool:
        """Pass on content up to the marker, with which `_text` then begins; False when it has not come."""
        before, found, rest = cut_at(self._text, marker, final=final)
        self._say(before)
        self._text = marker + rest if found else rest
        return found

    def _say(self, text: str) -> None:
        text = self._space + text
        if self._after_call:
            text = text.lstrip()
        said = text.rstrip()
        self._space = text[len(said) :]
        if said:
            self._content.append(said)
            self._after_call = False

    def _read_call(self, final: bool) -> bool:
        call = self._call
        assert call is not None
        try:
            end = call.read(self._text, final=final)
        except Malformed:
            self._call = None
            if self._told < 0:
                self._reject()
                return True
            self._text, self.cut = "", True  # by its length; what there was of it has been passed on
            return False
        if end is None and not self.live:
            return False
        self._tell(call)
        if end is None:
            return False
        self._text = self._text[end:]
        self._call, self._told = None, -1
        self._count += 1
        return True

    def _tell(self, call: Call) -> None:
        if call.name is None:
            return
        if self._told < 0:
            self._space, self._after_call, self._told = "", True, 0
            self._pieces.append(CallPiece(self._count, id=call.id or self.new_id(), name=call.name))
        if more := call.arguments[self._told :]:
            self._told += len(more)
            self._pieces.append(CallPiece(self._count, more))


class MarkedReader(CallReader):
    """For calls that begin with a marker, each its own. `begin` makes a call whose text begins with it."""

    def __init__(self, functions: Sequence[Function], opening: str, begin: Callable[[], Call], *, live: bool):
        super().__init__(functions, live=live)
        self._opening = opening
        self._begin = begin

    def _advance(self, final: bool) -> bool:
        if not self._reach(self._opening, final):
            return False
        self._call = self._begin()
        return True

    def _reject(self) -> None:
        self._say(self._opening)
        self._text = self._text[len(self._opening) :]


class CallFormat(ABC):
    """How a model writes calls. Rules are in the dialect of serving.engine.grammar; those of the arguments call the
    grammar of function number i as `@arguments<i>`."""

    markers: tuple[str, ...]

    @abstractmethod
    def reader(self, functions: Sequence[Function], *, live: bool) -> CallReader: ...

    @abstractmethod
    def rules(self, functions: Sequence[Function], spell: Spell, *, several: bool) -> str:
        """`calls`: one call or, if wanted, several; nothing else."""

    @abstractmethod
    def offered(self, spell: Spell) -> str:
        """`offered`: any text, in which what looks like a call is one. Stands beside `rules`."""

    def parts(self, functions: Sequence[Function]) -> list[tuple[str, Function]]:
        return [(f"arguments{number}", function) for number, function in enumerate(functions)]
