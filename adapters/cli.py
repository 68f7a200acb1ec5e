"""`bianlian adapters ...`: the store from the command line."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from adapters.store import AdapterStore

Reference = Annotated[str, typer.Argument(help="NAME, NAME@3, NAME@latest or NAME@DIGEST.")]


def register(cli: typer.Typer) -> None:
    """Add the `adapters` command group."""
    group = typer.Typer(no_args_is_help=True, help="Versions of adapters in the store.")
    for command in (list_, show, import_, export, rollback, remove, verify):
        group.command(name=command.__name__.rstrip("_"))(command)
    cli.add_typer(group, name="adapters")


def list_() -> None:
    """All adapters: current version, base, size; and the aliases."""
    from rich.console import Console
    from rich.table import Table

    from adapters.aliases import AliasStore

    store = _store()
    table = Table("name", "version", "digest", "base", "size", "created", box=None, header_style="bold")
    for name in store.names():
        version = store.current(name)
        manifest = version.manifest
        size = sum(file.stat().st_size for file in version.directory.iterdir())
        table.add_row(
            name,
            f"@{version.number} of {', '.join(f'@{n}' for n in store.numbers(name)[-5:])}",
            version.digest[:12],
            manifest.base_name if manifest else "?",
            f"{size / 2**20:.1f} MiB",
            _when(manifest.created) if manifest else "?",
        )
    Console().print(table if table.row_count else "no adapters yet; `bianlian train` makes one")
    for alias in AliasStore(store).all():
        targets = ", ".join(f"{target.model} ({target.weight:g})" for target in alias.targets)
        typer.echo(f"{alias.name} → {targets}")


def show(reference: Reference) -> None:
    """One version's manifest, and where it is; for NAME all its versions too."""
    store = _store()
    version = store.resolve(reference)
    if "@" not in reference:
        numbers = store.numbers(version.name)
        typer.echo("versions " + ", ".join(f"@{number}{'*' * (number == version.number)}" for number in numbers))
    typer.echo(f"{version}  sha256 {version.digest}\n{version.directory}")
    if version.notes:
        typer.echo(f"notes: {version.notes}")
    typer.echo(version.manifest.model_dump_json(indent=2) if version.manifest else "plain PEFT files, no manifest")


def import_(
    path: Annotated[Path, typer.Argument(help="A PEFT adapter directory, or a zip or tar archive of one.")],
    name: Annotated[str, typer.Option(help="Name to publish it under.")],
    notes: Annotated[str, typer.Option(help="What to say of this version.")] = "",
) -> None:
    """Publish an adapter as the next version of NAME."""
    from tempfile import TemporaryDirectory

    from adapters.archive import unpack_adapter
    from adapters.settings import load_settings

    store = _store(writable=True)
    before = store.numbers(name)
    with TemporaryDirectory() as workspace:
        if path.is_file():
            left_out = unpack_adapter(path, Path(workspace), limit=load_settings().max_upload_bytes).left_out
            if left_out:
                typer.echo(f"left out: {', '.join(left_out)}")
        version = store.publish(Path(workspace) if path.is_file() else path, name, notes=notes)
    same = version.number in before
    typer.echo(f"{version} has the same digest; no new version was made" if same else f"published {version}")


def export(
    reference: Reference, target: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")]
) -> None:
    """Copy a version out; plain PEFT loads the result."""
    typer.echo(f"{_store().export(reference, target)} → {target}")


def rollback(
    name: str,
    to: Annotated[int | None, typer.Option(help="Version number; default: the one before the current.")] = None,
) -> None:
    """Make an earlier version current again. A running server notices at once."""
    typer.echo(f"{name} is now {_store(writable=True).rollback(name, to)}")


def remove(reference: Reference, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete one version (NAME@n) or a whole adapter (NAME)."""
    if not yes:
        typer.confirm(f"delete {reference}?", abort=True)
    from adapters.aliases import AliasStore

    store = _store(writable=True)
    name, _, which = reference.partition("@")
    AliasStore(store).require_unused(lambda model: model == reference or (not which and model.startswith(f"{name}@")))
    typer.echo("deleted " + ", ".join(map(str, store.remove(reference))))


def verify(reference: Reference) -> None:
    """Check that the files are the ones that were published."""
    store = _store()
    version = store.resolve(reference)
    store.verify(version)
    typer.echo(f"{version} is intact ({version.digest[:12]})")


def _store(*, writable: bool = False) -> "AdapterStore":
    from adapters.settings import load_settings  # here, because --help must not pay for them
    from adapters.store import AdapterStore

    settings = load_settings()
    settings.require_home(writable=writable)
    return AdapterStore(settings.store)


def _when(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
