"""Watching directories for adapters: a PEFT directory that appears, or changes, becomes the next version of its name.

Only looks, and says what is ready. What disappears stays published: its versions are copies in the store."""

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path

from adapters.errors import BianlianError
from adapters.manifest import ADAPTER_FILES, CONFIG_FILE, NAME_PATTERN, WEIGHTS_FILE, digest_of
from serving.lifecycle import AdapterLifecycle, require_under

WATCH_POLL_S = 1.0
HALF_S = 30.0  # with configuration but no weights, or the reverse, for so long: somebody may wait in vain
SETTLE_S = 2.0  # a directory that somebody writes to changes within this time, or its files are not whole yet

log = logging.getLogger(__name__)

_Stamp = tuple[tuple[str, int, int, int], ...]  # name, inode, time of change in ns, bytes: of each file


@dataclass
class _Seen:
    stamp: _Stamp
    since: float
    done: bool = False  # published or refused; not looked at again until it changes


@dataclass
class _Half:
    missing: str
    since: float
    said: bool = False


@dataclass
class DirectoryWatcher:
    """`poll` is called from time to time, with a clock's seconds."""

    roots: list[Path]
    _seen: dict[Path, _Seen] = field(default_factory=dict)
    _halves: dict[Path, _Half] = field(default_factory=dict)

    def poll(self, now: float) -> list[Path]:
        """PEFT directories right under the roots that are new or changed and have not moved for SETTLE_S; each is named
        once for each of its states. Reads the disk."""
        children = [path for root in self.roots for path in _children(root)]
        self._say_what_is_half(children, now)
        found = {path: stamp for path in children if (stamp := _stamp(path))}
        for path in self._seen.keys() - found.keys():
            log.info("%s is gone; its versions stay until they are removed", path)
            del self._seen[path]
        for path, stamp in found.items():
            seen = self._seen.get(path)
            if seen is None or seen.stamp != stamp:
                self._seen[path] = _Seen(stamp, since=now)
        ready = [path for path, seen in sorted(self._seen.items()) if not seen.done and now - seen.since >= SETTLE_S]
        for path in ready:
            self._seen[path].done = True
        return ready

    def _say_what_is_half(self, children: list[Path], now: float) -> None:
        """Once for each directory that stays half an adapter."""
        missing = {path: name for path in children if (name := _missing(path))}
        self._halves = {
            path: half if (half := self._halves.get(path)) and half.missing == name else _Half(name, now)
            for path, name in missing.items()
        }
        for path, half in self._halves.items():
            if not half.said and now - half.since >= HALF_S:
                log.warning("%s is not published: it has no %s; it will be once that is there", path, half.missing)
                half.said = True


async def publish_found(lifecycle: AdapterLifecycle, directory: Path, root: Path) -> None:
    """Publish a directory under its own name, unless a version of that name is the same: one that was rolled back is
    not to come back with every start. What is wrong with it is one line in the log."""
    name = directory.name
    try:
        require_under(directory, [root], param="watch")
        digest = await asyncio.to_thread(digest_of, directory)
        if any(version.digest == digest for version in lifecycle.registry.stored(name)):
            return
        published = await lifecycle.publish(directory, name, notes=f"found in {root.name}")
    except (BianlianError, OSError) as error:
        log.warning("%s is not published: %s", directory, error)
        return
    warning = f"; but it {published.effect.warning}" if published.effect and published.effect.warning else ""
    log.info("%s published as %s%s", directory, published.version, warning)


def _children(root: Path) -> list[Path]:
    try:
        return [path for path in root.expanduser().iterdir() if NAME_PATTERN.fullmatch(path.name)]
    except OSError:  # not there yet, or away for a moment
        return []


def _missing(directory: Path) -> str | None:
    """The one of configuration and weights that is not there; None for both and for none."""
    absent = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (directory / name).is_file()]
    return absent[0] if len(absent) == 1 else None


def _stamp(directory: Path) -> _Stamp | None:
    """None while configuration or weights are missing."""
    stamps = []
    for name in ADAPTER_FILES:
        try:
            found = (directory / name).stat()
        except OSError:
            if name in (CONFIG_FILE, WEIGHTS_FILE):
                return None
            continue
        stamps.append((name, found.st_ino, found.st_ctime_ns, found.st_size))
    return tuple(stamps)
