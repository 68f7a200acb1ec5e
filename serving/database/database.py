"""Database: opened once, brought up to date, and used in short transactions on threads of its own."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError

from adapters.errors import InsufficientStorage, Invalid, Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 15  # how long a writer waits for those before it
THREADS = 4
_MIGRATION_LOCK = 0x6269616E6C69616E  # PostgreSQL's advisory lock while migrating; any number that is always the same

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """Connections are opened when they are first needed. Its methods block, except `call`."""

    def __init__(self, url: str):
        """Open `url` (SQLAlchemy's form) and run the migrations it lacks. Invalid for a URL that cannot be used or a
        database that a newer program has changed, Unavailable when it cannot be reached."""
        self.url = _checked(url)
        self._engine = _engine(self.url)
        # These threads wait for the disk and compute nothing in parallel, so they may stay (see own_thread).
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="database")
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    @property
    def place(self) -> str:
        """Where it is, without the password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._executor.shutdown()
        self._engine.dispose()

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a blocking `function` returns or raises, run on one of the database's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *args, **kwargs))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that writes nothing. Unavailable when the database cannot be reached."""
        with self._transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, committed at its end, rolled back on any error. It may wait for other writers.
        InsufficientStorage when its disk is full."""
        with self._transaction(self._engine.execution_options(immediate=True)) as connection:
            yield connection

    def insert(self, table: Any) -> Any:
        """INSERT with `on_conflict_do_update`, which both dialects have, each under its own name."""
        if self.url.get_backend_name() == "postgresql":
            from sqlalchemy.dialects.postgresql import insert as postgresql_insert

            return postgresql_insert(table)
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        return sqlite_insert(table)

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except (DataError, IntegrityError):  # the caller's affair, not the database's
            raise
        except DBAPIError as error:
            if _is_full(error):
                raise InsufficientStorage(
                    f"the database {self.place} has no room left; make some on its disk"
                ) from error
            raise Unavailable(f"the database {self.place} cannot be used: {_reason(error)}") from error

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        script = ScriptDirectory.from_config(config)
        known = {revision.revision for revision in script.walk_revisions()}
        with self.writing() as connection:  # one process migrates, the others wait and find it done
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            found = set(MigrationContext.configure(connection).get_current_heads())
            if unknown := found - known:
                raise Invalid(
                    f"the database {self.place} is at version {', '.join(sorted(unknown))}, this program knows "
                    f"{script.get_current_head()}; use the newer program that changed it, or another --database",
                    param="database",
                )
            if found != {script.get_current_head()}:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")


def _checked(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise Invalid(
            "database is not a URL; write sqlite:////path/to/file or postgresql://user:password@host/name",
            param="database",
        ) from error
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise Invalid(
            f"database '{url.get_backend_name()}' is not supported; use sqlite or postgresql", param="database"
        )
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise Invalid("a database in memory would forget every key; name a file", param="database")
    return url


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "postgresql":
            connect = {"connect_timeout": BUSY_TIMEOUT_S}
            return create_engine(url, pool_size=THREADS, pool_pre_ping=True, connect_args=connect)
        file = Path(str(url.database))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # who asked what how much is nobody else's on this machine; SQLite's other files follow
        engine = create_engine(url, pool_size=THREADS, connect_args={"timeout": BUSY_TIMEOUT_S})
    except (ImportError, NoSuchModuleError) as error:
        raise Invalid(
            f"the driver of {url.drivername} is missing; pip install 'bianlian[postgres]'", param="database"
        ) from error
    except OSError as error:
        raise Unavailable(f"the database {url.database} cannot be made: {error}") from error
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, and not before every statement
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers and a writer do not wait for each other
    cursor.execute("PRAGMA synchronous=NORMAL")  # in WAL mode a killed process loses nothing it has committed
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns writer in the middle is refused at once when somebody else has written; one that says so
    # first waits its turn.
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _is_full(error: DBAPIError) -> bool:
    sqlite, postgresql = (getattr(error.orig, name, "") for name in ("sqlite_errorname", "sqlstate"))
    return sqlite == "SQLITE_FULL" or postgresql == "53100"  # disk_full


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", error)).strip().splitlines()[0]
