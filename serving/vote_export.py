"""Votes as files: preference pairs to learn from, and every vote with where it comes from."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from adapters.errors import Invalid
from serving.battle_store import Battle, BattleSide, CastVote
from serving.engine.sequence import FinishReason
from serving.files import FileStore, StoredFile
from serving.votes import contestants

Kind = Literal["pairs", "votes"]

_SIDES = {"0": "left", "1": "right"}


@dataclass(frozen=True)
class Pair:
    """A question with the answer that was preferred and the other."""

    battle: Battle
    chosen: BattleSide
    rejected: BattleSide

    def row(self) -> dict[str, Any]:
        """As DPO reads it. A system prompt is in it when both sides were given one; their own are the models', not the
        question's."""
        system = [{"role": "system", "content": self.battle.system}] if self.battle.system else []
        return {
            "conversations": [*system, {"role": "user", "content": self.battle.asked.text}],
            "chosen": [{"role": "assistant", "content": self.chosen.text}],
            "rejected": [{"role": "assistant", "content": self.rejected.text}],
        }


def pairs(cast: Iterable[CastVote]) -> list[Pair]:
    """One pair a battle, as most of its voters decided. Ties teach nothing, nor do an empty answer, two equal ones, or
    a preferred one that was cut off: learning it would be learning to stop there."""
    by_battle: dict[str, tuple[Battle, Counter[str]]] = {}
    for vote in cast:
        if vote.battle:
            by_battle.setdefault(vote.comparison_id, (vote.battle, Counter()))[1][vote.choice] += 1
    found = []
    for battle, choices in by_battle.values():
        left, right = battle.sides
        if choices["0"] == choices["1"] or max(choices["0"], choices["1"]) <= choices["tie"] + choices["both_bad"]:
            continue
        chosen, rejected = (left, right) if choices["0"] > choices["1"] else (right, left)
        taught = chosen.text.strip() and rejected.text.strip() and chosen.text != rejected.text
        if taught and chosen.finish_reason == FinishReason.STOP:
            found.append(Pair(battle, chosen, rejected))
    return found


def exported(cast: Iterable[CastVote], kind: Kind) -> str:
    """JSON lines. Invalid when there is nothing to write."""
    votes = list(cast)
    rows = [pair.row() for pair in pairs(votes)] if kind == "pairs" else [_vote_row(vote) for vote in votes]
    if not rows:
        raise Invalid(
            "no vote prefers one whole answer to another yet; vote left or right first"
            if kind == "pairs"
            else "there is no vote to export yet",
            param="votes",
        )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def file_name(kind: Kind) -> str:
    return f"arena-{kind}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"


def to_uploads(cast: Iterable[CastVote], files: FileStore) -> StoredFile:
    """Put the pairs among the uploads, for a training run. Blocks; Invalid as `exported`."""
    text = exported(cast, "pairs")
    with files.workspace() as workspace:
        rows = workspace / "rows"
        rows.write_text(text, encoding="utf-8")
        return files.add(rows, file_name("pairs"), "fine-tune")


def _vote_row(vote: CastVote) -> dict[str, Any]:
    battle = vote.battle
    labels = contestants(vote.lanes)
    winner = labels[int(vote.choice)] if vote.choice.isdigit() else None
    said = {
        "comparison_id": vote.comparison_id,
        "voter": vote.voter,
        "choice": _SIDES.get(vote.choice, vote.choice) if battle else vote.choice,
        "winner": winner,
        "created_at": vote.created_at,
        "changed_at": vote.changed_at,
    }
    if battle is None:  # compared over the API: who answered is known, what was said is not
        return said | {"lanes": [asdict(lane) for lane in vote.lanes]}
    sides = zip(("left", "right"), battle.sides, strict=True)
    return said | {
        "question": battle.asked.text,
        "question_set": battle.asked.question_set and battle.asked.model_dump(exclude={"text"}),
        "system": battle.system,
        "sampling": battle.sampling.model_dump(),
        "base": {"name": battle.base_name, "fingerprint": battle.base_fingerprint},
        "asked_at": battle.created_at,
        "lanes": [{"side": name} | side.model_dump(mode="json") for name, side in sides],
    }
