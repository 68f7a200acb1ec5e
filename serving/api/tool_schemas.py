"""Functions and calls in request bodies, where chat completions and responses write them alike."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from serving.api.schemas import Body, has_half_surrogates
from serving.parsing.tools import Function, Tools

MAX_TOOLS = 128  # as OpenAI has it

Choice = Literal["none", "auto", "required"]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionDefinition(Body):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def offered(self, param: str) -> Function:
        """Without parameters it takes none. `strict` is for the server; models have not seen it. `param` is where the
        parameters were sent."""
        schema = self.parameters
        schema = {"type": "object", "properties": {}, "additionalProperties": False} if schema is None else schema
        declared = {"name": self.name, "description": self.description or "", "parameters": schema}
        declaration = {"type": "function", "function": declared}
        return Function(self.name, declaration, schema, strict=bool(self.strict), param=param)


def offer(functions: Sequence[Function], choice: Choice | None, named: str | None, parallel: bool | None) -> Tools:
    """`choice` is one of the words, or nothing, unless a function is `named`."""
    return Tools(
        tuple(functions), "required" if named else choice or "auto", only=named, parallel=parallel is not False
    )


def arguments_of(text: str) -> dict[str, Any]:
    """Those of a call, as it spells them. ValueError when they are no JSON object."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or has_half_surrogates(arguments):
        raise ValueError("arguments must be a JSON object, as text")
    return arguments
