"""Token ids → text as it arrives: whole characters only, and stop strings never shown, not even in part."""

from collections.abc import Sequence
from typing import Any

# Byte-level tokens may end inside a character; the decoder shows the unfinished rest as this.
_UNFINISHED = "\ufffd"
_LONGEST_UNFINISHED = 4  # tokens; a UTF-8 character has at most four bytes, so after that it is truly invalid


class Detokenizer:
    """One request's text. Decodes a short window of recent tokens at each step, so its cost does not grow."""

    def __init__(
        self, tokenizer: Any, stop: Sequence[str], *, show_special: bool = False, hidden: frozenset[int] | None = None
    ):
        """Special tokens are left out of the text: those in `hidden` if it is given, none with `show_special`."""
        self.tokenizer = tokenizer
        self.show_special = show_special
        self._hidden = hidden
        self.stop = [s for s in stop if s]
        self.stopped = False
        self._tokens: list[int] = []
        self._window = 0  # first token of the window; its text is context for how the next ones are spelled
        self._read = 0  # tokens whose text has been taken
        self._held = ""  # text that may yet turn out to begin a stop string

    def push(self, token_id: int) -> str:
        """The text that became certain with this token. Sets `stopped` when a stop string is complete."""
        self._tokens.append(token_id)
        return self._release(self._new_text(final=False), final=False)

    def finish(self, *, cut: bool = False) -> str:
        """Whatever was held back. An answer that was `cut` off, rather than ended by the model, loses the beginning of
        a character that the next tokens would have completed."""
        if self.stopped:
            return ""
        new = self._new_text(final=True)
        return self._release(new.rstrip(_UNFINISHED) if cut else new, final=True)

    def _new_text(self, *, final: bool) -> str:
        known = self._decode(self._tokens[self._window : self._read])
        text = self._decode(self._tokens[self._window :])
        unfinished = text.endswith(_UNFINISHED) and len(self._tokens) - self._read < _LONGEST_UNFINISHED
        if len(text) <= len(known) or (unfinished and not final):
            return ""
        self._window, self._read = self._read, len(self._tokens)
        return text[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        if self._hidden is not None:
            return str(self.tokenizer.decode([token for token in ids if token not in self._hidden]))
        return str(self.tokenizer.decode(ids, skip_special_tokens=not self.show_special))

    def _release(self, new: str, *, final: bool) -> str:
        text = self._held + new
        found = [at for s in self.stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = 0 if final else max((_overlap(text, s) for s in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
