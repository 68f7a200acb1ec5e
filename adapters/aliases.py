"""Aliases: names that stand for others, by weight. `persona → huanhuan@3 90 %, huanhuan@4 10 %` is decided by who asks,
the same for the same user each time. One small file each, beside the adapters: `<store>/.aliases/persona.json`."""

import hashlib
import logging
import math
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from adapters.errors import Conflict, Invalid, NotFound, nearest
from adapters.manifest import NAME_PATTERN, check_name
from adapters.registry import BASE_ALIAS, AdapterRegistry
from adapters.store import AdapterStore
from adapters.workspace import replace_file

log = logging.getLogger(__name__)

MAX_TARGETS = 16
_FILE_BYTES = 64 << 10


class AliasTarget(BaseModel):
    """A model id and how much of the users it gets, relative to the others."""

    model_config = ConfigDict(extra="forbid")

    model: str
    weight: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)


class Alias(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    targets: list[AliasTarget] = Field(min_length=1, max_length=MAX_TARGETS)

    @field_validator("targets")
    @classmethod
    def distinct(cls, targets: list[AliasTarget]) -> list[AliasTarget]:
        if len({target.model for target in targets}) != len(targets):
            raise ValueError("targets name the same model twice; add up their weights")
        return targets

    def choose(self, user: str) -> str:
        """The target that `user` gets. Rendezvous hashing (Thaler and Ravishankar 1998) with weights (-w / ln u, u
        uniform): when a weight changes, only as many users move as its share has changed by."""

        def score(target: AliasTarget) -> float:
            text = "\0".join((self.name, target.model, user))
            drawn = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) >> 11
            return -target.weight / math.log((drawn + 0.5) / 2**53)

        return max(self.targets, key=score).model

    @property
    def heaviest(self) -> str:
        return max(self.targets, key=lambda target: target.weight).model


class AliasStore:
    """Aliases on disk, for the CLI and any number of servers alike: read anew for each request."""

    def __init__(self, store: AdapterStore):
        self._root = store.aliases

    def get(self, name: str) -> Alias | None:
        if not NAME_PATTERN.fullmatch(name):
            return None
        try:
            with (self._root / f"{name}.json").open("rb") as file:
                return Alias.model_validate_json(file.read(_FILE_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValidationError as error:
            raise Invalid(f"alias '{name}' cannot be read: {error.errors()[0]['msg']}; set it again") from error

    def all(self) -> list[Alias]:
        """Those that can be read, by name."""
        found = []
        for name in sorted(path.stem for path in self._root.glob("*.json")):
            try:
                alias = self.get(name)
            except Invalid as error:
                log.warning("%s", error)
                continue
            if alias:
                found.append(alias)
        return found

    def put(self, alias: Alias, registry: AdapterRegistry) -> Alias:
        """Set or replace it. Conflict when the name is a model's, Invalid when a target is an alias, NotFound or
        Invalid when it is nothing that this server offers."""
        check_name(alias.name)
        if alias.name in (registry.base_name, BASE_ALIAS) or registry.offers(alias.name):
            raise Conflict(f"'{alias.name}' is a model already; give the alias another name", param="name")
        for number, target in enumerate(alias.targets):
            param = f"targets.{number}.model"
            if self.get(target.model) or target.model == alias.name:
                raise Invalid(f"'{target.model}' is an alias; an alias points at models only", param=param)
            if target.model not in (registry.base_name, BASE_ALIAS):
                try:
                    registry.resolve(target.model)
                except (NotFound, Invalid) as error:
                    error.param = param
                    raise
        self._root.mkdir(parents=True, exist_ok=True)
        replace_file(self._root / f"{alias.name}.json", alias.model_dump_json(indent=2) + "\n")
        return alias

    def require(self, name: str) -> Alias:
        alias = self.get(name)
        if alias is None:
            known = [alias.name for alias in self.all()]
            shown = name.encode("ascii", "backslashreplace").decode()[:80]
            raise NotFound(f"alias '{shown}' does not exist{nearest(name, known)}", param="name")
        return alias

    def delete(self, name: str) -> Alias:
        alias = self.require(name)
        (self._root / f"{name}.json").unlink(missing_ok=True)
        return alias

    def require_unused(self, is_gone: Callable[[str], bool]) -> None:
        """Conflict when an alias points at a model id of which `is_gone` holds."""
        for alias in self.all():
            for target in alias.targets:
                if is_gone(target.model):
                    raise Conflict(
                        f"alias '{alias.name}' points at {target.model}; change or delete the alias first", param="name"
                    )
