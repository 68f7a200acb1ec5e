"""Conversations as they are kept, in the database.

Everybody sees their own, by the name of their API key; admins see all. Without keys everybody is the same person.
How an answer comes about is no matter here: see `conversations`."""

import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update

from adapters.errors import Invalid, NotFound
from serving.conversation import AnswerRecord, Conversation, Reader, StoredMessage, Summary
from serving.database.database import Database
from serving.database.tables import conversations, messages

MAX_TITLE = 120  # characters
MAX_LISTED = 100
_TITLE_FROM_QUESTION = 40
_ID = re.compile("chat-[0-9a-f]{32}")


class History:
    """Conversations in the database. Its methods block; they raise NotFound for what the reader may not see."""

    def __init__(self, database: Database):
        self.database = database

    def all(
        self, reader: Reader, *, search: str = "", everyone: bool = False, limit: int = MAX_LISTED
    ) -> list[Summary]:
        """The latest first. `search` is looked for in titles and messages; `everyone` takes an admin."""
        statement = select(conversations).order_by(conversations.c.updated_at_ms.desc()).limit(limit)
        if not (everyone and reader.admin):
            statement = statement.where(conversations.c.key == reader.key)
        if words := storable(search).strip():
            said = select(messages.c.id).where(
                messages.c.conversation_id == conversations.c.id, messages.c.content.icontains(words, autoescape=True)
            )
            statement = statement.where(or_(conversations.c.title.icontains(words, autoescape=True), said.exists()))
        with self.database.reading() as connection:
            return [
                Summary(row.id, row.key, row.title, row.model, row.updated_at_ms / 1000)
                for row in connection.execute(statement)
            ]

    def open(self, reader: Reader, conversation_id: str) -> Conversation:
        with self.database.reading() as connection:
            return self._open(connection, reader, conversation_id)

    def open_all(self, reader: Reader) -> Iterator[Conversation]:
        """Every conversation of the reader's own, the latest first."""
        for summary in self.all(reader, limit=2**31 - 1):
            yield self.open(reader, summary.id)

    def rename(self, reader: Reader, conversation_id: str, title: str) -> str:
        """Returns the title as it is kept."""
        title = " ".join(storable(title).split())
        if not title or len(title) > MAX_TITLE:
            raise Invalid(f"a title has 1 to {MAX_TITLE} characters, not {len(title)}", param="title")
        with self.database.writing() as connection:
            self._require(connection, reader, conversation_id)
            connection.execute(update(conversations).where(conversations.c.id == conversation_id).values(title=title))
        return title

    def delete(self, reader: Reader, conversation_id: str) -> None:
        with self.database.writing() as connection:
            self._require(connection, reader, conversation_id)
            connection.execute(delete(messages).where(messages.c.conversation_id == conversation_id))
            connection.execute(delete(conversations).where(conversations.c.id == conversation_id))

    def show(self, reader: Reader, conversation_id: str, message_id: int) -> Conversation:
        """Put the branch on screen that goes through a message."""
        with self.database.writing() as connection:
            conversation = self._open(connection, reader, conversation_id)
            if message_id not in {message.id for message in conversation.messages}:
                raise NotFound(f"this conversation has no message {message_id}", param="message_id")
            leaf = conversation.leaf_under(message_id)
            connection.execute(update(conversations).where(conversations.c.id == conversation_id).values(leaf_id=leaf))
            return self._open(connection, reader, conversation_id)

    def begin_answer(
        self,
        reader: Reader,
        conversation_id: str,
        parent_id: int | None,
        question: str | None,
        *,
        model: str,
        system: str | None,
        answer: AnswerRecord,
    ) -> int:
        """Keep a question, after the message `parent_id`, and the answer that begins to it. Without a question,
        `parent_id` is the one that is answered again. Starts the conversation if there is none of that id. Returns the
        answer's message id."""
        now = time.time()
        state = {"model": model, "system": system, "updated_at_ms": int(now * 1000)}
        row = {"conversation_id": conversation_id, "reasoning": "", "created_at": int(now)}
        with self.database.writing() as connection:
            first = parent_id is None and question is not None
            if first and self._owner(connection, conversation_id) is None:
                title = " ".join((question or "").split())[:_TITLE_FROM_QUESTION]
                new = {"id": conversation_id, "key": reader.key, "title": title, "created_at": int(now), **state}
                connection.execute(insert(conversations).values(new))
            else:
                self._require(connection, reader, conversation_id)
            if question is not None:
                asked = row | {"parent_id": parent_id, "role": "user", "content": question}
                parent_id = _added(connection, asked)
            told = row | {"parent_id": parent_id, "role": "assistant", "content": "", "answer": _as_json(answer)}
            leaf = _added(connection, told)
            connection.execute(
                update(conversations).where(conversations.c.id == conversation_id).values(leaf_id=leaf, **state)
            )
        return leaf

    def keep_answer(self, message_id: int, content: str, reasoning: str, answer: AnswerRecord) -> None:
        """Write how far an answer is. One whose conversation was deleted meanwhile is forgotten."""
        values = {"content": storable(content), "reasoning": storable(reasoning), "answer": _as_json(answer)}
        with self.database.writing() as connection:
            connection.execute(update(messages).where(messages.c.id == message_id).values(values))

    def _owner(self, connection: Connection, conversation_id: str) -> str | None:
        return connection.scalar(select(conversations.c.key).where(conversations.c.id == conversation_id))

    def _require(self, connection: Connection, reader: Reader, conversation_id: str) -> None:
        owner = self._owner(connection, conversation_id) if _ID.fullmatch(conversation_id) else None
        if owner is None or not (reader.admin or owner == reader.key):
            raise NotFound(
                "there is no such conversation; it was deleted, or belongs to another key",
                param="conversation_id",
                code="conversation_not_found",
            )

    def _open(self, connection: Connection, reader: Reader, conversation_id: str) -> Conversation:
        self._require(connection, reader, conversation_id)
        row = connection.execute(select(conversations).where(conversations.c.id == conversation_id)).one()
        rows = connection.execute(
            select(messages).where(messages.c.conversation_id == conversation_id).order_by(messages.c.id)
        ).all()
        return Conversation(
            row.id, row.key, row.title, row.model, row.system, row.leaf_id, row.created_at, tuple(map(_message, rows))
        )


def new_conversation_id() -> str:
    """Not to be guessed: it stands in addresses."""
    return f"chat-{uuid.uuid4().hex}"


def storable(text: str) -> str:
    """`text` without what a database cannot keep: NUL, and halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def _added(connection: Connection, row: dict[str, object]) -> int:
    return int(connection.execute(insert(messages).values(row).returning(messages.c.id)).scalar_one())


def _as_json(answer: AnswerRecord) -> str:
    return json.dumps(asdict(answer), ensure_ascii=False)


def _message(row: Any) -> StoredMessage:
    answer = AnswerRecord(**json.loads(row.answer)) if row.answer else None
    return StoredMessage(row.id, row.parent_id, row.role, row.content, row.reasoning, answer)
