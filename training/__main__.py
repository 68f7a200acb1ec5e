"""`python -m training [NAME ...]` (or `make persona`): train the shipped personas again, from their shipped data, and
put them where the package ships them from."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
        print(f"{name} → {PERSONAS / name}")


if __name__ == "__main__":
    main(sys.argv[1:])
