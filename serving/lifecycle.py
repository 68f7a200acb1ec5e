"""What an operator does with adapters: look at them, publish, pin, warm, roll back, delete. The API, the UI and the
watcher call this; names are the registry's business, files the store's, memory the bank's."""

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from adapters.archive import pack_adapter
from adapters.errors import BianlianError, Conflict, Forbidden, Invalid, NotFound, naming, nearest
from adapters.manifest import (
    ADAPTER_FILES,
    AdapterVersion,
    check_name,
    read_manifest,
    split_reference,
)
from adapters.peft_config import AdapterConfig, read_config
from adapters.snapshots import is_snapshot_id
from serving.chat import ChatService
from serving.engine.bank import BankFigures
from serving.engine.effect import Effect
from serving.own_thread import on_own_thread

Where = Literal["active", "warm", "cold", "pinned", "trouble"]


@dataclass(frozen=True)
class VersionInfo:
    """One version: on disk, in memory, in use. `bytes` are those of its files."""

    id: str
    number: int
    digest: str
    created: int  # seconds since 1970
    rank: int | None
    alpha: float | None
    targets: list[str]  # the base's layers it changes, as its configuration names them
    bytes: int
    notes: str
    current: bool
    status: str  # cold, warm, active
    pinned: bool
    leases: int
    bytes_in_memory: int
    effect: Effect | None
    problem: str | None  # why it is not offered


@dataclass(frozen=True)
class AdapterInfo:
    name: str
    current: int | None  # None: no version is offered
    attached: bool  # from a directory outside the store
    versions: list[VersionInfo]

    @property
    def now(self) -> VersionInfo | None:
        return next((version for version in self.versions if version.current), None)


@dataclass(frozen=True)
class Published:
    version: AdapterVersion
    new: bool  # False: the current version has the same weights and configuration
    effect: Effect | None


@dataclass(frozen=True)
class Found:
    """Some of the adapters that were looked for, and how many there are."""

    total: int
    adapters: list[AdapterInfo]


class AdapterLifecycle:
    def __init__(self, chat: ChatService):
        self.chat = chat
        self.registry = chat.registry
        self.store = chat.registry.store
        self.aliases = chat.aliases
        self._bank = chat.engine.engine.bank
        self._publishing = asyncio.Lock()

    @property
    def figures(self) -> BankFigures:
        return self._bank.figures()

    @property
    def num_slots(self) -> int:
        return self._bank.num_slots

    def all(self) -> list[AdapterInfo]:
        """Every adapter in the store or attached, by name. Reads the disk."""
        return [self._info(name) for name in self.registry.known_names()]

    def get(self, name: str) -> AdapterInfo:
        """NotFound when there is none of this name. Reads the disk."""
        known = self.registry.known_names()
        if name not in known:
            shown = name.encode("ascii", "backslashreplace").decode()[:80]
            raise NotFound(f"adapter '{shown}' does not exist{nearest(name, known)}", param="name")
        return self._info(name)

    def find(
        self, text: str = "", *, where: Where | None = None, offset: int = 0, limit: int = 20, offered: bool = False
    ) -> Found:
        """Adapters by name whose name, title or digest has `text`, in the state `where`; of these, `limit` from
        `offset` on. `offered` leaves out those that cannot be asked here. Reads the disk: little of each, and all of
        those it returns."""
        wanted = text.strip().casefold()
        names = [name for name in self.registry.known_names() if self._matches(name, wanted, where, offered)]
        return Found(len(names), [self._info(name) for name in names[offset : offset + limit]])

    def _matches(self, name: str, text: str, where: Where | None, offered: bool) -> bool:
        current = self.registry.current(name)
        if current is None:
            return not offered and text in name.casefold() and where in (None, "trouble")
        title = current.manifest.card.title if current.manifest else ""
        if text not in name.casefold() and text not in title.casefold() and not current.digest.startswith(text):
            return False
        if where == "pinned":
            return self._bank.is_pinned(current.digest)
        if where == "trouble":
            effect = self.chat.effects.get(current.digest)
            return effect is not None and effect.warning is not None
        return where is None or self._bank.status(current.digest) == where

    def version(self, name: str, number: int) -> AdapterVersion:
        """One version, in the store or attached, whether it can be served here or not. NotFound without it."""
        current = self.registry.current(name)
        if current and current.number == number:
            return current
        with naming("name"):
            return self.store.version(name, number)

    async def measure(self, reference: str) -> Effect | None:
        """What a version changes, which is brought into memory for that. None when running requests need every slot."""
        return await self.chat.effects.measure(await self.warm(reference))

    def pack(self, version: AdapterVersion, directory: Path) -> Path:
        """Write the version into `directory` as a zip file that plain PEFT unpacks and `publish` takes. Blocks."""
        archive = directory / f"{version}.zip"
        pack_adapter(version.directory, archive, version.name)
        return archive

    async def publish(self, source: Path, name: str, *, notes: str = "", param: str = "file") -> Published:
        """Make the PEFT directory the next version of `name`, checked against the base, and bring it into memory.
        Raises what is wrong with it, blamed on the input `param`; then nothing has changed."""
        check_name(name)
        self.registry.require_free(name, param="name")
        if self.registry.is_attached(name):
            raise Conflict(
                f"'{name}' is served from a directory; unload it first, or choose another name", param="name"
            )
        async with self._publishing:  # the second of two equal ones is to find the first
            before = set(self.store.numbers(name))
            try:
                with naming(param):
                    version = await on_own_thread(self.store.publish, source, name, notes=notes, check=self._check)
            except BianlianError as error:
                error.message = error.message.replace(str(source), name)  # where uploads lie is nobody's business
                raise
        self.registry.offer(name)
        await self.chat.warm(str(version))
        await asyncio.to_thread(self.registry.refresh)
        return Published(version, version.number not in before, await self.chat.effects.measure(version))

    async def publish_snapshot(self, model_id: str, name: str) -> Published:
        """Keep a snapshot of a training run as the next version of `name`. NotFound when there is none, or the run
        deleted it a moment ago; else as `publish`."""
        snapshot = await asyncio.to_thread(self.registry.snapshots.resolve, model_id)
        try:
            return await self.publish(snapshot.directory, name, notes=f"snapshot {snapshot}", param="model")
        except FileNotFoundError:
            raise NotFound(
                f"{snapshot} was deleted a moment ago; choose one of the snapshots that are left", param="model"
            ) from None

    async def rollback(self, name: str, number: int | None = None) -> AdapterVersion:
        """The version before the current one, or `number`, is what `name` means from now on."""
        with naming("name"):
            self._require_adapter(name)
            if self.registry.is_attached(name):
                raise Conflict(f"'{name}' is served from a directory, which has one version; unload it instead")
            if number is not None:
                self.registry.require_fit(self.store.version(name, number))
            version = await asyncio.to_thread(self.store.rollback, name, number)
        self.registry.offer(name)
        await asyncio.to_thread(self.registry.refresh)
        return version

    async def pin(self, reference: str) -> AdapterVersion:
        with naming("name"):
            self._require_adapter(reference)
            return await self.chat.pin(reference)

    def unpin(self, reference: str) -> AdapterVersion:
        with naming("name"):
            self._require_adapter(reference)
            return self.chat.unpin(reference)

    async def warm(self, reference: str) -> AdapterVersion:
        with naming("name"):
            self._require_adapter(reference)
            return await self.chat.warm(reference)

    async def remove(self, reference: str, *, force: bool = False) -> tuple[list[AdapterVersion], int]:
        """Delete a version, or a whole adapter. Returns what is gone and the bytes of memory freed. Conflict when an
        alias points at it, or requests run on it, unless `force` ends those."""
        with naming("name"):
            self._require_adapter(reference)
            doomed = await asyncio.to_thread(self.registry.doomed, reference)
            self.aliases.require_unused(partial(self._is_gone, doomed))
            take_away = partial(self.registry.remove, reference, force=force)
            freed = await self.chat.withdraw(take_away, doomed, end_running=force)
        return doomed, freed

    def _is_gone(self, doomed: list[AdapterVersion], model: str) -> bool:
        """Whether a model id means nothing any more without these versions."""
        if self.chat.is_base(model):
            return False
        name, which = split_reference(model)
        if name != doomed[0].name:
            return False
        left = {v.number for v in self.registry.stored(name)} - {v.number for v in doomed}
        if not left or which in (None, "latest"):
            return not left
        try:
            return self.registry.resolve(model) in doomed
        except BianlianError:
            return which in {str(version.number) for version in doomed}  # unloaded; it would mean it again

    def _require_adapter(self, reference: str) -> None:
        if self.chat.is_base(reference):
            raise Invalid("the base model is not an adapter; it stays in memory", param="name")
        if is_snapshot_id(reference):
            raise Invalid(
                f"'{reference}' is a snapshot of a training run, which serves as it is; to keep it under a name, "
                "publish its directory",
                param="name",
            )
        if self.aliases.get(reference):
            raise Invalid(f"'{reference}' is an alias; name the adapter it points at", param="name")

    def _check(self, directory: Path) -> None:
        """Raises what keeps the adapter in `directory` from being served on this base."""
        self.registry.require_fit(AdapterVersion("the adapter", 0, "", directory, read_manifest(directory)))
        self._bank.check(directory)

    def _info(self, name: str) -> AdapterInfo:
        current = self.registry.current(name)
        versions = self.registry.stored(name)
        attached = self.registry.is_attached(name)
        if attached and current:
            versions = [*versions, current]
        infos = [self._version(version, current) for version in versions]
        return AdapterInfo(name, current.number if current else None, attached, infos)

    def _version(self, version: AdapterVersion, current: AdapterVersion | None) -> VersionInfo:
        problem = None
        config: AdapterConfig | None = None
        try:
            self.registry.require_fit(version)
            config = read_config(version.directory)
        except BianlianError as error:
            problem = error.message.replace(str(version.directory), str(version))
        files = [path for name in ADAPTER_FILES if (path := version.directory / name).is_file()]
        if version.manifest:
            created = version.manifest.created.timestamp()
        else:
            created = version.directory.stat().st_mtime if version.directory.exists() else 0.0
        return VersionInfo(
            id=str(version),
            number=version.number,
            digest=version.digest,
            created=int(created),
            rank=config.r if config else None,
            alpha=config.lora_alpha if config else None,
            targets=_targets(config) if config else [],
            bytes=sum(file.stat().st_size for file in files),
            notes=version.notes,
            current=version == current,
            status=self._bank.status(version.digest),
            pinned=self._bank.is_pinned(version.digest),
            leases=self.registry.leases(version),
            bytes_in_memory=self._bank.nbytes(version.digest),
            effect=self.chat.effects.get(version.digest),
            problem=problem,
        )


def _targets(config: AdapterConfig) -> list[str]:
    named = config.target_modules or []
    return [named] if isinstance(named, str) else sorted(named)


def require_under(directory: Path, roots: list[Path], *, param: str) -> Path:
    """The directory, if it and the files in it lie under a root once links are resolved; else Forbidden."""
    try:
        path = directory.expanduser().resolve()
        files = [path / name for name in ADAPTER_FILES]
        resolved = [path, *(file.resolve() for file in files if file.exists())]
        allowed = [root.expanduser().resolve() for root in roots]
    except (OSError, RuntimeError, ValueError) as error:
        raise NotFound(f"no adapter directory there: {error}", param=param) from error
    if not all(any(real.is_relative_to(root) for root in allowed) for real in resolved):
        shown = str(directory).encode("utf-8", "backslashreplace").decode()
        raise Forbidden(
            f"'{shown}' is outside the directories adapters may be loaded from; start with --adapter-root DIR",
            param=param,
        )
    return path
