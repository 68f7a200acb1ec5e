"""What is known of the request being handled, for its log line: whoever starts answers adds them, whoever received
the request reads them when it has ended. It travels with the task, so that no service passes it on."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.answer import Answer


@dataclass(eq=False)
class RequestRecord:
    id: str
    answers: list[Answer] = field(default_factory=list)
    ended: bool = False  # tasks that the request started may live on with this record; they add nothing any more


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)


def note_answers(answers: list[Answer]) -> None:
    record = current_record.get()
    if record and not record.ended:
        record.answers += answers
