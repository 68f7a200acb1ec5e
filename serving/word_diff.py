"""What one text says otherwise than another, word by word. Chinese has no spaces between its words, so a segmenter
finds them."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Change = Literal["same", "deleted", "inserted"]


@dataclass(frozen=True)
class Piece:
    change: Change
    text: str


def words(text: str) -> list[str]:
    """`text` cut into words, punctuation and single spaces; joined they are the text again."""
    import rjieba  # its dictionary is read with the first cut

    return list(rjieba.cut(text))


def word_diff(before: str, after: str) -> list[Piece]:
    """What must be deleted from `before` and inserted to make `after`, in reading order. The pieces that are not
    inserted make `before`, those not deleted `after`."""
    return list(_pieces(words(before), words(after)))


def _pieces(before: list[str], after: list[str]) -> Iterator[Piece]:
    # autojunk would take frequent words, such as the comma, for noise.
    for tag, start, end, new_start, new_end in SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes():
        if tag == "equal":
            yield Piece("same", "".join(before[start:end]))
            continue
        if start < end:
            yield Piece("deleted", "".join(before[start:end]))
        if new_start < new_end:
            yield Piece("inserted", "".join(after[new_start:new_end]))
