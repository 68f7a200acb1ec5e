"""Question sets: the same questions for every battle, so that votes on them compare. Two are bundled; people add
their own, one question a line. A set never changes: votes say which of its questions they are on."""

import json
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sqlalchemy import delete, insert, select

from adapters.errors import Conflict, Forbidden, Invalid, NotFound
from serving.database.database import Database
from serving.database.tables import question_sets

BUNDLED_TITLES = {"zh": "日常十二问", "en": "Twelve everyday questions"}
MAX_QUESTIONS = 500
MAX_QUESTION = 2000  # characters
MAX_TITLE = 80
MAX_SETS = 100  # of one key

_FILES = Path(__file__).parent / "questions"


@dataclass(frozen=True)
class QuestionSet:
    id: str
    key: str | None  # whose it is; None: bundled
    title: str
    questions: tuple[str, ...]


class QuestionSets:
    """Bundled sets and those in the database. Users see their own, admins all. Methods block."""

    def __init__(self, database: Database):
        self.database = database

    def all(self, key: str, *, admin: bool) -> list[QuestionSet]:
        """Bundled ones first, then the oldest."""
        table = question_sets.c
        statement = select(table.id, table.key, table.title, table.questions).order_by(table.created_at, table.id)
        if not admin:
            statement = statement.where(table.key == key)
        with self.database.reading() as connection:
            rows = connection.execute(statement).all()
        return [*_bundled(), *(QuestionSet(*row[:3], tuple(json.loads(row[3]))) for row in rows)]

    def get(self, key: str, set_id: str, *, admin: bool) -> QuestionSet:
        for found in self.all(key, admin=admin):
            if found.id == set_id:
                return found
        raise NotFound("there is no such question set; choose another", param="question_set")

    def add(self, key: str, title: str, text: str) -> QuestionSet:
        """Keep the questions of `text`, one a line; empty lines and repetitions are left out."""
        questions = questions_of(text)
        title = " ".join(title.split())
        if not 0 < len(title) <= MAX_TITLE:
            raise Invalid(f"a question set needs a title of 1 to {MAX_TITLE} characters", param="title")
        made = QuestionSet(f"qs-{uuid.uuid4().hex}", key, title, questions)
        row = {
            "id": made.id,
            "key": key,
            "title": title,
            "questions": json.dumps(questions, ensure_ascii=False),
            "created_at": int(time.time()),
        }
        table = question_sets.c
        with self.database.writing() as connection:
            titles = set(connection.execute(select(table.title).where(table.key == key)).scalars())
            if title in titles or title in BUNDLED_TITLES.values():
                raise Conflict(f"there is a question set '{title}' already; choose another title", param="title")
            if len(titles) >= MAX_SETS:  # titles differ
                raise Conflict(f"a key may have {MAX_SETS} question sets; delete one first", param="title")
            connection.execute(insert(question_sets).values(row))
        return made

    def delete(self, key: str, set_id: str, *, admin: bool) -> None:
        """Votes on its questions stay, and count among all votes."""
        found = self.get(key, set_id, admin=admin)
        if found.key is None:
            raise Forbidden("bundled question sets stay; add one of your own instead", code="bundled")
        with self.database.writing() as connection:
            connection.execute(delete(question_sets).where(question_sets.c.id == set_id))


def questions_of(text: str) -> tuple[str, ...]:
    """One question a line. Invalid when there is none, too many, or one is too long."""
    lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
    questions = tuple(dict.fromkeys(line for line in lines if line))
    if not 0 < len(questions) <= MAX_QUESTIONS:
        raise Invalid(
            f"a question set has 1 to {MAX_QUESTIONS} questions, one a line; this has {len(questions)}",
            param="questions",
        )
    for number, question in enumerate(questions, 1):
        if len(question) > MAX_QUESTION:
            raise Invalid(
                f"question {number} has {len(question)} characters; at most {MAX_QUESTION} are allowed",
                param="questions",
            )
    return questions


@cache
def _bundled() -> tuple[QuestionSet, ...]:
    return tuple(
        QuestionSet(name, None, title, questions_of((_FILES / f"{name}.txt").read_text(encoding="utf-8")))
        for name, title in BUNDLED_TITLES.items()
    )
