"""What /v1/responses makes of an answer: output items, and the events that build them up."""

import uuid
from collections.abc import Iterator
from typing import Any, Literal

from serving.api.reply import logprob_entry
from serving.engine.sequence import TokenDelta

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Event = tuple[str, dict[str, Any]]  # its type behind "response.", and its fields but for type and number


class Output:
    """One answer's items: a single message with all its text. What splits an answer further (tool calls, reasoning)
    belongs here: `items`, and the events that lead to them in `begin`, `take` and `end`."""

    def __init__(self, tokenizer: Any, *, logprobs: bool):
        self._tokenizer = tokenizer
        self._wants_logprobs = logprobs
        self._id = f"msg_{uuid.uuid4().hex}"
        self._text = ""
        self._logprobs: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        """What the assistant has said so far, for the conversation that goes on from here."""
        return self._text

    def items(self, status: ItemStatus) -> list[dict[str, Any]]:
        return [self._message(status, [self._part()])]

    def begin(self) -> Iterator[Event]:
        yield "output_item.added", {"output_index": 0, "item": self._message("in_progress", [])}
        yield "content_part.added", self._place() | {"part": self._part()}

    def take(self, delta: TokenDelta) -> Iterator[Event]:
        self._text += delta.text
        said = [logprob_entry(self._tokenizer, entry) for entry in delta.logprobs] if self._wants_logprobs else []
        self._logprobs += said
        if delta.text or said:
            yield "output_text.delta", self._place() | {"delta": delta.text, "logprobs": said}

    def end(self, status: ItemStatus) -> Iterator[Event]:
        yield "output_text.done", self._place() | {"text": self._text, "logprobs": self._logprobs}
        yield "content_part.done", self._place() | {"part": self._part()}
        yield "output_item.done", {"output_index": 0, "item": self.items(status)[0]}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": 0, "content_index": 0}

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": list(self._logprobs)}

    def _message(self, status: ItemStatus, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "status": status, "content": content}
