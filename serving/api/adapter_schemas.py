"""Bodies about adapters and aliases."""

from pydantic import Field, field_validator, model_validator

from adapters.aliases import MAX_TARGETS, Alias, AliasTarget
from serving.api.schemas import (
    Body,
)


class LoadAdapterRequest(Body):
    lora_name: str
    lora_path: str
    load_inplace: bool = False


class AliasRequest(Body):
    targets: list[AliasTarget] = Field(min_length=1, max_length=MAX_TARGETS)

    @field_validator("targets")
    @classmethod
    def distinct(cls, targets: list[AliasTarget]) -> list[AliasTarget]:
        return Alias.distinct(targets)


class PublishRequest(Body):
    """Where the adapter is: an uploaded archive, or a directory under a root."""

    name: str
    notes: str = ""
    file_id: str | None = None
    path: str | None = None

    @model_validator(mode="after")
    def one_place(self) -> "PublishRequest":
        if (self.file_id is None) == (self.path is None):
            raise ValueError("send either file_id or path")
        return self


class RollbackRequest(Body):
    version: int | None = Field(default=None, ge=1, lt=10**9)


class UnloadAdapterRequest(Body):
    lora_name: str
    force: bool = False
    lora_int_id: int | None = None  # vLLM's clients may send it; names are enough here
