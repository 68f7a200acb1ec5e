"""`bianlian keys ...`: API keys in the database, whether or not a server is running on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from serving.database.database import Database
    from serving.keys import ApiKey

Url = Annotated[str | None, typer.Option("--database", help="URL of the database; default: SQLite in BIANLIAN_HOME.")]
DAY = ["%Y-%m-%d"]
Name = Annotated[str, typer.Argument(help="Who or what the key is for.")]


def keys_group() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="API keys: who may use the server, and how much.")
    for command in (create, list_, revoke, usage):
        group.command(name=command.__name__.rstrip("_"))(command)
    return group


def create(
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="May also load adapters and see everybody's usage.")] = False,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute; default: no limit.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens a minute, prompts and answers; default: no limit.")] = None,
    expires: Annotated[float | None, typer.Option(help="Days until it expires; default: never.")] = None,
    database: Url = None,
) -> None:
    """Make a key and print it, this once. From then on the server wants one from everybody."""
    from serving.keys import KeyStore

    with _opened(database) as opened:
        key, text = KeyStore(opened).create(
            name, admin=admin, requests_per_minute=rpm, tokens_per_minute=tpm, expires_in_days=expires
        )
    typer.echo(f"the key of '{name}' ({_what(key)}), which is not shown again:", err=True)
    typer.echo(text)


def list_(database: Url = None) -> None:
    """All keys, with the beginning by which they can be told apart."""
    from rich.table import Table
    from rich.text import Text

    from serving.keys import KeyStore

    with _opened(database) as opened:
        keys = KeyStore(opened).all()
    table = Table("name", box=None)
    for title in ("key", "scope", "rpm", "tpm", "created", "state"):
        table.add_column(title, no_wrap=True)
    for key in keys:
        table.add_row(
            Text(key.name),  # as it is: square brackets would be markup
            key.prefix,
            "admin" if key.admin else "user",
            str(key.requests_per_minute or "—"),
            str(key.tokens_per_minute or "—"),
            _when(key.created_at),
            _state(key),
        )
    _print(table, "no keys yet; `bianlian keys create NAME` makes one")


def revoke(name: Name, database: Url = None) -> None:
    """End a key. A running server refuses it from the next request on."""
    from serving.keys import KeyStore

    with _opened(database) as opened:
        key = KeyStore(opened).revoke(name)
    typer.echo(f"revoked '{key.name}' ({key.prefix}-…)")


def usage(
    start: Annotated[
        datetime | None, typer.Option("--from", formats=DAY, help="First day, UTC; default: 29 days before the last.")
    ] = None,
    end: Annotated[datetime | None, typer.Option("--to", formats=DAY, help="Last day, UTC; default: today.")] = None,
    group_by: Annotated[str, typer.Option(help="Of key, model and day, separated by commas.")] = "key,model",
    database: Url = None,
) -> None:
    """Requests and tokens of every key, as the server has written them so far."""
    from rich.table import Table
    from rich.text import Text

    from serving.usage import COUNTED, UsageBook, UsageLedger, groupings, period

    groups = groupings(group_by)
    first, last = period(start and start.date(), end and end.date())
    with _opened(database) as opened:
        rows = UsageBook(opened, UsageLedger()).report(first, last, groups)
    table = Table(*groups, box=None)
    for name in COUNTED:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(Text(str(row[name])) for name in groups), *(f"{row[name]:,}" for name in COUNTED))
    _print(table, f"nothing was used from {first} to {last}")


@contextmanager
def _opened(url: str | None) -> "Iterator[Database]":
    from adapters.settings import load_settings
    from serving.database.database import Database

    database = Database(load_settings(database=url).database_url)
    try:
        yield database
    finally:
        database.close()


def _print(table: "Table", if_empty: str) -> None:
    from rich.console import Console

    Console().print(table if table.row_count else if_empty)


def _what(key: "ApiKey") -> str:
    """What a key may do, how much, and until when."""
    limits = [
        f"{limit:,} {unit} a minute"
        for limit, unit in ((key.requests_per_minute, "requests"), (key.tokens_per_minute, "tokens"))
        if limit is not None
    ]
    until = "never expires" if key.expires_at is None else f"expires {_when(key.expires_at)}"
    return "; ".join(["admin" if key.admin else "user", " and ".join(limits) or "no limits", until])


def _state(key: "ApiKey") -> str:
    if key.revoked_at is not None:
        return f"revoked {_when(key.revoked_at)}"
    if key.expires_at is None:
        return "in use"
    return f"{'expired' if key.expired else 'expires'} {_when(key.expires_at)}"


def _when(moment: int) -> str:
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d")
