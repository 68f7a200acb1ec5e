"""Comparisons that can be read again: what every lane was, to the digest, what it was asked, and what it said.

An id is the comparison's permanent link. It cannot be guessed, so whoever has it was given it, and may read; only
lists and changes are kept to the key that asked."""

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict
from sqlalchemy import delete, select

from adapters.errors import NotFound
from adapters.renderer import Message
from serving.compare import Lane
from serving.database.database import Database
from serving.database.tables import saved_comparisons
from serving.engine.sequence import FinishReason
from serving.sampling_record import Sampling

MAX_TITLE = 120
MAX_RECENT = 20
_ID = re.compile("c-[0-9A-Za-z_-]{22}")


class SavedLane(BaseModel):
    """One lane's part of a turn. `model` is what was asked for, `version` and `digest` what that meant then; both are
    None for the base. Without a `finish_reason` the answer is still running, or the server stopped in its middle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slot: int  # its place on the page, from 0
    model: str
    version: str | None
    digest: str | None
    scale: float
    system: str | None  # None: the model's own; "": none
    own_system: str | None  # the one that the version was trained under
    prompt_sha256: str  # of the prompt's token ids
    text: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def answered(self) -> bool:
        return bool(self.text)

    def lane(self, model: str) -> Lane:
        return Lane(model, self.scale, self.system)


class SavedTurn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    sampling: Sampling
    lanes: tuple[SavedLane, ...]

    def of(self, slot: int) -> SavedLane | None:
        return next((lane for lane in self.lanes if lane.slot == slot), None)


class SavedComparison(BaseModel):
    """Format 1 of the table's `content`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    id: str
    key: str
    base_name: str
    base_fingerprint: str
    created_at: int
    turns: tuple[SavedTurn, ...] = ()

    def conversation(self, slot: int, before: int | None = None) -> list[Message]:
        """What a lane has seen and said before turn `before`, or in all; turns without an answer are left out."""
        messages: list[Message] = []
        for turn in self.turns[:before]:
            lane = turn.of(slot)
            if lane and lane.answered:
                messages += [
                    Message(role="user", content=turn.question),
                    Message(role="assistant", content=lane.text),
                ]
        return messages

    def with_turn(self, turn: SavedTurn) -> "SavedComparison":
        return self.model_copy(update={"turns": (*self.turns, turn)})


@dataclass(frozen=True)
class Summary:
    id: str
    key: str
    title: str
    changed_at: int


def new_id() -> str:
    return f"c-{secrets.token_urlsafe(16)}"


class ComparisonStore:
    """In the database. Its methods block."""

    def __init__(self, database: Database):
        self.database = database

    def put(self, comparison: SavedComparison) -> None:
        """Keep a comparison, or what has become of it."""
        content = comparison.model_dump_json()
        title = comparison.turns[0].question if comparison.turns else ""
        now = int(time.time())
        statement = self.database.insert(saved_comparisons).values(
            id=comparison.id,
            key=comparison.key,
            title=" ".join(title.split())[:MAX_TITLE],
            content=content,
            created_at=comparison.created_at,
            changed_at=now,
        )
        again = {"content": content, "changed_at": now}
        with self.database.writing() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=again))

    def get(self, comparison_id: str) -> SavedComparison:
        """NotFound for one that was never made, or was deleted."""
        content = None
        if _ID.fullmatch(comparison_id):
            with self.database.reading() as connection:
                content = connection.scalar(
                    select(saved_comparisons.c.content).where(saved_comparisons.c.id == comparison_id)
                )
        if content is None:
            raise _unknown(comparison_id)
        return SavedComparison.model_validate_json(content)

    def recent(self, key: str | None) -> list[Summary]:
        """The latest of a key, or of everybody with None; the last changed first."""
        table = saved_comparisons
        statement = select(table.c.id, table.c.key, table.c.title, table.c.changed_at)
        if key is not None:
            statement = statement.where(table.c.key == key)
        latest = statement.order_by(table.c.changed_at.desc(), table.c.created_at.desc()).limit(MAX_RECENT)
        with self.database.reading() as connection:
            return [Summary(*row) for row in connection.execute(latest)]

    def delete(self, comparison_id: str, key: str | None) -> None:
        """Forget a comparison of `key`, or of anybody with None. NotFound when there is none."""
        statement = delete(saved_comparisons).where(saved_comparisons.c.id == comparison_id)
        if key is not None:
            statement = statement.where(saved_comparisons.c.key == key)
        with self.database.writing() as connection:
            if not connection.execute(statement).rowcount:
                raise _unknown(comparison_id)


def slots_of(turns: Iterable[SavedTurn]) -> list[int]:
    """Lanes of the last turn, in order."""
    last = list(turns)[-1:]
    return [lane.slot for turn in last for lane in turn.lanes]


def _unknown(comparison_id: str) -> NotFound:
    shown = comparison_id.encode("ascii", "backslashreplace").decode()[:64]
    return NotFound(
        f"comparison '{shown}' does not exist; it was deleted, or its link is not whole",
        param="comparison",
        code="comparison_not_found",
    )
