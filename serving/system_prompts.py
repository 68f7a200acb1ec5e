"""System prompts that people save under a name, each for their own key."""

from sqlalchemy import delete, select

from adapters.errors import Invalid
from serving.conversation import Reader
from serving.database.database import Database
from serving.database.tables import system_prompts
from serving.history import storable

MAX_NAME = 40  # characters


class SystemPrompts:
    """System prompts in the database. Its methods block."""

    def __init__(self, database: Database):
        self.database = database

    def all(self, reader: Reader) -> dict[str, str]:
        """The reader's saved system prompts, by name."""
        mine = select(system_prompts).where(system_prompts.c.key == reader.key).order_by(system_prompts.c.name)
        with self.database.reading() as connection:
            return {row.name: row.text for row in connection.execute(mine)}

    def save(self, reader: Reader, name: str, text: str) -> str:
        """Keep a system prompt, in place of one of the same name. Returns the name as it is kept."""
        name = " ".join(storable(name).split())
        if not name or len(name) > MAX_NAME:
            raise Invalid(f"a prompt's name has 1 to {MAX_NAME} characters, not {len(name)}", param="name")
        if not text.strip():
            raise Invalid("the system prompt is empty; write it first", param="text")
        row = {"key": reader.key, "name": name, "text": storable(text)}
        statement = self.database.insert(system_prompts).values(row)
        with self.database.writing() as connection:
            connection.execute(
                statement.on_conflict_do_update(index_elements=["key", "name"], set_={"text": row["text"]})
            )
        return name

    def delete(self, reader: Reader, name: str) -> None:
        mine = (system_prompts.c.key == reader.key) & (system_prompts.c.name == name)
        with self.database.writing() as connection:
            connection.execute(delete(system_prompts).where(mine))
