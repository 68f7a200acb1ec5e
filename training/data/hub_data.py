"""Data sets of a hub by id: which of a repository's files are meant, and where they lie once downloaded.

`hf:owner/name` or `modelscope:owner/name`, `@revision` to pin one, and `:file` or `:split` where there are several."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from adapters.errors import Invalid, nearest
from adapters.hub import HubReference, download, list_files, parse_reference
from training.data.files import SUFFIXES

_PREFIXES = ("hf:", "modelscope:")
_NO_ROWS = {"dataset_info.json", "dataset_infos.json", "configuration.json", "config.json", "state.json"}


def local_files(texts: Sequence[str | Path]) -> list[Path]:
    """Every path as it is, every reference to a hub as the files it means, downloaded. Blocks.

    Raises Invalid when it is not clear which files are meant, and what `hub.download` raises."""
    return [
        path for text in map(str, texts) for path in (_downloaded(text) if text.startswith(_PREFIXES) else [Path(text)])
    ]


def _downloaded(text: str) -> list[Path]:
    hub, _, rest = text.partition(":")
    repository, _, part = rest.partition(":")
    reference = parse_reference(f"{hub}:{repository}")
    if reference is None:
        raise Invalid(f"'{text}' names no data set; write {hub}:owner/name, or {hub}:owner/name:FILE", param="data")
    if part.lower().removesuffix(".gz").endswith(SUFFIXES):
        files = [part]
    else:
        files = pick_files(reference, list_files(reference, "dataset"), part or None)
    directory = download(reference, "dataset", [glob.escape(file) for file in files])
    if missing := [file for file in files if not (directory / file).is_file()]:
        raise Invalid(_no_such(reference, missing[0], list_files(reference, "dataset")), param="data")
    return [directory / file for file in files]


def pick_files(reference: HubReference, files: Sequence[str], split: str | None) -> list[str]:
    """The files of `split`; without one the only file, or those of the split `train`."""
    data = [file for file in files if _is_data(file) and PurePosixPath(file).name not in _NO_ROWS]
    if not data:
        raise Invalid(f"{reference} has no file with rows ({', '.join(SUFFIXES)}); give another data set", param="data")
    if split is None and len(data) == 1:
        return data
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split or 'train')}(?![A-Za-z0-9])")
    picked = [file for file in data if word.search(file)]
    if not picked and split is not None:
        raise Invalid(_no_such(reference, split, data), param="data")
    if not picked or len({PurePosixPath(file).suffix for file in picked}) > 1:
        shown = ", ".join(data[:8]) + (f" and {len(data) - 8} more" if len(data) > 8 else "")
        raise Invalid(
            f"{reference} has several files: {shown}; say which, as {reference.hub}:{reference.id}:{data[0]}",
            param="data",
        )
    return picked


def _is_data(file: str) -> bool:
    name = file.lower().removesuffix(".gz")
    return name.endswith(SUFFIXES) and not name.endswith(".txt")  # licences and notes are .txt, too


def _no_such(reference: HubReference, wanted: str, files: Sequence[str]) -> str:
    return f"{reference} has no '{wanted}'{nearest(wanted, [file for file in files if _is_data(file)])}"
