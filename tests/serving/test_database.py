"""The database outlives what happens to it: old versions, newer ones, several processes at once, a killed one."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from adapters.errors import InsufficientStorage, Invalid, Unavailable
from serving.database.database import MIGRATIONS, Database
from serving.database.tables import api_keys, metadata, usage, votes
from serving.keys import KeyStore
from serving.usage import Usage, UsageBook, UsageLedger

ROOT = Path(__file__).parents[2]
ALWAYS = (date(2000, 1, 1), date(2100, 1, 1))


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def used(database: Database) -> int:
    """Requests that the database knows of."""
    return int(UsageBook(database, UsageLedger()).report(*ALWAYS, [])[0]["requests"])


def test_migrations_lead_to_the_tables_the_program_uses(database_url: str) -> None:
    with opened(database_url) as database, database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_an_old_database_is_migrated_and_keeps_its_rows(database_url: str) -> None:
    with opened(database_url) as empty:
        engine = sa.create_engine(empty.url)
    with engine.begin() as connection:  # as the first version left it
        metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE alembic_version"))
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        row = {"name": "old", "prefix": "bl-0", "sha256": "0" * 64, "admin": False, "created_at": 1}
        connection.execute(sa.insert(sa.table("api_keys", *map(sa.column, row))).values(row))
        assert not sa.inspect(connection).has_table("votes")
    engine.dispose()
    with opened(database_url) as database:
        assert [key.name for key in KeyStore(database).all()] == ["old"]
        with database.reading() as connection:
            assert connection.execute(sa.select(votes)).all() == []


def test_a_database_that_a_newer_program_changed_is_refused_and_left_alone(database_url: str) -> None:
    with opened(database_url) as database:
        KeyStore(database).create("mine")
        with database.writing() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Invalid, match="version 9999.*another --database"):
        Database(database_url)
    engine = sa.create_engine(database.url)
    with engine.connect() as connection:
        assert connection.execute(sa.select(api_keys.c.name)).scalars().all() == ["mine"]
    engine.dispose()


def test_programs_that_start_at_once_migrate_once(database_url: str) -> None:
    start = threading.Barrier(4)

    def begin(number: int) -> None:
        start.wait()
        with opened(database_url) as database:
            KeyStore(database).create(f"key {number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(begin, range(4)))
    with opened(database_url) as database:
        assert {key.name for key in KeyStore(database).all()} == {f"key {number}" for number in range(4)}


def test_writers_at_once_lose_nothing(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]  # each with connections of its own, as processes have

    def write(database: Database) -> None:
        book = UsageBook(database, UsageLedger())
        for turn in range(25):
            for model in ("a", "b") if turn % 2 else ("b", "a"):
                book.ledger.add("key", model, Usage(1, 10, 2, 5))
            book.flush()

    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(write, databases))
        rows = UsageBook(databases[0], UsageLedger()).report(*ALWAYS, ["key"])
    finally:
        for database in databases:
            database.close()
    assert rows == [
        {"key": "key", "requests": 200, "prompt_tokens": 2000, "cached_tokens": 400, "completion_tokens": 1000}
    ]


WRITES_UNTIL_KILLED = """
import sys
from serving.database.database import Database
from serving.usage import Usage, UsageBook, UsageLedger

book = UsageBook(Database(sys.argv[1]), UsageLedger())
while True:
    book.ledger.add("key", "model", Usage(1))
    book.flush()
    print("written", flush=True)
"""


def test_what_a_killed_process_had_written_is_there(database_url: str) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES_UNTIL_KILLED, database_url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert writer.stdout
    for _ in range(20):
        assert writer.stdout.readline() == "written\n"
    os.kill(writer.pid, signal.SIGKILL)
    said = 20 + len(writer.stdout.readlines())
    writer.wait()
    with opened(database_url) as database:
        assert said <= used(database) <= said + 1  # one may have been written and not said any more
        if database.url.get_backend_name() == "sqlite":
            with database.reading() as connection:
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_a_writer_that_waits_holds_up_neither_readers_nor_the_event_loop(database_url: str) -> None:
    with opened(database_url) as database, opened(database_url) as other:

        def write() -> None:
            with database.writing() as connection:
                connection.execute(sa.update(usage).values(requests=2))

        async def run() -> int:
            with other.writing() as connection:
                connection.execute(sa.update(usage).values(requests=3))  # holds the row
                waiting = asyncio.create_task(database.call(write))
                read = await database.call(used, database)
                assert not waiting.done()
            await waiting
            return read + await database.call(used, database)

        book = UsageBook(database, UsageLedger())
        book.ledger.add("key", "model", Usage(1))
        book.flush()
        assert asyncio.run(run()) == 1 + 2


def test_usage_waits_for_a_database_that_is_away(database_url: str) -> None:
    with opened(database_url) as database:
        book = UsageBook(database, UsageLedger())
        book.ledger.add("key", "model", Usage(1))
        with database.writing() as connection:
            connection.execute(sa.text("ALTER TABLE usage RENAME TO elsewhere"))
        with pytest.raises(Unavailable):
            book.flush()
        book.ledger.add("key", "model", Usage(1))
        with database.writing() as connection:
            connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO usage"))
        book.flush()
        assert used(database) == 2


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("not a url", Invalid, "not a URL"),
        ("mysql://x/y", Invalid, "'mysql' is not supported"),
        ("sqlite://", Invalid, "in memory"),
        ("postgresql://someone:secret@/x?host=/nowhere", Unavailable, "cannot be used"),
        ("sqlite:////proc/nowhere/x.db", Unavailable, "cannot be made"),
    ],
)
def test_a_database_that_cannot_be_used_says_why_and_gives_no_password_away(
    url: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        Database(url)
    assert "secret" not in str(raised.value)


def test_a_database_whose_disk_is_full_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/bianlian.db") as database:
        kept, _ = KeyStore(database).create("kept")
        with pytest.raises(InsufficientStorage, match="no room left"), database.writing() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")  # it has more already: not a page can be added
            connection.exec_driver_sql("CREATE TABLE large AS SELECT zeroblob(1000000) AS bytes")
        assert [key.name for key in KeyStore(database).all()] == [kept.name]
