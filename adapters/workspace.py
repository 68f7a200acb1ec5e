"""Directories in the making: something is put together in one, and appears by rename or not at all.

A process that is killed leaves its directory behind. While a process lives, it holds a lock on it, so what was left is
known at once; but only on the same running system, which the directory's name tells, because not every file system
shows other machines the lock. What another machine left, or this one before it was started anew, goes after a day."""

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from adapters.errors import needing_room

PREFIX = ".incoming-"
_ABANDONED_S = 24 * 3600


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """A new directory in `root`, which is made if need be. Gone afterwards with what is still in it, whatever happened.
    InsufficientStorage when the disk has no room for what is written in it."""
    with needing_room():
        root.mkdir(parents=True, exist_ok=True)
        directory, lock = _locked_directory(root)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)  # not there, if it was renamed
            os.close(lock)


def replace_file(path: Path, text: str) -> None:
    """Write a small file. Readers see the old one or the new one; InsufficientStorage leaves the old one."""
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with needing_room():
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def sweep(root: Path) -> None:
    """Delete the workspaces that nobody uses any more."""
    for directory in root.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # its process has just finished
            if directory.name.startswith(f"{PREFIX}{_running_system()}-"):
                _delete_unless_held(directory)
            elif directory.stat().st_mtime < time.time() - _ABANDONED_S:
                shutil.rmtree(directory, ignore_errors=True)


def _locked_directory(root: Path) -> tuple[Path, int]:
    while True:
        directory = root / f"{PREFIX}{_running_system()}-{uuid.uuid4().hex}"
        directory.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # somebody swept it before it was locked
            lock = os.open(directory, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks: nobody can sweep it while the system runs
                fcntl.flock(lock, fcntl.LOCK_EX)
            if directory.exists():
                return directory, lock
            os.close(lock)


def _delete_unless_held(directory: Path) -> None:
    lock = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # it is held, or nobody can tell
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)  # under the lock, so that who has just made it finds it gone
    finally:
        os.close(lock)


@cache
def _running_system() -> str:
    """What changes with every start of the machine and is the same in all its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
    except OSError:
        return uuid.uuid4().hex  # no Linux: nothing but this process is known to see its locks
