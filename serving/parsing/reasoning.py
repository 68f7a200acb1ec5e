"""Thoughts before the answer: `<think>…</think>` and its relatives."""

from adapters.reasoning import ReasoningMarks
from serving.parsing.pieces import Pieces, overlap


class ReasoningReader:
    """Splits thoughts from what follows. They are at the beginning or nowhere: a mark that comes later is text. Line
    breaks around the thoughts are the marks' and belong to neither."""

    def __init__(self, marks: ReasoningMarks, *, inside: bool):
        self.marks = marks
        self._text = ""  # not yet decided
        self._state = "inside" if inside else "before"
        self._begun = False  # something of the present part has been passed on

    def feed(self, text: str) -> Pieces:
        return self._read(text, final=False)

    def finish(self) -> Pieces:
        return self._read("", final=True)

    def _read(self, text: str, *, final: bool) -> Pieces:
        self._text += text
        if self._state == "before":
            self._look_for_opening(final)
        reasoning = self._take_reasoning(final) if self._state == "inside" else ""
        if self._state == "before":
            return Pieces()
        content = self._take_content() if self._state in ("after", "none") else ""
        return Pieces(content, reasoning)

    def _look_for_opening(self, final: bool) -> None:
        begun = self._text.lstrip()
        if begun.startswith(self.marks.opening):
            self._text, self._state = begun[len(self.marks.opening) :], "inside"
        elif final or not self.marks.opening.startswith(begun):
            self._state = "none"

    def _take_reasoning(self, final: bool) -> str:
        thought, closing, rest = self._text.partition(self.marks.closing)
        if not self._begun:
            thought = thought.lstrip("\n")
        if closing:
            self._text, self._state, self._begun = rest, "after", False
            return thought.rstrip("\n")
        # Line breaks may be the ones before the mark.
        held = 0 if final else overlap(thought, self.marks.closing)
        sure = thought[: len(thought) - held].rstrip("\n")
        self._text = "" if final else thought[len(sure) :]
        self._begun = self._begun or bool(sure)
        return sure

    def _take_content(self) -> str:
        text, self._text = self._text, ""
        if self._state == "after" and not self._begun:
            text = text.lstrip("\n")
            self._begun = bool(text)
        return text
