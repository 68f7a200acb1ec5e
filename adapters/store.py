"""AdapterStore: versions on disk. `<root>/<name>/<number>/` holds PEFT files and the manifest, and
`<root>/<name>/current` the number that the bare name means. The disk is the only truth about names, so a
training process publishes to a running server by renaming a directory and replacing that one small file."""

import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from adapters.errors import BianlianError, Conflict, InsufficientStorage, Invalid, NotFound, nearest
from adapters.manifest import (
    ADAPTER_FILES,
    MANIFEST_FILE,
    MAX_NOTES,
    NOTES_FILE,
    AdapterVersion,
    check_name,
    digest_of,
    read_manifest,
    split_reference,
)
from adapters.peft_config import read_config
from adapters.portrait import check_portraits
from adapters.workspace import replace_file, sweep, workspace

CURRENT_FILE = "current"
_ALIAS_DIRECTORY = ".aliases"
_DIGEST_FILE = "digest"  # sha256 written at publishing: hashing a large adapter at every look-up would be slow


_NUMBER = re.compile(r"[0-9]{1,9}")
_FileStamp = tuple[int, int, int] | None  # inode, time of change in ns, size; None: no such file
_Stamp = tuple[_FileStamp, _FileStamp]  # of a version's digest and manifest


class AdapterStore:
    def __init__(self, root: Path):
        self.root = root
        self._parsed: dict[str, tuple[_Stamp, AdapterVersion]] = {}  # by directory

    def publish(
        self, source: Path, name: str, *, notes: str = "", check: Callable[[Path], object] | None = None
    ) -> AdapterVersion:
        """Copy the adapter in `source` in as the next version of `name` and make it current.

        Appears whole or not at all, also to other processes. Weights equal to the current version's make no
        new version; notes that come with them, here or in `source`, replace that version's. `check` gets the directory
        of the copy and raises to refuse it. Raises Invalid or NotFound when `source` is no adapter that can be served,
        Conflict when `name` is an alias, InsufficientStorage when the disk is full."""
        check_name(name)
        if self.is_alias(name):
            raise Conflict(f"'{name}' is an alias; delete the alias first or choose another name", param="name")
        if len(notes) > MAX_NOTES:
            raise Invalid(f"notes have {len(notes)} characters; the limit is {MAX_NOTES}", param="notes")
        read_config(source)
        with workspace(self.root) as incoming:
            try:
                number = self._bring_in(source, incoming, name, notes, check)
            except BianlianError as error:
                error.message = error.message.replace(str(incoming), str(source))
                raise
        current = self._current_number(name)
        if current is None or number > current:  # else a publisher beside this one was later
            try:
                self.set_current(name, number)
            except InsufficientStorage:
                self._delete(self.root / name / str(number))
                with suppress(OSError):  # it has other versions
                    (self.root / name).rmdir()
                raise
        return self.version(name, number)

    def sweep(self) -> None:
        """Delete what killed processes left half-way."""
        sweep(self.root)
        for left in self.root.glob(".removed-*"):
            shutil.rmtree(left, ignore_errors=True)

    @property
    def aliases(self) -> Path:
        """Where names that stand for others are kept (AliasStore)."""
        return self.root / _ALIAS_DIRECTORY

    def is_alias(self, name: str) -> bool:
        return (self.aliases / f"{name}.json").exists()

    def names(self) -> list[str]:
        return list(self.current_numbers())

    def current_numbers(self) -> dict[str, int]:
        """What every name means now, by name. Reads one small file a name."""
        if not self.root.is_dir():
            return {}
        found = {name: self._current_number(name) for name in sorted(os.listdir(self.root))}
        return {name: number for name, number in found.items() if number is not None}

    def numbers(self, name: str) -> list[int]:
        """Version numbers of `name`, ascending; empty when there is no such adapter."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(int(entry.name) for entry in (self.root / name).iterdir() if _NUMBER.fullmatch(entry.name))
        return []

    def version(self, name: str, number: int) -> AdapterVersion:
        # Called for every name when all are listed. Parsing a manifest takes longer than everything else, and making a
        # Path longer than what is left then; files with the same stamps are the same.
        place = f"{self.root}/{name}/{number}"
        try:
            stamp = _stamp(f"{place}/{_DIGEST_FILE}"), _stamp(f"{place}/{MANIFEST_FILE}")
            parsed = self._parsed.get(place)
            if parsed and parsed[0] == stamp and stamp[0]:
                return parsed[1]
            directory = Path(place)
            digest = (directory / _DIGEST_FILE).read_text(encoding="ascii")
        except OSError:
            self._parsed.pop(place, None)
            raise NotFound(
                f"adapter {name}@{number} does not exist{nearest(f'{name}@{number}', self._all_ids(name))}",
                param="model",
            ) from None
        version = AdapterVersion(name, number, digest, directory, read_manifest(directory))
        self._parsed[place] = stamp, version
        return version

    def current(self, name: str) -> AdapterVersion:
        number = self._current_number(name)
        if number is None:
            raise NotFound(f"adapter '{name}' does not exist{nearest(name, self.names())}", param="model")
        return self.version(name, number)

    def resolve(self, reference: str) -> AdapterVersion:
        """`name`, `name@3`, `name@latest` or `name@<digest prefix of at least 6>` → version, else NotFound."""
        name, which = split_reference(reference)
        if which is None:
            return self.current(name)
        numbers = self.numbers(name)
        if not numbers:
            return self.current(name)  # raises, with a hint
        if which == "latest":
            return self.version(name, numbers[-1])
        if _NUMBER.fullmatch(which) and int(which) in numbers:
            return self.version(name, int(which))
        for number in reversed(numbers):
            version = self.version(name, number)
            if len(which) >= 6 and version.digest.startswith(which.lower()):
                return version
        raise NotFound(f"adapter {reference} does not exist{nearest(reference, self._all_ids(name))}", param="model")

    def set_current(self, name: str, number: int) -> AdapterVersion:
        """Move the name to a version (publish, rollback). Atomic."""
        version = self.version(name, number)
        replace_file(self.root / name / CURRENT_FILE, str(number))
        return version

    def rollback(self, name: str, number: int | None = None) -> AdapterVersion:
        """Move the name to the version before the current one, or to `number`. Conflict when there is none before."""
        current = self.current(name).number
        if number is not None:
            return self.set_current(name, number)
        earlier = [number for number in self.numbers(name) if number < current]
        if not earlier:
            raise Conflict(f"{name}@{current} is the oldest version; there is nothing to roll back to")
        return self.set_current(name, earlier[-1])

    def remove(self, reference: str) -> list[AdapterVersion]:
        """Delete one version (`name@n`) or the whole adapter (`name`). When the current version goes, the name
        moves to the newest one left. Returns what was deleted."""
        name, which = split_reference(reference)
        if which is not None:
            doomed = [self.resolve(reference)]
        else:
            doomed = [self.version(name, number) for number in self.numbers(name)] or [self.current(name)]
        current = self._current_number(name)
        left = [number for number in self.numbers(name) if number not in {version.number for version in doomed}]
        if not left:
            (self.root / name / CURRENT_FILE).unlink(missing_ok=True)  # first, so that nobody resolves to a half
            self._delete(self.root / name)
            return doomed
        if current not in left:
            self.set_current(name, left[-1])
        for version in doomed:
            self._delete(version.directory)
        return doomed

    def export(self, reference: str, target: Path) -> AdapterVersion:
        """Copy a version to `target`, a new directory that plain PEFT loads."""
        version = self.resolve(reference)
        if target.exists():
            raise Conflict(f"{target} exists already; name a new directory")
        shutil.copytree(version.directory, target, ignore=shutil.ignore_patterns(_DIGEST_FILE))
        return version

    def verify(self, version: AdapterVersion) -> None:
        """Raises Invalid when the files are not the ones that were published."""
        found = digest_of(version.directory)
        if found != version.digest:
            raise Invalid(f"{version}: files changed on disk (digest {found[:12]}, published as {version.digest[:12]})")

    def _delete(self, directory: Path) -> None:
        """At once for everybody who looks; the files themselves go after that."""
        gone = self.root / f".removed-{uuid.uuid4().hex}"
        directory.rename(gone)
        with suppress(FileNotFoundError):  # a server that has just started sweeps it as well
            shutil.rmtree(gone)

    def _current_number(self, name: str) -> int | None:
        try:
            # Read for every name when all are listed: plain open and strings take half the time of Path's.
            with open(f"{self.root}/{name}/{CURRENT_FILE}", "rb", buffering=0) as file:
                return int(file.read())
        except (OSError, ValueError):
            return None

    def _all_ids(self, name: str) -> list[str]:
        return [f"{name}@{number}" for number in self.numbers(name)]

    def _bring_in(
        self, source: Path, incoming: Path, name: str, notes: str, check: Callable[[Path], object] | None
    ) -> int:
        """Copy the adapter to `incoming` and rename that to the next version, or take its notes and give the current
        version's number where the weights are the same."""
        for file in ADAPTER_FILES:
            if (source / file).is_file():
                shutil.copyfile(source / file, incoming / file)
        if notes:
            (incoming / NOTES_FILE).write_text(notes, encoding="utf-8")
        # From here on the copy: the source may change under our hands.
        read_config(incoming)
        read_manifest(incoming)
        check_portraits(incoming)
        digest = digest_of(incoming)
        current = self._current_number(name)
        if current is not None and (version := self.version(name, current)).digest == digest:
            if (incoming / NOTES_FILE).exists():
                (incoming / NOTES_FILE).replace(version.directory / NOTES_FILE)
            return current
        if check:
            check(incoming)
        (incoming / _DIGEST_FILE).write_text(digest, encoding="ascii")
        incoming.chmod(0o755)  # a workspace is private; a server under another user reads this
        return self._rename_to_next_number(incoming, name)

    def _rename_to_next_number(self, incoming: Path, name: str) -> int:
        while True:
            (self.root / name).mkdir(exist_ok=True)
            number = max(self.numbers(name), default=0) + 1
            try:
                incoming.rename(self.root / name / str(number))
            except OSError:  # another process published this number, or removed the name, a moment ago
                if (self.root / name).exists() and not (self.root / name / str(number)).exists():
                    raise
                continue
            return number


def _stamp(path: str) -> _FileStamp:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size
