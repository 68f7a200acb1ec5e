"""What a caller offers: functions the model may call, and whether it must."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from serving.engine.grammar import Grammar


@dataclass(frozen=True)
class Function:
    name: str
    declaration: dict[str, Any]  # the entry of `tools`, as chat templates take it
    schema: dict[str, Any]  # JSON schema of the arguments
    strict: bool = False
    param: str = "tools"  # where it was sent, for errors

    @property
    def grammar(self) -> Grammar:
        return Grammar("json_schema", json.dumps(self.schema), param=self.param)


@dataclass(frozen=True)
class Tools:
    """`required` asks for at least one call, of the function `only` if that is named."""

    functions: tuple[Function, ...]
    choice: Literal["none", "auto", "required"] = "auto"
    only: str | None = None
    parallel: bool = True

    @property
    def callable(self) -> tuple[Function, ...]:
        return tuple(function for function in self.functions if self.only in (None, function.name))

    @property
    def several(self) -> bool:
        """Whether one answer may hold several calls. Naming a function asks for one call of it."""
        return self.parallel and self.only is None

    @property
    def strict(self) -> bool:
        return any(function.strict for function in self.functions)
