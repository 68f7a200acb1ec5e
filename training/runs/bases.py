"""Bases of our own: what method full makes. `<home>/bases/NAME/` is a model directory as transformers reads it, with
the manifest that says what it was trained from; `bianlian serve --base` takes its path. There are no versions: a base
is loaded whole, and another one is another name."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from adapters.errors import Conflict
from adapters.settings import BUNDLED
from adapters.store import AdapterStore
from training.config import TrainConfig


def bases(root: Path) -> Path:
    return root / "bases"


def check_free(root: Path, config: TrainConfig) -> None:
    """Raises Conflict when what `config` makes may not have its name: a base and an adapter of one name would be one
    model id."""
    if config.method == "full":
        check_base_name(root, config.name)
    elif (bases(root) / config.name).exists():
        raise Conflict(
            f"there is a base at {bases(root) / config.name}, and an adapter is served beside it; choose another name, "
            "or delete the base",
            param="name",
        )


def check_base_name(root: Path, name: str) -> None:
    """Raises Conflict when a base or an adapter has the name: a model id would mean both."""
    if (bases(root) / name).exists():
        raise Conflict(f"there is a base at {bases(root) / name}; choose another name, or delete it", param="name")
    if (BUNDLED / name).exists():
        raise Conflict(f"'{name}' is the name of a bundled base; choose another name", param="name")
    store = AdapterStore(root / "store")
    if store.is_alias(name) or name in store.names():
        kind = "alias" if store.is_alias(name) else "adapter"
        raise Conflict(
            f"there is an {kind} called '{name}', and a base is served beside it; choose another name", param="name"
        )


def publish_base(root: Path, name: str, write: Callable[[Path], None]) -> Path:
    """`write` fills a directory, which then appears whole or not at all. Raises Conflict when the name was taken
    meanwhile."""
    bases(root).mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=bases(root)))
    target = bases(root) / name
    try:
        write(incoming)
        incoming.chmod(0o755)  # mkdtemp makes it private; a server under another user reads it
        try:
            os.rename(incoming, target)
        except OSError:
            check_base_name(root, name)
            raise
    finally:
        shutil.rmtree(incoming, ignore_errors=True)  # renamed away unless something failed
    return target
