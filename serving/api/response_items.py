"""What /v1/responses makes of an answer: output items, and the events that build them up."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from serving.answer import AnswerDelta
from serving.api.reply import logprob_entry
from serving.api.response_input import Status
from serving.engine.sequence import TokenLogprob
from serving.parsing.pieces import CallPiece

Event = tuple[str, dict[str, Any]]  # its type behind "response.", and its fields but for type and number


class Output:
    """One answer's items, in the order in which they came: thoughts, text, calls. One of them is written at a time,
    and there is always one in the end: a message, if the answer is empty."""

    def __init__(self, tokenizer: Any, *, logprobs: bool):
        self._tokenizer = tokenizer
        self._wants_logprobs = logprobs
        self._items: list[_OutputItem] = []
        self._tokens = 0
        # By the token's place; of those that are no thoughts, but may turn out to begin a call.
        self._undecided: list[tuple[int, TokenLogprob]] = []

    def items(self, status: Status) -> list[dict[str, Any]]:
        """All of them, the last one in `status` if it has not ended."""
        return [item.body(item.status or status) for item in self._items]

    def take(self, delta: AnswerDelta) -> Iterator[Event]:
        self._note_logprobs(delta)
        if delta.reasoning:
            yield from self._begin(_Thoughts)
            yield from self._items[-1].add(delta.reasoning)
        if delta.text or (self._undecided and self._writing(_Text)):
            yield from self._begin(_Text)
            yield from self._items[-1].add(delta.text, self._decided())
        elif self._writing(_Call):
            self._undecided = []
        for piece in delta.calls:
            self._undecided = []
            yield from self._call(piece)

    def end(self, status: Status) -> Iterator[Event]:
        if not self._items:
            yield from self._begin(_Text)
            if self._undecided:
                yield from self._items[-1].add("", self._decided())
        yield from self._items[-1].end(status)

    def _writing(self, kind: "type[_OutputItem]") -> bool:
        return bool(self._items) and isinstance(self._items[-1], kind)

    def _begin(self, kind: "type[_Thoughts | _Text]") -> Iterator[Event]:
        """Go on with the item that is written if it is of this kind; else it has ended, and another begins."""
        if not self._writing(kind):
            yield from self._start(kind(len(self._items)))

    def _call(self, piece: CallPiece) -> Iterator[Event]:
        last = self._items[-1] if self._items else None
        if not (isinstance(last, _Call) and last.piece_index == piece.index):
            last = _Call(len(self._items), piece)
            yield from self._start(last)
        if piece.arguments:
            yield from last.add(piece.arguments)

    def _start(self, item: "_OutputItem") -> Iterator[Event]:
        if self._items:
            yield from self._items[-1].end("completed")
        self._items.append(item)
        yield from item.begin()

    def _note_logprobs(self, delta: AnswerDelta) -> None:
        if self._wants_logprobs:
            waiting = [*self._undecided, *enumerate(delta.logprobs, self._tokens)]
            self._undecided = [(place, entry) for place, entry in waiting if place >= delta.reasoning_tokens]
        self._tokens += len(delta.token_ids)

    def _decided(self) -> list[dict[str, Any]]:
        """They are the text's."""
        said, self._undecided = self._undecided, []
        return [logprob_entry(self._tokenizer, entry) for _, entry in said]


class _OutputItem(ABC):
    prefix: str

    def __init__(self, index: int):
        self.index = index
        self.id = f"{self.prefix}_{uuid.uuid4().hex}"
        self.status: Status | None = None  # once it has ended
        self.text = ""

    @abstractmethod
    def body(self, status: Status) -> dict[str, Any]: ...

    def begin(self) -> Iterator[Event]:
        yield "output_item.added", {"output_index": self.index, "item": self.body("in_progress")}

    @abstractmethod
    def add(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> Iterator[Event]: ...

    def end(self, status: Status) -> Iterator[Event]:
        self.status = status
        yield "output_item.done", {"output_index": self.index, "item": self.body(status)}

    @property
    def place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index}


class _InOnePart(_OutputItem):
    """An item whose content is one part, of text."""

    kind: str  # of the part, and of its events

    def __init__(self, index: int):
        super().__init__(index)
        self.begun = False

    @property
    @abstractmethod
    def part(self) -> dict[str, Any]: ...

    @property
    def content(self) -> list[dict[str, Any]]:
        return [self.part] if self.begun else []

    @property
    def place(self) -> dict[str, Any]:
        return super().place | {"content_index": 0}

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        self.begun = True
        yield "content_part.added", self.place | {"part": self.part}

    def end(self, status: Status) -> Iterator[Event]:
        done = {name: value for name, value in self.part.items() if name in ("text", "logprobs")}
        yield f"{self.kind}.done", self.place | done
        yield "content_part.done", self.place | {"part": self.part}
        yield from super().end(status)


class _Text(_InOnePart):
    prefix, kind = "msg", "output_text"

    def __init__(self, index: int):
        super().__init__(index)
        self._logprobs: list[dict[str, Any]] = []

    def body(self, status: Status) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": self.content}

    @property
    def part(self) -> dict[str, Any]:
        return {"type": self.kind, "text": self.text, "annotations": [], "logprobs": list(self._logprobs)}

    def add(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> Iterator[Event]:
        self.text += text
        self._logprobs += logprobs or []
        yield "output_text.delta", self.place | {"delta": text, "logprobs": logprobs or []}


class _Thoughts(_InOnePart):
    prefix, kind = "rs", "reasoning_text"

    def body(self, status: Status) -> dict[str, Any]:
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": self.content}

    @property
    def part(self) -> dict[str, Any]:
        return {"type": self.kind, "text": self.text}

    def add(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> Iterator[Event]:
        self.text += text
        yield "reasoning_text.delta", self.place | {"delta": text}


class _Call(_OutputItem):
    """`text` is its arguments."""

    prefix = "fc"

    def __init__(self, index: int, piece: CallPiece):
        super().__init__(index)
        self.piece_index = piece.index
        self._named = {"call_id": piece.id, "name": piece.name}

    def body(self, status: Status) -> dict[str, Any]:
        return {"id": self.id, "type": "function_call", "status": status, **self._named, "arguments": self.text}

    def add(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> Iterator[Event]:
        self.text += text
        yield "function_call_arguments.delta", self.place | {"delta": text}

    def end(self, status: Status) -> Iterator[Event]:
        done = {"name": self._named["name"], "arguments": self.text}
        yield "function_call_arguments.done", self.place | done
        yield from super().end(status)
