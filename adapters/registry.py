"""AdapterRegistry: what a model id means at this moment, and who is using which version.

Names come from the store on disk and from directories attached at run time; the snapshots of runs are resolved, but not
listed. A running request holds a lease
on its version; when a version's name has moved on and its last lease ends, `on_drained` is told so that the
bank can free the weights. Thread-safe: leases end on the engine's thread, names move on the server's."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from adapters.errors import BianlianError, Conflict, Invalid, NotFound, nearest
from adapters.manifest import AdapterVersion, check_name, digest_of, read_manifest, split_reference
from adapters.peft_config import read_config
from adapters.snapshots import SnapshotStore, is_snapshot_id
from adapters.store import AdapterStore

BASE_ALIAS = "base"  # what the base answers to besides its name

log = logging.getLogger(__name__)


@dataclass
class Lease:
    """A running request's hold on a version. `release` may be called more than once."""

    version: AdapterVersion
    _end: Callable[[AdapterVersion], None]
    _open: bool = field(default=True)

    def release(self) -> None:
        if self._open:
            self._open = False
            self._end(self.version)


class AdapterRegistry:
    def __init__(self, store: AdapterStore, base_name: str, base_fingerprint: str):
        self.store = store
        self.snapshots = SnapshotStore(store.root.parent / "runs")  # a home has both
        self.base_name = base_name
        self.base_fingerprint = base_fingerprint
        self.on_drained: Callable[[AdapterVersion], None] = lambda version: None
        self._attached: dict[str, AdapterVersion] = {}
        self._hidden: dict[str, str] = {}  # name in the store → digest that was unloaded; another version is offered
        self._leases: Counter[str] = Counter()  # digest → leases
        self._seen: dict[str, AdapterVersion] = {}  # digest → version that may hold memory
        self._lock = threading.RLock()

    def versions(self) -> list[AdapterVersion]:
        """The current version of every adapter made for this base, by name."""
        with self._lock:
            numbers = self.store.current_numbers()
            found = [self._intact(name, numbers.get(name)) for name in sorted(numbers.keys() | self._attached.keys())]
        return [version for version in found if version and self._fits(version) and not self._is_hidden(version)]

    def resolve(self, model_id: str) -> AdapterVersion:
        """NotFound for an unknown id, Invalid for an adapter of another base."""
        if is_snapshot_id(model_id):
            snapshot = self.snapshots.resolve(model_id)
            self.require_fit(snapshot)
            return snapshot
        name, which = split_reference(model_id)
        with self._lock:
            attached = self._attached.get(name)
            if attached and which in (None, str(attached.number), "latest"):
                return attached
            if attached and which and len(which) >= 6 and attached.digest.startswith(which.lower()):
                return attached
            current = self._intact(name)
            if current is None or self._is_hidden(current):
                known = [self.base_name, *(version.name for version in self.versions())]
                raise NotFound(
                    f"model '{model_id}' does not exist{nearest(model_id, known)}",
                    param="model",
                    code="model_not_found",
                )
            version = self.store.resolve(model_id)
        self.require_fit(version)
        return version

    def offers(self, name: str) -> bool:
        """Whether an adapter has this name, of this base or another."""
        with self._lock:
            return name in self._attached or bool(self.store.numbers(name))

    def offer(self, name: str) -> None:
        """Offer a name of the store again that was unloaded."""
        with self._lock:
            self._hidden.pop(name, None)

    def is_attached(self, name: str) -> bool:
        """Whether the name is a directory's attached at run time, which hides the store's."""
        return name in self._attached

    def acquire(self, model_id: str) -> Lease:
        with self._lock:
            version = self.resolve(model_id)
            self._leases[version.digest] += 1
            self._seen[version.digest] = version
        return Lease(version, self._release)

    def leases(self, version: AdapterVersion) -> int:
        return self._leases[version.digest]

    def unless_leased(self, version: AdapterVersion, free: Callable[[], object]) -> None:
        """Run `free` while nobody can take a lease on the version; not at all when somebody has one. The version is
        then reported as drained again after the last of them."""
        with self._lock:
            if not self._leases[version.digest]:
                free()

    @property
    def total_leases(self) -> int:
        return self._leases.total()

    def attach(self, name: str, directory: Path, *, replace: bool = False) -> AdapterVersion:
        """Serve the PEFT directory under `name`. Conflict when the name is taken, unless `replace`; then
        running requests keep what they have, and new ones get this."""
        check_name(name, param="lora_name")
        self.require_free(name, param="lora_name")
        read_config(directory)
        manifest = read_manifest(directory)
        digest = digest_of(directory)
        with self._lock:
            taken = self._attached.get(name)
            if not taken and (stored := self._intact(name)) and not self._is_hidden(stored):
                taken = stored
            if taken and not replace and taken.digest != digest:
                raise Conflict(
                    f"adapter '{name}' is loaded already, from {taken.directory}; unload it first or send load_inplace",
                    param="lora_name",
                )
            if taken and taken.digest == digest:
                return taken
            number = max([taken.number if taken else 0, *self.store.numbers(name)]) + 1
            version = AdapterVersion(name, number, digest, directory, manifest)
            self.require_fit(version)
            self._attached[name] = version
            self._seen[digest] = version
        self.refresh()
        return version

    def require_free(self, name: str, *, param: str) -> None:
        """Conflict when an adapter may not have this name, whatever others are called."""
        if name in (self.base_name, BASE_ALIAS):
            raise Conflict(f"'{name}' is the base model's name; give the adapter another", param=param)
        if self.store.is_alias(name):
            raise Conflict(f"'{name}' is an alias; delete the alias first or choose another name", param=param)

    def remove(self, reference: str, *, force: bool = False) -> list[AdapterVersion]:
        """Delete a version or a whole adapter from the disk, or stop offering one attached by path. Returns what is
        gone. Conflict while requests run on it, unless `force`; those go on until they end, or are ended."""
        name, which = split_reference(reference)
        with self._lock:
            doomed = self.doomed(reference)
            attached = self._attached.get(name)
            # Weights that another version offers stay, and requests with them.
            running = sum(self._leases[digest] for digest in {v.digest for v in doomed} - self._kept(doomed))
            if running and not force:
                raise Conflict(
                    f"{reference} is answering {running} request{'s' if running > 1 else ''}; wait, or send force=true"
                )
            self._seen |= {version.digest: version for version in doomed if version.digest not in self._seen}
            if attached in doomed:
                del self._attached[name]
            if any(version != attached for version in doomed):
                self.store.remove(name if which is None else f"{name}@{doomed[0].number}")
            self._hidden.pop(name, None)
        return doomed

    def doomed(self, reference: str) -> list[AdapterVersion]:
        """What `remove` would delete. NotFound when there is nothing."""
        name, which = split_reference(reference)
        with self._lock:
            attached = self._attached.get(name)
            if attached and which in (None, str(attached.number)):
                return [*(self.stored(name) if which is None else []), attached]
            if which is None:
                return self.stored(name) or [self.store.current(name)]  # which raises, with a hint
            return [self.store.resolve(reference)]

    def known_names(self) -> list[str]:
        """Names in the store and attached ones, whether they can be served here or not."""
        with self._lock:
            return sorted(set(self.store.names()) | set(self._attached))

    def current(self, name: str) -> AdapterVersion | None:
        """What the name means now; None when it is not offered."""
        with self._lock:
            version = self._intact(name)
            return version if version and self._fits(version) and not self._is_hidden(version) else None

    def stored(self, name: str) -> list[AdapterVersion]:
        """The name's versions on disk that can be read."""
        found = []
        for number in self.store.numbers(name):
            try:
                found.append(self.store.version(name, number))
            except (BianlianError, OSError) as error:
                log.warning("%s@%d is left out: %s", name, number, error)
        return found

    def _kept(self, doomed: list[AdapterVersion]) -> set[str]:
        """Digests that are offered still when these versions are gone."""
        return {version.digest for version in self.versions() if version not in doomed} | self.snapshots.digests()

    def is_offered_elsewhere(self, version: AdapterVersion) -> bool:
        """Whether another name means the same weights."""
        return version.digest in self._kept([version])

    def detach(self, name: str) -> AdapterVersion:
        """Stop offering `name`. Leases go on; the weights are freed with the last of them."""
        with self._lock:
            version = self.resolve(name)
            self._attached.pop(name, None)
            if stored := self._intact(name):
                self._hidden[name] = stored.digest
        self.refresh()
        return version

    def refresh(self) -> None:
        """Notice names that moved on disk: versions no name or lease needs any more are reported as drained."""
        with self._lock:
            moved = [v for digest, v in self._seen.items() if not self._leases[digest] and not self._is_current(v)]
            # Another name may have the same weights. Looking through all of them is left to when one has moved.
            wanted = {version.digest: version for version in self.versions()} if moved else {}
            self._seen |= {v.digest: wanted[v.digest] for v in moved if v.digest in wanted}
            drained = [version for version in moved if version.digest not in wanted]
            for version in drained:
                del self._seen[version.digest]
        for version in drained:
            self.on_drained(version)

    def _release(self, version: AdapterVersion) -> None:
        with self._lock:
            self._leases[version.digest] -= 1
            last = not self._leases[version.digest]
            if last:
                del self._leases[version.digest]
            moved = last and not self._is_current(version)  # one small read; this may be the engine's thread
        if moved:
            self.refresh()

    def _is_current(self, version: AdapterVersion) -> bool:
        """Whether the version's own name is offered and still means these weights."""
        now = self._intact(version.name)
        return now is not None and now.digest == version.digest and self._fits(now) and not self._is_hidden(now)

    def _is_hidden(self, version: AdapterVersion) -> bool:
        return version.name not in self._attached and self._hidden.get(version.name) == version.digest

    def _intact(self, name: str, number: int | None = None) -> AdapterVersion | None:
        """The name's version, `number` if that has just been read; None, with a line in the log, when its files are
        gone or cannot be read. One damaged adapter must not take the others down."""
        try:
            if is_snapshot_id(name):
                return self.snapshots.find(name)
            if attached := self._attached.get(name):
                return attached
            if number is not None:
                with suppress(NotFound):  # deleted since; the name has moved then
                    return self.store.version(name, number)
            return self.store.current(name)
        except (BianlianError, OSError) as error:
            if is_snapshot_id(name) or self.store.numbers(name):
                log.warning("adapter '%s' is left out: %s", name, error)
            return None

    def _fits(self, version: AdapterVersion) -> bool:
        manifest = version.manifest
        return manifest is None or manifest.base_fingerprint == self.base_fingerprint

    def require_fit(self, version: AdapterVersion) -> None:
        """Invalid when it was trained on another base."""
        if not self._fits(version) and version.manifest:
            raise Invalid(
                f"{version} was trained on base '{version.manifest.base_name}' "
                f"({version.manifest.base_fingerprint[:12]}); this server runs '{self.base_name}' "
                f"({self.base_fingerprint[:12]}). Serve that base or train the adapter on this one",
                param="model",
            )
