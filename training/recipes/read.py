"""A recipe file or foreign flags → Recipe. Whose recipe it is follows from its keys: LLaMA-Factory's, ms-swift's, or
our own fields of TrainConfig as TOML, YAML or JSON."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adapters.errors import Invalid, NotFound, nearest
from training.config import TrainConfig
from training.recipes import swift
from training.recipes.llama_factory import LLAMA_FACTORY
from training.recipes.recipe import Dialect, Recipe, translate, words

SUFFIXES = (".toml", ".yaml", ".yml", ".json")
FOREIGN = (swift.SWIFT, LLAMA_FACTORY)  # flags that fit both are ms-swift's: LLaMA-Factory's recipes are files
_NESTED = {"model_class", "peft_config", "dist_config", "init_config", "kernel_config", "sample_backend"}
_PATHS = ("data", "validation_data", "replay_data", "dataset_dir")
_LISTS = ("data", "validation_data", "replay_data", "dataset", "targets")


def foreign_names() -> set[str]:
    """Every key that another trainer's recipe may have."""
    return {name for dialect in FOREIGN for name in [*dialect.rules, *dialect.aliases]}


def read_recipe(path: Path | None, flags: Mapping[str, Any], ours: Mapping[str, str] | Iterable[str] = ()) -> Recipe:
    """The recipe in `path`, with foreign `flags` over it; `ours` are fields the command line sets itself, as in
    `translate`.

    Raises NotFound, or Invalid naming what is wrong: file and line, or key."""
    written = _read(path) if path else {}
    source = path.name if path else "command line"
    if not written and not flags:
        raise Invalid(f"{path} is empty; give keys such as `data` and `name`", param="config")
    if _NESTED & set(written):
        raise Invalid(
            f"{source} is laid out as LLaMA-Factory's v1 ({', '.join(sorted(_NESTED & set(written)))}); write the flat "
            "keys of its examples/train_lora instead",
            param="config",
        )
    dialect = _dialect(written, flags, source)
    if dialect is None:
        return _own(written, source, path, frozenset(ours))
    return translate(dialect, {**written, **flags}, source, ours)


def _dialect(written: Mapping[str, Any], flags: Mapping[str, Any], source: str) -> Dialect | None:
    """Whoever knows most of the keys; None: they are ours."""
    keys = [*written, *flags]
    known = [sum(dialect.knows(key) for key in keys) for dialect in FOREIGN]
    mine = sum(key in TrainConfig.model_fields for key in keys)
    if not flags and mine >= max(known):
        return None
    if not max(known):
        raise Invalid(f"{source}: nobody's flag '{keys[0]}'{nearest(keys[0], foreign_names())}", param=keys[0])
    # A file that fits both is LLaMA-Factory's, flags that do are ms-swift's.
    order = FOREIGN if not written else FOREIGN[::-1]
    best = max(order, key=lambda dialect: sum(dialect.knows(key) for key in keys))
    return best if best is LLAMA_FACTORY else swift.dialect_of(set(keys))


def _own(written: Mapping[str, Any], source: str, path: Path | None, ours: frozenset[str]) -> Recipe:
    unknown = [key for key in written if key not in TrainConfig.model_fields]
    if unknown:
        names = [*TrainConfig.model_fields, *foreign_names()]
        raise Invalid(f"{source}: unknown key '{unknown[0]}'{nearest(unknown[0], names)}", param=unknown[0])
    values = {key: value for key, value in written.items() if key not in ours and value is not None}
    for name in _LISTS:
        if isinstance(values.get(name), str):
            values[name] = list(words(values[name]))
    for name in _PATHS:
        if name in values and path:
            values[name] = _beside(values[name], path.parent)
    return Recipe("Bianlian", source, values, [], is_ours=True)


def _beside(value: Any, directory: Path) -> Any:
    """Relative paths that are not in the working directory, but in the recipe's, are meant there."""
    if isinstance(value, list):
        return [_beside(one, directory) for one in value]
    path = Path(str(value)).expanduser()
    return str(directory / path) if not path.exists() and (directory / path).exists() else value


def _read(path: Path) -> dict[str, Any]:
    if path.suffix.lower() not in SUFFIXES:
        raise Invalid(f"{path}: unknown suffix '{path.suffix}'; a recipe is {', '.join(SUFFIXES)}", param="config")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotFound(f"no recipe at {path}", param="config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read: {error}", param="config") from error
    try:
        values = _parse(content, path.suffix.lower())
    except RecursionError as error:
        raise Invalid(f"{path}: nested too deeply", param="config") from error
    except ValueError as error:
        raise Invalid(f"{path}: {' '.join(str(error).split())}", param="config") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise Invalid(f"{path} holds no keys with values; write lines such as `lora_rank: 8`", param="config")
    return values


def _parse(content: str, suffix: str) -> Any:
    if suffix == ".toml":
        return tomllib.loads(content)
    if suffix == ".json":
        return json.loads(content)
    import yaml

    try:
        return yaml.safe_load(content) or {}
    except (yaml.YAMLError, RecursionError, TypeError, AttributeError) as error:  # of !!tags that do not fit too
        raise ValueError(str(error)) from error
