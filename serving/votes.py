"""Votes on comparisons: what was compared, who found which lane better, and what that says of the models."""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from sqlalchemy import delete, insert, select

from adapters.errors import Conflict, Invalid, NotFound
from serving.arena import Arena, Outcome, rank
from serving.compare import Comparison, Lane
from serving.database.database import Database
from serving.database.tables import arena_battles, comparisons, votes

Tie = Literal["tie", "both_bad"]
TIES: tuple[Tie, ...] = get_args(Tie)
UNVOTED_KEPT_S = 30 * 86_400
NO_SET = ""  # stands for questions of the arena that are of no set
_ID = re.compile("cmp-[0-9a-f]{32}")

Choice = int | Tie


@dataclass(frozen=True)
class VotedLane:
    """A lane as it was answered. `system` stands for the system prompt the caller gave: its digest's beginning."""

    model: str  # as it was asked for
    adapter: str  # `name@number` of what answered, or the base's name
    digest: str | None
    scale: float
    system: str | None


@dataclass(frozen=True)
class Vote:
    comparison_id: str
    choice: Choice
    winner: str | None  # the winning lane's adapter
    changed: bool  # whether the voter had voted otherwise


class VoteStore:
    """Comparisons and votes in the database. Its methods block."""

    def __init__(self, database: Database):
        self.database = database

    def remember(self, comparison_id: str, key: str, lanes: Sequence[VotedLane]) -> None:
        """Keep what is being compared, so that it can be voted on. What nobody has voted on in a month is forgotten."""
        now = int(time.time())
        voted = select(votes.c.comparison_id).where(votes.c.comparison_id == comparisons.c.id).exists()
        row = {
            "id": comparison_id,
            "key": key,
            "lanes": json.dumps([asdict(lane) for lane in lanes]),
            "created_at": now,
        }
        with self.database.writing() as connection:
            connection.execute(delete(comparisons).where(comparisons.c.created_at < now - UNVOTED_KEPT_S, ~voted))
            connection.execute(insert(comparisons).values(row))

    def vote(self, comparison_id: str, voter: str, choice: int | str) -> Vote:
        """Keep what `voter` chose: a lane's number, its model, "tie" or "both_bad". Who votes again changes the vote.
        NotFound for a comparison that is not known, Invalid for a choice it does not have. In the arena the vote is
        blind: a model is no choice there, and who has voted knows the names, so that another vote is a Conflict."""
        now = int(time.time())
        if not _ID.fullmatch(comparison_id):
            raise _unknown()
        with self.database.writing() as connection:
            text = connection.scalar(select(comparisons.c.lanes).where(comparisons.c.id == comparison_id))
            if text is None:
                raise _unknown()
            lanes = [VotedLane(**lane) for lane in json.loads(text)]
            blind = connection.scalar(select(arena_battles.c.key).where(arena_battles.c.comparison_id == comparison_id))
            chosen = _chosen(choice, lanes) if blind is None else _chosen_blind(choice)
            mine = (votes.c.comparison_id == comparison_id) & (votes.c.voter == voter)
            before = connection.scalar(select(votes.c.choice).where(mine))
            if blind is not None and before not in (None, str(chosen)):
                raise Conflict("you have voted on this battle, and know the names", param="choice")
            statement = self.database.insert(votes).values(
                comparison_id=comparison_id, voter=voter, choice=str(chosen), created_at=now
            )
            again = {"choice": str(chosen), "changed_at": now}
            # One statement, because the same voter may vote twice at the same moment.
            connection.execute(statement.on_conflict_do_update(index_elements=["comparison_id", "voter"], set_=again))
        winner = lanes[chosen].adapter if isinstance(chosen, int) else None
        return Vote(comparison_id, chosen, winner, changed=before is not None and before != str(chosen))

    def arena(self, question_set: str | None = None) -> Arena:
        """Every contestant's score, from all votes or those on one question set."""
        return rank(self.outcomes(question_set))

    def outcomes(self, question_set: str | None = None) -> Counter[Outcome]:
        """How often each outcome was voted: in all, on the questions of a set, or on those of none (NO_SET)."""
        statement = select(comparisons.c.lanes, votes.c.choice).join(votes)
        if question_set is not None:
            asked = arena_battles.c.question_set
            statement = statement.join(arena_battles).where(asked == question_set if question_set else asked.is_(None))
        outcomes: Counter[Outcome] = Counter()
        with self.database.reading() as connection:
            for text, choice in connection.execute(statement):
                lanes = [VotedLane(**lane) for lane in json.loads(text)]
                outcomes[Outcome(contestants(lanes), None if choice in TIES else int(choice))] += 1
        return outcomes


def voted_lanes(lanes: Sequence[Lane], running: Comparison) -> list[VotedLane]:
    """What to remember of lanes that are being answered."""
    return [
        VotedLane(
            lane.model,
            progress.answer.adapter,
            progress.answer.digest,
            lane.scale,
            None if lane.system is None else hashlib.sha256(lane.system.encode()).hexdigest()[:8],
        )
        for lane, progress in zip(lanes, running.lanes, strict=True)
    ]


def contestants(lanes: Sequence[VotedLane]) -> tuple[str, ...]:
    """What competes in each lane: the model's version, with its strength where that is not 1, and with its system
    prompt's digest where the lanes do not share one."""
    shared = len({lane.system for lane in lanes}) == 1
    return tuple(
        lane.adapter
        + (f" ×{lane.scale:g}" if lane.scale != 1 else "")
        + (f" system:{lane.system}" if lane.system and not shared else "")
        for lane in lanes
    )


def _unknown() -> NotFound:
    return NotFound(
        "there is no such comparison; send the comparison_id of /v1/compare, and vote within a month",
        param="comparison_id",
        code="comparison_not_found",
    )


def _chosen_blind(choice: int | str) -> Choice:
    """Invalid for anything else, in words that do not say which side is which."""
    if isinstance(choice, int) and choice in (0, 1):
        return choice
    if choice in TIES:
        return "tie" if choice == "tie" else "both_bad"
    raise Invalid("this battle is blind: choice takes 0 (left), 1 (right), 'tie' or 'both_bad'", param="choice")


def _chosen(choice: int | str, lanes: Sequence[VotedLane]) -> Choice:
    if len(lanes) < 2:
        raise Invalid("this comparison has one lane, and nothing to choose from", param="comparison_id")
    if choice == "tie":
        return "tie"
    if choice == "both_bad":
        return "both_bad"
    if isinstance(choice, int):
        if not 0 <= choice < len(lanes):
            raise Invalid(f"choice is {choice}; the lanes are 0 to {len(lanes) - 1}", param="choice")
        return choice
    found = [number for number, lane in enumerate(lanes) if choice in (lane.model, lane.adapter)]
    if len(found) == 1:
        return found[0]
    models = ", ".join(dict.fromkeys(lane.model for lane in lanes))
    if found:
        raise Invalid(f"'{choice}' is in several lanes; send the number of one of {found}", param="choice")
    raise Invalid(
        f"choice takes a lane's number (0 to {len(lanes) - 1}), one of the models {models}, 'tie' or 'both_bad'",
        param="choice",
    )
