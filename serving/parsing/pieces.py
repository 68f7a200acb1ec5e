"""What is read from an answer, in the pieces that a stream passes on."""

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


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker` without completing it."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)
