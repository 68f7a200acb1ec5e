"""Who serves from a home, and how many answers are awaited there at this moment: what a training process needs to know
to step back in time.

Every server has a file of eight bytes under `<home>/servers/`. It keeps it locked, and the kernel takes the lock back
however the server ends; into its bytes, which it has mapped, it writes a number whenever that changes. Nobody asks
anybody anything, and neither side ever waits for the other."""

import fcntl
import mmap
import os
import struct
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_COUNT = struct.Struct("<q")


@dataclass(frozen=True)
class Awaited:
    """Servers of other processes that are alive, and the answers awaited from all of them."""

    servers: int
    answers: int


class ServerPresence:
    """One server's file. OSError when the home cannot be written to, or its disk has no locks."""

    def __init__(self, home: Path):
        directory = _directory(home)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / f"{os.getpid()}-{uuid.uuid4().hex}"
        partial = directory / f".{self._path.name}"
        self._file = partial.open("xb+")
        try:
            self._file.write(_COUNT.pack(0))
            self._file.flush()
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before anybody can see it without
            self._map = mmap.mmap(self._file.fileno(), _COUNT.size)
            partial.rename(self._path)
        except BaseException:
            partial.unlink(missing_ok=True)
            self._file.close()
            raise

    def note(self, answers: int) -> None:
        """`answers` are awaited from now on. Costs a store to memory; any thread, until `close`."""
        _COUNT.pack_into(self._map, 0, answers)

    def close(self) -> None:
        if not self._map.closed:
            self._path.unlink(missing_ok=True)
            self._map.close()
            self._file.close()


def awaited(home: Path) -> Awaited:
    """What other processes serve from `home` now. Does not block; removes what killed servers left."""
    servers = answers = 0
    own = f"{os.getpid()}-"
    try:
        names = os.listdir(_directory(home))
    except FileNotFoundError:
        return Awaited(0, 0)
    for name in names:
        if name.startswith((".", own)):
            continue
        path = _directory(home) / name
        with suppress(OSError), path.open("rb") as file:  # one that ends at this moment, or another user's
            if _is_free(file.fileno()):
                path.unlink()
                continue
            servers += 1
            answers += _COUNT.unpack(file.read(_COUNT.size))[0]
    return Awaited(servers, answers)


def _is_free(descriptor: int) -> bool:
    """Whether nobody holds the file's lock, which is then ours until it is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _directory(home: Path) -> Path:
    return home / "servers"
