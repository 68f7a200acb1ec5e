"""What both dialects say with paths and ids: a base, and the name of what is trained."""

import os
import re
from pathlib import Path, PurePath

from adapters.hub import parse_reference

_NOT_NAMES = {"saves", "output", "outputs", "out", "result", "results", "checkpoints", "runs"}
_VERSIONED = re.compile(r"v\d+-\d{8}-\d{6}|checkpoint-\d+")  # directories ms-swift makes below the one it was given


def base_of(name: str, revision: str | None, hub: str) -> str:
    """A directory as it is, an id with its hub and revision."""
    reference = parse_reference(name)
    if reference is None or Path(name).expanduser().is_dir():
        return name
    prefix = "modelscope:" if hub == "modelscope" and ":" not in name else ""
    pinned = f"@{revision}" if revision and not reference.revision and revision not in ("main", "master") else ""
    return f"{prefix}{name}{pinned}"


def enabled(variable: str) -> bool:
    """Whether an environment variable is set to something that means yes."""
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "y", "yes", "on")


def default_name(base: str, method: str) -> str:
    """ms-swift's directory is called by its model where nothing is said: `Qwen3-0.6B-lora`."""
    reference = parse_reference(base)
    return _sanitized(f"{reference.id.split('/')[1] if reference else Path(base).name}-{method}") or method


def adapter_name(output_dir: str) -> str | None:
    """`saves/qwen3-4b/lora/sft` → `qwen3-4b-lora-sft`; None when the path says nothing."""
    parts = [part for part in PurePath(output_dir).parts if part not in ("/", ".", "..")]
    marks = [index for index, part in enumerate(parts) if part.lower() in _NOT_NAMES]
    if marks:
        parts = parts[marks[-1] + 1 :]
    elif PurePath(output_dir).is_absolute():
        parts = parts[-1:]
    return _sanitized("-".join(part for part in parts if not _VERSIONED.fullmatch(part)))


def _sanitized(name: str) -> str | None:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return name[:64].rstrip("-._") or None
