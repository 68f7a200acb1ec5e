"""What a run learns from, before it is read: files, and data sets that a `dataset_info.json` names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapters.errors import Invalid
from adapters.settings import BUNDLED
from training.config import TrainConfig
from training.data.dataset_info import FILE_NAME, read_entry, read_names
from training.data.files import SUFFIXES
from training.data.formats import Format, RowMapping

_SHOWN = 12  # names of data sets in a message


@dataclass(frozen=True)
class Source:
    """One data set: the rows of its files, one after the other."""

    paths: tuple[Path, ...]
    format: Format | Literal["auto"] = "auto"
    mapping: RowMapping | None = None
    num_samples: int | None = None  # rows drawn from it, by the run's seed
    info: Path | None = None  # the list that names it


def absolute(config: TrainConfig) -> TrainConfig:
    """`config` as it means the same in any working directory. A name that follows `dataset_info.json:NAME` is one more
    of that list."""
    base = Path(config.base).expanduser()
    bundled = (BUNDLED / config.base / "config.json").is_file()
    return config.model_copy(
        update={
            "base": str(base.resolve()) if not bundled and (base / "config.json").is_file() else config.base,
            "data": tuple(_full(config.data)),
            "validation_data": tuple(_full(config.validation_data)),
            "replay_data": tuple(_full(config.replay_data)),
            "dataset_dir": config.dataset_dir.resolve() if config.dataset_dir else None,
        }
    )


def sources_of(config: TrainConfig) -> list[Source]:
    """Everything `config` trains on, in its order: `data`, then `dataset`. Raises NotFound or Invalid for a name that a
    list does not have, or has on a hub only."""
    if config.dataset and config.dataset_dir is None:
        raise Invalid(f"dataset needs dataset_dir, the directory with {FILE_NAME}", param="dataset_dir")
    sources = sources_at(config.data, config.format)
    if config.dataset_dir is not None:
        sources += [_listed(config.dataset_dir.resolve() / FILE_NAME, name) for name in config.dataset]
    if not sources:
        raise Invalid("no data: give files as data, or names as dataset", param="data")
    if config.data_weights and len(config.data_weights) != len(sources):
        raise Invalid(
            f"{len(config.data_weights)} data_weights for {len(sources)} data sets; one is needed for each",
            param="data_weights",
        )
    return sources


def sources_at(data: Sequence[Path], format: Format | Literal["auto"] = "auto") -> list[Source]:
    """The sources that `data` names: files, or `dataset_info.json:NAME`."""
    return [
        _listed(*listed) if (listed := _in_list(path)) else Source((_file(path),), format)
        for path in map(Path, _full(data))
    ]


def files_of(sources: Sequence[Source]) -> list[Path]:
    """Every file that decides what is learned, lists included."""
    files = [path for source in sources for path in source.paths]
    return files + list(dict.fromkeys(source.info for source in sources if source.info))


def _listed(info: Path, name: str) -> Source:
    entry, paths = read_entry(info, name)
    return Source(tuple(paths), entry.format, entry.mapping, entry.num_samples, info)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    info = path / FILE_NAME
    if info.is_file():
        names = sorted(read_names(info))
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        raise Invalid(
            f"{path} is a directory; name one of its data sets, as {info}:NAME, of {shown or 'which it lists none'}",
            param="data",
        )
    raise Invalid(f"{path} is a directory; give its files, separated by commas", param="data")


def _full(data: Sequence[Path]) -> list[Path]:
    full: list[Path] = []
    info: Path | None = None  # the list that was named last
    for path in data:
        listed = _in_list(path)
        if listed is None and info is not None and _is_name(path):
            listed = (info, str(path))
        info = listed[0] if listed else None
        full.append(Path(f"{listed[0].resolve()}:{listed[1]}") if listed else path.resolve())
    return full


def _in_list(path: Path) -> tuple[Path, str] | None:
    """(list, name) of `list.json:name`, None for the path of a file."""
    info, colon, name = str(path).rpartition(":")
    return (Path(info), name) if colon and name and info.endswith(".json") and not path.exists() else None


def _is_name(path: Path) -> bool:
    return path.name == str(path) and not path.exists() and path.suffix not in (*SUFFIXES, ".gz")
