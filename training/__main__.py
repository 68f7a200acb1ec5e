"""`python -m training [NAME ...]` (or `make persona`): train the shipped personas again, from their shipped data, and
put them where the package ships them from."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adapters.manifest import read_manifest
from adapters.portrait import PORTRAITS, place_portrait
from adapters.samples import PERSONAS
from adapters.store import AdapterStore
from training.cli import train_with_progress
from training.samples import sample_config, sample_names


def main(names: Sequence[str]) -> None:
    for name in names or sample_names():
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            train_with_progress(sample_config(name), root)
            shutil.rmtree(PERSONAS / name, ignore_errors=True)
            AdapterStore(root / "store").export(name, PERSONAS / name)
            add_portrait(PERSONAS / name, PORTRAITS / f"{name}.svg")
        print(f"{name} → {PERSONAS / name}")


def add_portrait(directory: Path, portrait: Path) -> None:
    """Put the picture beside the adapter in `directory` and on its card."""
    manifest = read_manifest(directory)
    assert manifest is not None  # a run has written it
    manifest.card.portrait = place_portrait(portrait, directory)
    manifest.write(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
