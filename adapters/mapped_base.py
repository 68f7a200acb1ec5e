"""The base in exactly the form that is computed with, on disk once, so that its frozen weights can stay mapped from the
file: pages that every process shares, and that the system may drop and read again.

Files that hold that form already are used as they are. What has to be cast or quantised is written to a cache when it
is first needed. Its files are replaced whole and never cut short, which would kill whoever has them mapped; deleting
them is safe at any time. A few are kept; older ones go when another is written, unless a process uses them."""

import fcntl
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from adapters.settings import Quantization

log = logging.getLogger(__name__)

KEPT_FORMS = 4  # bases in the cache, each once for every type and quantisation
_ABANDONED_S = 24 * 3600
_held: list[int] = []  # locks on the forms that this process has mapped

_FORMAT = 1  # of the cache; a directory of another one is never looked at
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors spells them


def holds(directory: Path, dtype: torch.dtype) -> bool:
    """Whether all weights in the directory's safetensors are of this type, so that they need no casting."""
    from safetensors import safe_open

    found: set[str] = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (not a mapping)
    return found == {_NAMES[dtype]}


def cached_form(
    cache: Path, fingerprint: str, dtype: torch.dtype, quantize: Quantization, make: Callable[[], Any]
) -> Path | None:
    """A directory with the base in this form, for `from_pretrained`. If there is none yet, `make` loads it from its
    own files, and it is written. None, with a line in the log, when it cannot be."""
    target = cache / f"{fingerprint[:16]}-{quantize}-{_NAMES[dtype].lower()}-{_FORMAT}"
    if _use(target):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".writing-", dir=cache))
    except OSError as error:
        log.warning("the base cannot be kept in %s, so every training process holds its own: %s", cache, error)
        return None
    try:
        make().save_pretrained(partial)
        for path in partial.iterdir():
            _flush(path)
        partial.chmod(0o755)
        partial.rename(target)
        _use(target)
        _drop_unused(cache)
    except OSError as error:
        if not target.is_dir():  # else another process was first
            log.warning("the base cannot be kept in %s, so every training process holds its own: %s", cache, error)
            return None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _use(form: Path) -> bool:
    """Keep a form from being dropped as long as this process lives. False when there is none."""
    try:
        lock = os.open(form, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    with suppress(OSError):  # a disk without locks, of which nothing is dropped, or somebody else's
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(form)  # when it was last asked for
    if not form.is_dir():  # dropped a moment ago
        os.close(lock)
        return False
    _held.append(lock)  # never closed: the weights stay mapped until the process ends
    return True


def _drop_unused(cache: Path) -> None:
    """Delete the forms that nobody has asked for longest, but KEPT_FORMS, and what killed processes were writing."""
    forms = [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]
    forms.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    left = [path for path in cache.glob(".*") if path.stat().st_mtime < time.time() - _ABANDONED_S]
    for form in [*forms[KEPT_FORMS:], *left]:
        with suppress(OSError):  # in use, of which the lock tells, or nobody can tell
            lock = os.open(form, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                gone = form.rename(cache / f".dropped-{uuid.uuid4().hex}")
                shutil.rmtree(gone, ignore_errors=True)
            finally:
                os.close(lock)


def _flush(path: Path) -> None:
    """To the disk: pages that wait to be written count as somebody's own."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
