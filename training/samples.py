"""The personas shipped with the bundled base: read their recipe, train them again.

`python -m training.samples [NAME ...]` (or `make persona`) replaces `adapters/bundled/personas/NAME`."""

import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from adapters.base_model import BUNDLED_BASE
from adapters.errors import NotFound, nearest
from adapters.manifest import AdapterVersion, PersonaCard
from adapters.samples import PERSONAS
from adapters.settings import BUNDLED
from adapters.store import AdapterStore
from training.config import TrainConfig

DATA = BUNDLED / "data"


def sample_config(name: str, base: str = BUNDLED_BASE) -> TrainConfig:
    """What a run needs to train the persona. NotFound for an unknown one."""
    recipes = tomllib.loads((DATA / "personas.toml").read_text(encoding="utf-8"))
    if name not in recipes:
        raise NotFound(f"there is no sample persona '{name}'{nearest(name, recipes)}")
    recipe = recipes[name]
    return TrainConfig(
        data=tuple(DATA / file for file, times in recipe["data"].items() for _ in range(times)),
        name=name,
        base=base,
        epochs=recipe["epochs"],
        lora_r=recipe["lora_r"],
        val_split=recipe["val_split"],
        card=PersonaCard(title=recipe["title"], greeting=recipe["greeting"], samples=recipe["samples"]),
    )


def sample_names() -> list[str]:
    return list(tomllib.loads((DATA / "personas.toml").read_text(encoding="utf-8")))


def ship(name: str) -> AdapterVersion:
    """Train a persona and put it where the package ships it from. Draws its progress on the terminal."""
    from training.cli import train_with_progress

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        train_with_progress(sample_config(name), root)
        shutil.rmtree(PERSONAS / name, ignore_errors=True)
        return AdapterStore(root / "store").export(name, PERSONAS / name)


def main(names: Sequence[str]) -> None:
    for name in names or sample_names():
        ship(name)
        print(f"{name} → {PERSONAS / name}")


if __name__ == "__main__":
    main(sys.argv[1:])
