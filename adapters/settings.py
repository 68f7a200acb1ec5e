"""One Settings object for every command: file `bianlian.toml` < environment `BIANLIAN_*` < command line."""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from adapters.errors import Invalid, nearest

CONFIG_FILE = "bianlian.toml"
ENV_PREFIX = "BIANLIAN_"
BUNDLED = Path(__file__).parent / "bundled"

HIDDEN = "•••"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#*\sA-Z]+")  # as browsers spell it: no path, lower case

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "8bit", "4bit"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class Effective:
    """One setting as it holds: its value as text, and where that is from."""

    name: str
    value: str
    origin: str


class Settings(BaseSettings):
    """What an operator may set."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, toml_file=CONFIG_FILE, extra="forbid", frozen=True)

    home: Path = Field(default=Path("~/.bianlian"), description="Store, runs and uploads live here.")
    base: str = Field(default="bianlian-mini", description="Bundled name, directory, or hub id of the base model.")
    device: Device = "auto"
    dtype: DType = "auto"
    quantize: Quantization = "none"
    adapter: list[str] = Field(default=[], description="NAME=PATH of adapters to serve beside those in the store.")
    adapter_roots: list[Path] = Field(default=[], description="Directories that adapter paths sent over HTTP may name.")
    watch: list[Path] = Field(
        default=[], description="Directories whose PEFT directories are published as they appear."
    )
    max_upload: float = Field(default=4.0, gt=0, description="GiB an uploaded file may have, unpacked as well.")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads that compute; default: all cores. Fewer where others share them."
    )
    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65535)
    max_model_len: int | None = Field(
        default=None, ge=16, description="Tokens a sequence may have; default: the model's."
    )
    kv_cache_memory: float = Field(default=1.0, gt=0, description="GiB for keys and values.")
    max_batch_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Tokens computed in one step, running answers first; so it bounds how long a prompt holds them up. "
        "Default: 256 on CPU, 2048 on CUDA.",
    )
    max_running: int = Field(default=64, ge=1, description="Sequences that run at once.")
    max_waiting: int = Field(default=1024, ge=1, description="Requests that may wait; more are refused with 429.")
    adapter_slots: int = Field(default=16, ge=1, description="Adapters on the device at once.")
    adapter_memory: float | None = Field(
        default=None,
        gt=0,
        description="GiB of adapter weights on the device; default: 2 on CUDA; on CPU they are the host's, at no cost.",
    )
    adapter_host_memory: float = Field(
        default=4.0,
        gt=0,
        description="GiB of adapter weights kept in host memory; the rest are read from disk when asked for.",
    )
    prefix_cache: bool = True
    api_key: list[str] = []
    admin_key: str | None = None
    max_running_jobs: int = Field(
        default=1, ge=0, description="Training runs at once; others wait in the queue. 0: this server starts none."
    )
    cors_origins: list[str] = Field(
        default=[], description='Origins whose pages may call the API from a browser, or "*" for all; needs keys then.'
    )
    database: str | None = Field(
        default=None,
        description="URL of the database for keys, usage, votes and conversations, sqlite:////FILE or "
        "postgresql://USER:PASSWORD@HOST/NAME; default: bianlian.db in the home.",
    )
    snapshot_runs: int = Field(
        default=20,
        ge=0,
        description="Finished training runs that keep their snapshots; those of older ones are deleted, unless in use.",
    )
    ui: bool = True
    drain_seconds: float = Field(
        default=6.0, ge=0, description="What running answers get to finish once the server is asked to stop."
    )
    log_format: LogFormat = Field(default="text", description="Log lines for people, or as JSON for programs.")

    _given: dict[str, str] = PrivateAttr(default_factory=dict)  # by setting: where its value is from

    @field_validator("cors_origins")
    @classmethod
    def origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"'{origin}' is no origin; write https://app.example or http://localhost:5173")
        return value

    @property
    def root(self) -> Path:
        return self.home.expanduser()

    def require_home(self, *, writable: bool = True) -> Path:
        """The home, made if need be and it is to be `writable`. Raises Invalid, with the way out, where it cannot be
        used."""
        try:
            if writable:
                self.root.mkdir(parents=True, exist_ok=True)
                with TemporaryFile(dir=self.root):
                    return self.root
            os.listdir(self.root)
        except OSError as error:
            if not writable and isinstance(error, FileNotFoundError):
                return self.root  # nothing in it, then
            raise Invalid(
                f"the home {self.root} cannot be {'written to' if writable else 'read'} ({error.strerror}); set "
                "BIANLIAN_HOME to a directory that can be, or mend its permissions",
                param="home",
            ) from error
        return self.root

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload * 2**30)

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.root / 'bianlian.db'}"

    def origin(self, name: str) -> str:
        """Where a setting's value is from: "flag", a variable "BIANLIAN_X", the file "bianlian.toml", or "default"."""
        return self._given.get(name, "flag" if name in self.model_fields_set else "default")

    def effective(self) -> list[Effective]:
        """Every setting as it holds, fit to be shown: keys are counted, the password of a database is left out."""
        values = {name: _as_text(getattr(self, name)) for name in type(self).model_fields}
        values["api_key"] = f"{len(self.api_key)} × {HIDDEN}" if self.api_key else ""
        values["admin_key"] = HIDDEN if self.admin_key else ""
        values["database"] = re.sub(r"(://[^:/@]*:).*@", rf"\1{HIDDEN}@", self.database_url)
        return [Effective(name, value, self.origin(name)) for name, value in values.items()]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(**flags: Any) -> Settings:
    """Settings from file, environment and `flags` (None means: not given). Raises Invalid on an unknown key
    or a bad value, naming where it came from."""
    given = {name: value for name, value in flags.items() if value is not None}
    for name in _env_names():
        if name not in Settings.model_fields:
            raise Invalid(
                f"unknown setting {ENV_PREFIX}{name.upper()} in the environment{nearest(name, Settings.model_fields)}"
            )
    try:
        settings = Settings(**given)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{CONFIG_FILE}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise Invalid(f"unknown setting '{name}' in {CONFIG_FILE}{nearest(name, Settings.model_fields)}") from error
        raise Invalid(f"setting '{name}': {first['msg']} (got {first['input']!r})", param=name) from error
    in_environment = set(_env_names())
    for name in settings.model_fields_set - set(given):
        settings._given[name] = ENV_PREFIX + name.upper() if name in in_environment else CONFIG_FILE
    return settings


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)


def _env_names() -> list[str]:
    return [key[len(ENV_PREFIX) :].lower() for key in os.environ if key.upper().startswith(ENV_PREFIX)]
