"""The names under which a run's files were uploaded: what is said about them names those, and no path of the server."""

import json
from collections.abc import Mapping
from pathlib import Path

NAMES_FILE = "uploads.json"


def keep_names(directory: Path, names: Mapping[str, str]) -> None:
    """Note what the files of a run directory were called, by what they are called there."""
    (directory / NAMES_FILE).write_text(json.dumps(names, ensure_ascii=False) + "\n", encoding="utf-8")


def as_uploaded(directory: Path, text: str) -> str:
    """`text` with the uploaded names in place of the paths of the run's files. As it is for a run without uploads."""
    try:
        names = json.loads((directory / NAMES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it has none, or they were damaged since: paths say which file, too
        return text
    for file, name in names.items() if isinstance(names, dict) else ():
        for path in (directory / file, (directory / file).resolve()):
            text = text.replace(str(path), str(name))
    return text
