"""`bianlian bench` and `bianlian keys`."""

import typer

from serving.cli.bench import bench
from serving.cli.keys import keys_group


def register(cli: typer.Typer) -> None:
    """Add the commands to the command line."""
    cli.command("bench")(bench)
    cli.add_typer(keys_group(), name="keys")
