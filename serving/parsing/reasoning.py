"""Thoughts before the answer: `<think>…</think>` and its relatives."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal

from adapters.reasoning import ReasoningMarks
from serving.parsing.pieces import Pieces, Reader, cut_at


class ReasoningReader(Reader):
    """Splits thoughts from what follows. They are at the beginning or nowhere: a mark that comes later is text. Line
    breaks around the thoughts are the marks' and belong to neither."""

    def __init__(self, marks: ReasoningMarks, *, inside: bool):
        self.marks = marks
        self._text = ""  # not yet decided
        self.state: Literal["before", "inside", "after", "none"] = "inside" if inside else "before"
        self._begun = False  # something of the present part has been passed on

    def _read(self, text: str, *, final: bool) -> Pieces:
        self._text += text
        if self.state == "before":
            self._look_for_opening(final)
        reasoning = self._take_reasoning(final) if self.state == "inside" else ""
        if self.state == "before":
            return Pieces()
        content = self._take_content() if self.state in ("after", "none") else ""
        return Pieces(content, reasoning)

    def _look_for_opening(self, final: bool) -> None:
        begun = self._text.lstrip()
        if begun.startswith(self.marks.opening):
            self._text, self.state = begun[len(self.marks.opening) :], "inside"
        elif final or not self.marks.opening.startswith(begun):
            self.state = "none"

    def _take_reasoning(self, final: bool) -> str:
        thought, closed, self._text = cut_at(self._text, self.marks.closing, final=final)
        if not self._begun:
            thought = thought.lstrip("\n")
        sure = thought.rstrip("\n")
        if closed:
            self.state, self._begun = "after", False
        elif not final:  # line breaks may be the ones before the mark
            self._text = thought[len(sure) :] + self._text
            self._begun = self._begun or bool(sure)
        return sure

    def _take_content(self) -> str:
        text, self._text = self._text, ""
        if self.state == "after" and not self._begun:
            text = text.lstrip("\n")
            self._begun = bool(text)
        return text


class ThoughtTokens:
    """How many of an answer's tokens are thoughts, their marks included. `decode` shows special tokens."""

    def __init__(self, marks: ReasoningMarks, decode: Callable[[Sequence[int]], str]):
        self._marks = marks
        self._decode = decode
        self._ids: list[int] = []  # up to the one in which the thoughts are seen to end
        self._thought: int | None = None  # once that is known

    def count(self, token_ids: Sequence[int], reader: ReasoningReader) -> int:
        """Of the tokens so far, `token_ids` the latest, after `reader` has read what is certain of their text."""
        if self._thought is not None or reader.state == "none":
            return self._thought or 0
        self._ids += token_ids
        if reader.state == "after":
            self._thought = self._closed_at()
            return self._thought
        return len(self._ids) if reader.state == "inside" else 0

    def _closed_at(self) -> int:
        """Tokens up to the one that completes the closing mark. It is the last, unless deltas have been joined or
        text was held back."""
        ids = self._ids
        if not self._closes(len(ids) - 1):
            return len(ids)
        return bisect_left(range(len(ids)), True, key=self._closes)

    def _closes(self, count: int) -> bool:
        return self._marks.closing in self._decode(self._ids[:count])
