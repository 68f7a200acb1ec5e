"""What an adapter says of itself: the manifest beside the weights, and the version it makes.

`bianlian.json` travels with the PEFT files. It records everything that must be the same when the adapter is
served as when it was trained: base, chat template, system prompt, stop tokens."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.errors import Invalid, NotFound
from adapters.portrait import PORTRAIT_FILES, PortraitFile

MANIFEST_FILE = "bianlian.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
NOTES_FILE = "notes.txt"  # what its publisher says of a version, UTF-8
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE, NOTES_FILE, *PORTRAIT_FILES)
MAX_NOTES = 4096  # characters
_MANIFEST_BYTES = 4 << 20
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
REFERENCE_PATTERN = re.compile(r"latest|[0-9]{1,9}|[0-9a-fA-F]{6,64}")


class PersonaCard(BaseModel):
    """How a persona introduces itself on screen. `portrait` names a file beside the manifest."""

    model_config = ConfigDict(extra="forbid")

    title: str = ""
    greeting: str = ""
    samples: list[str] = Field(default_factory=list)
    portrait: PortraitFile | None = None


class TrainingRecord(BaseModel):
    """Where an adapter comes from, in numbers."""

    model_config = ConfigDict(extra="forbid")

    data_sha256: str
    rows: int
    epochs: float
    steps: int
    train_loss: float | None = None
    base_val_loss: float | None = None
    tuned_val_loss: float | None = None
    seed: int


class AdapterManifest(BaseModel):
    """Format 1 of `bianlian.json`. An unknown field is refused: it was written by a newer program."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    name: str
    base_name: str
    base_fingerprint: str
    template_hash: str
    system_prompt: str | None = None
    thinking: bool = False
    card: PersonaCard = Field(default_factory=PersonaCard)
    training: TrainingRecord | None = None
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def write(self, directory: Path) -> None:
        (directory / MANIFEST_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class AdapterVersion:
    """Immutable `name@number`. Two versions with the same digest have the same weights and configuration."""

    name: str
    number: int
    digest: str  # sha256, hex
    directory: Path
    manifest: AdapterManifest | None  # None: plain PEFT files without ours

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"

    @property
    def notes(self) -> str:
        """What its publisher said of it; read from the disk."""
        try:
            with (self.directory / NOTES_FILE).open(encoding="utf-8", errors="replace") as file:
                return file.read(MAX_NOTES)
        except OSError:
            return ""


def read_manifest(directory: Path) -> AdapterManifest | None:
    """The manifest in `directory`, None when there is none. Raises Invalid when it cannot be understood."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        return None
    if path.stat().st_size > _MANIFEST_BYTES:
        raise Invalid(f"{path} is larger than {_MANIFEST_BYTES >> 20} MiB; is it a manifest?")
    try:
        return AdapterManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"{path}: {where}: {first['msg']}") from error


def digest_of(directory: Path) -> str:
    """sha256 over the files that decide what the adapter does: its configuration and weights."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (directory / name).open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def split_reference(reference: str) -> tuple[str, str | None]:
    """`name` or `name@which` → (name, which). NotFound, before any path is made of it, when no adapter can be called
    so: what comes here was typed by somebody."""
    name, at, which = reference.partition("@")
    if not NAME_PATTERN.fullmatch(name) or (at and not REFERENCE_PATTERN.fullmatch(which)):
        shown = reference.encode("ascii", "backslashreplace").decode()[:80]
        raise NotFound(f"model '{shown}' does not exist", param="model", code="model_not_found")
    return name, which if at else None


def check_name(name: str, *, param: str = "name") -> str:
    """`name` if it may name an adapter, else Invalid that names the input `param`."""
    if not NAME_PATTERN.fullmatch(name):
        raise Invalid(
            f"adapter name {name[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or "
            "digit",
            param=param,
        )
    return name
