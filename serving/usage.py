"""Who used which model how much, a day: counted in memory as answers end, written in the background, read back in
groups."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, func, select

from adapters.errors import BianlianError, Invalid
from serving.database.database import Database
from serving.database.tables import usage

DEFAULT_DAYS = 30
KEYLESS = "--no-key"  # as keys of the settings are called: no key in the database has such a name
FLUSH_S = 1.0  # what a killed process may forget of its usage

log = logging.getLogger(__name__)
Grouping = Literal["key", "model", "day"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)


@dataclass(frozen=True)
class Usage:
    """What one or more answers used. A prompt shared by n choices is one request; cached tokens are those of the prompt
    that were found in the prefix cache."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


COUNTED = [field.name for field in fields(Usage)]
_Sums = dict[tuple[date, str, str], Usage]  # by day, key's name, model


def groupings(text: str) -> list[Grouping]:
    """Names separated by commas, in the order of GROUPINGS; none for one sum of everything."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in GROUPINGS]:
        raise Invalid(
            f"group_by takes {', '.join(GROUPINGS)}, separated by commas, not '{unknown[0][:40]}'", param="group_by"
        )
    return [name for name in GROUPINGS if name in names]


def period(start: date | None, end: date | None) -> tuple[date, date]:
    """First and last day, UTC; by default the last 30."""
    end = end or datetime.now(UTC).date()
    start = start or date.fromordinal(max(1, end.toordinal() - DEFAULT_DAYS + 1))
    if start > end:
        raise Invalid(f"from ({start}) is after to ({end})", param="from")
    return start, end


class UsageLedger:
    """What has not been written yet. One entry a day, key and model, however many answers. Any thread; no SQL."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: _Sums = {}

    def add(self, key: str, model: str, used: Usage) -> None:
        self.put_back({(datetime.now(UTC).date(), key, model): used})

    def take_all(self) -> _Sums:
        with self._lock:
            sums, self._sums = self._sums, {}
        return sums

    def put_back(self, sums: _Sums) -> None:
        with self._lock:
            for entry, used in sums.items():
                self._sums[entry] = self._sums.get(entry, Usage()) + used


class UsageBook:
    """The ledger's way to the database, and what is written there."""

    def __init__(self, database: Database, ledger: UsageLedger):
        self.database = database
        self.ledger = ledger
        self._flushing = threading.Lock()

    async def keep_writing(self) -> None:
        """Until cancelled. A database that is away is tried again; nothing is lost meanwhile."""
        failing = False
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.database.call(self.flush)
            except Exception as error:
                if not failing:  # once, not every second
                    ours = isinstance(error, BianlianError)
                    log.error("usage cannot be written, and is kept until it can: %s", error, exc_info=not ours)
                failing = True
            else:
                failing = False

    def flush(self) -> None:
        """Write what has been counted. Blocks. Unavailable when that fails; then it is kept for the next time."""
        with self._flushing:  # whoever has waited here finds everything written, not on its way
            sums = self.ledger.take_all()
            if not sums:
                return
            try:
                with self.database.writing() as connection:
                    self._write(connection, sums)
            except BaseException:
                self.ledger.put_back(sums)
                raise

    def _write(self, connection: Connection, sums: _Sums) -> None:
        statement = self.database.insert(usage)
        more = {name: usage.c[name] + statement.excluded[name] for name in COUNTED}
        statement = statement.on_conflict_do_update(index_elements=["day", "key", "model"], set_=more)
        # In one order everywhere, so that two processes that write the same rows do not wait for each other in a ring.
        entries = sorted(sums.items(), key=lambda entry: entry[0])
        rows = [{"day": day, "key": key, "model": model} | asdict(used) for (day, key, model), used in entries]
        connection.execute(statement, rows)

    def report(
        self, start: date, end: date, group_by: Sequence[Grouping] = GROUPINGS, key: str | None = None
    ) -> list[dict[str, Any]]:
        """Sums from `start` to `end`, both included, one row a group, in the order of `group_by`; of one key or of all.
        What has been counted so far is in them; what was asked without a key is under KEYLESS. Blocks."""
        self.flush()
        columns = [usage.c[name] for name in group_by]
        sums = [func.coalesce(func.sum(usage.c[name]), 0).label(name) for name in COUNTED]
        statement = select(*columns, *sums).where(usage.c.day.between(start, end))
        if key is not None:
            statement = statement.where(usage.c.key == key)
        if columns:
            statement = statement.group_by(*columns).order_by(*columns)
        with self.database.reading() as connection:
            rows = connection.execute(statement).mappings().all()
        return [
            {name: row[name] or KEYLESS for name in group_by}  # days and models are never empty
            | {name: int(row[name]) for name in COUNTED}
            for row in rows
        ]
