"""Two models' answers judged by readers who do not know whose they are.

`sheet` mixes the answers and keeps the key apart; `judge` joins what the readers said with the key."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from adapters.errors import Invalid
from training.pretrain.demo import Answer, ended, in_language, read_lines, share

ASKED = ("fluent", "on_topic")
Row = dict[str, Any]


def sheet(a: Sequence[Answer], b: Sequence[Answer], seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to judge, in random order and without names, and the key to them. Raises Invalid unless two models
    answered the same questions."""
    if {answer.id for answer in a} != {answer.id for answer in b}:
        raise Invalid("the two files answer different questions; ask both models with the same questions")
    if {answer.model for answer in a} & {answer.model for answer in b}:
        raise Invalid(f"both files say they are of {a[0].model}; give one of them another --name when asking")
    answers = [*a, *b]
    random.Random(seed).shuffle(answers)
    rows, key = [], []
    for number, answer in enumerate(answers, 1):
        own = f"{number:03}"
        rows.append({"id": own, "language": answer.language, "question": answer.question, "answer": answer.answer})
        key.append({"id": own, "of": asdict(answer)})
    return rows, key


@dataclass(frozen=True)
class Verdicts:
    """Of one model. Shares are between 0 and 1; `judged[reader][asked]`."""

    model: str
    judged: dict[str, dict[str, float]]
    ended: float
    in_language: float


def read_reader(path: Path, rows: Sequence[Row]) -> dict[str, Row]:
    """A reader's verdicts by row id. Raises Invalid unless every row of the sheet has both, as true or false."""
    verdicts = {str(row.get("id")): row for row in read_lines(path)}
    missing = [row["id"] for row in rows if row["id"] not in verdicts]
    if missing:
        raise Invalid(f"{path} has no verdict on {len(missing)} of {len(rows)} rows, the first being {missing[0]}")
    for row in rows:
        for asked in ASKED:
            if not isinstance(verdicts[row["id"]].get(asked), bool):
                raise Invalid(f"{path}: '{asked}' of row {row['id']} must be true or false")
    return {row["id"]: verdicts[row["id"]] for row in rows}


def judge(rows: Sequence[Row], key: Sequence[Row], readers: Mapping[str, Mapping[str, Row]]) -> list[Verdicts]:
    """What the readers found of each model."""
    if {row["id"] for row in key} != {row["id"] for row in rows}:
        raise Invalid("the key belongs to another sheet: their ids differ")
    answers = {row["id"]: Answer(**row["of"]) for row in key}
    found = []
    for model in sorted({answer.model for answer in answers.values()}):
        own = {id_: answer for id_, answer in answers.items() if answer.model == model}
        judged = {
            name: {asked: share([verdicts[id_][asked] for id_ in own]) for asked in ASKED}
            for name, verdicts in readers.items()
        }
        found.append(Verdicts(model, judged, ended(list(own.values())), in_language(list(own.values()))))
    return found


def agreement(one: Mapping[str, Row], other: Mapping[str, Row], asked: str) -> float | None:
    """Cohen's kappa (1960) of two readers of one sheet; None where chance alone makes them agree always."""
    both = [(one[id_][asked], other[id_][asked]) for id_ in one]
    observed = share([a == b for a, b in both])
    yes, also = share([a for a, _ in both]), share([b for _, b in both])
    expected = yes * also + (1 - yes) * (1 - also)
    return None if expected == 1 else (observed - expected) / (1 - expected)


def verdicts_table(found: Sequence[Verdicts]) -> Table:
    table = Table("model", title="share of answers")
    readers = list(found[0].judged)
    for name in readers:
        for asked in ASKED:
            table.add_column(f"{asked.replace('_', ' ')} ({name})", justify="right")
    table.add_column("ended by itself", justify="right")
    table.add_column("in the question's language", justify="right")
    for verdicts in found:
        by_judge = [verdicts.judged[name][asked] for name in readers for asked in ASKED]
        table.add_row(verdicts.model, *(f"{value:.1%}" for value in (*by_judge, verdicts.ended, verdicts.in_language)))
    return table
