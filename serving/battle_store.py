"""Battles of the arena as they are kept: what was asked, how it was sampled, and what each side answered.

Who votes may see a battle's texts; everything else of it only after the vote, which is `battles`' to hold back."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict
from sqlalchemy import delete, insert, select, update

from adapters.errors import NotFound
from serving.database.database import Database
from serving.database.tables import arena_battles, comparisons, votes
from serving.engine.sequence import FinishReason
from serving.sampling_record import Sampling
from serving.votes import VotedLane, VoteStore

ANSWERED = (FinishReason.STOP, FinishReason.TOOL_CALLS, FinishReason.LENGTH, FinishReason.ABORT)


class Asked(BaseModel):
    """A question. Of a set it has the set's id and title and its place in it, from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    question_set: str | None = None
    set_title: str | None = None
    number: int | None = None


class BattleSide(BaseModel):
    """One side, as it was answered. Times are in seconds since the battle began. Without a `finish_reason` its answer
    is still running, or the server stopped in its middle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str  # as it was asked for: an exact version
    adapter: str  # `name@number` of what answered, or the base's name
    digest: str | None
    scale: float
    own_system: str | None  # the system prompt that its adapter was trained under
    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """What competes: the version, with its strength where that is not 1."""
        return self.adapter + (f" ×{self.scale:g}" if self.scale != 1 else "")


class Battle(BaseModel):
    """Format 1 of the table's `content`. `sides` are left and right."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    id: str  # the comparison's
    key: str  # who asked
    created_at: int
    base_name: str
    base_fingerprint: str
    asked: Asked
    system: str | None  # given to both sides; None: each had its own
    sampling: Sampling
    sides: tuple[BattleSide, BattleSide]

    @property
    def can_be_voted_on(self) -> bool:
        return all(side.finish_reason in ANSWERED for side in self.sides)

    @property
    def begun(self) -> bool:
        """Whether both sides have something to show, or nothing more to come."""
        return all(side.text or side.finish_reason for side in self.sides)


@dataclass(frozen=True)
class CastVote:
    """A vote with what it was on. `battle` is None for comparisons that were not made in the arena."""

    comparison_id: str
    lanes: tuple[VotedLane, ...]
    battle: Battle | None
    voter: str
    choice: str
    created_at: int
    changed_at: int | None


class BattleStore:
    """Battles in the database. Its methods block."""

    def __init__(self, votes: VoteStore):
        self.votes = votes
        self.database: Database = votes.database

    def begin(self, battle: Battle, lanes: Sequence[VotedLane]) -> None:
        """Keep a battle whose answers are still to come. It goes with its comparison when nobody votes on it."""
        self.votes.remember(battle.id, battle.key, lanes)
        row = {
            "comparison_id": battle.id,
            "key": battle.key,
            "question_set": battle.asked.question_set,
            "question_number": battle.asked.number,
            "content": battle.model_dump_json(),
            "created_at": battle.created_at,
        }
        with self.database.writing() as connection:
            connection.execute(insert(arena_battles).values(row))

    def keep(self, battle: Battle) -> None:
        """The battle as it is now."""
        this = arena_battles.c.comparison_id == battle.id
        with self.database.writing() as connection:
            connection.execute(update(arena_battles).where(this).values(content=battle.model_dump_json()))

    def get(self, battle_id: str) -> Battle:
        statement = select(arena_battles.c.content).where(arena_battles.c.comparison_id == battle_id)
        with self.database.reading() as connection:
            content = connection.scalar(statement)
        if content is None:
            raise NotFound("there is no such battle; ask a new question", param="battle", code="battle_not_found")
        return Battle.model_validate_json(content)

    def choice(self, battle_id: str, voter: str) -> str | None:
        """What `voter` chose: "0" for left, "1" for right, "tie", "both_bad"; None before the vote."""
        mine = (votes.c.comparison_id == battle_id) & (votes.c.voter == voter)
        with self.database.reading() as connection:
            return connection.scalar(select(votes.c.choice).where(mine))

    def times_asked(self, key: str, question_set: str) -> Counter[int]:
        """How often each question of a set was asked by this key, by its place in the set."""
        table = arena_battles.c
        statement = select(table.question_number).where((table.key == key) & (table.question_set == question_set))
        with self.database.reading() as connection:
            return Counter(connection.execute(statement).scalars())

    def cast(self, voter: str | None) -> list[CastVote]:
        """Votes of `voter`, or with None of everybody, the oldest first."""
        columns = (
            comparisons.c.id,
            comparisons.c.lanes,
            arena_battles.c.content,
            votes.c.voter,
            votes.c.choice,
            votes.c.created_at,
            votes.c.changed_at,
        )
        joined = votes.join(comparisons).outerjoin(arena_battles, arena_battles.c.comparison_id == comparisons.c.id)
        statement = select(*columns).select_from(joined).order_by(votes.c.created_at, comparisons.c.id)
        if voter is not None:
            statement = statement.where(votes.c.voter == voter)
        with self.database.reading() as connection:
            return [
                CastVote(
                    comparison_id,
                    tuple(VotedLane(**lane) for lane in json.loads(lanes)),
                    Battle.model_validate_json(content) if content else None,
                    *vote,
                )
                for comparison_id, lanes, content, *vote in connection.execute(statement)
            ]

    def clear(self) -> int:
        """Forget all votes and everything that was compared; returns how many votes there were."""
        with self.database.writing() as connection:
            gone = connection.execute(delete(votes)).rowcount
            connection.execute(delete(arena_battles))
            connection.execute(delete(comparisons))
        return gone
