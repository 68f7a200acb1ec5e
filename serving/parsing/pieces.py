"""What is read from an answer, in the pieces that a stream passes on."""

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class CallPiece:
    """Part of the call number `index` of an answer. The first piece of a call has its id and name; `arguments` of all
    its pieces together are a JSON object."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Pieces:
    content: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()


class Reader(ABC):
    """Text → pieces, in whatever portions it arrives. What is read does not depend on how it was cut."""

    def feed(self, text: str) -> Pieces:
        return self._read(text, final=False)

    def finish(self) -> Pieces:
        """What was held back until it was clear that nothing follows."""
        return self._read("", final=True)

    @abstractmethod
    def _read(self, text: str, *, final: bool) -> Pieces:
        """What is certain with `text` added to what came before."""


def joined(pieces: tuple[CallPiece, ...]) -> tuple[CallPiece, ...]:
    """The same with one piece a call."""
    whole: dict[int, CallPiece] = {}
    for piece in pieces:
        before = whole.get(piece.index)
        if before is None:
            whole[piece.index] = piece
        else:
            arguments = before.arguments + piece.arguments
            whole[piece.index] = CallPiece(piece.index, arguments, before.id or piece.id, before.name or piece.name)
    return tuple(whole.values())


def cut_at(text: str, marker: str, *, final: bool) -> tuple[str, bool, str]:
    """What stands before the marker, whether the marker is there, and what follows it. Without it the last is the end
    of `text` that may begin it, which is nothing in a `final` text."""
    before, found, after = text.partition(marker)
    if found or final:
        return before, bool(found), after
    longest = min(len(text), len(marker) - 1)
    held = next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)
    return text[: len(text) - held], False, text[len(text) - held :]
