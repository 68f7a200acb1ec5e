"""Bodies of POST /v1/responses. A field that is not here, or has another value than the one it can have here, is
refused by name."""

import json
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import AfterValidator, Field, field_validator, model_validator

from serving.api.response_input import InputItem
from serving.api.schemas import MAX_TOP_LOGPROBS, AdapterFields, Body, Misfit, Sampling
from serving.api.thinking import Thinking, without_degrees
from serving.api.tool_schemas import MAX_TOOLS, Choice, FunctionDefinition, FunctionName, offer
from serving.engine.grammar import Grammar
from serving.parsing.tools import Tools

MAX_METADATA = 16
MAX_OUTPUT_TOKENS = 2**31 - 1
LOGPROBS = "message.output_text.logprobs"


T = TypeVar("T")


def _writable(value: T) -> T:
    """What is repeated in the response must be writable there: no halves of surrogate pairs, no endless integers."""
    try:
        orjson.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from error
    return value


def _writable_tools(tools: "list[ResponseTool] | None") -> "list[ResponseTool] | None":
    for tool in tools or []:
        _writable(tool.parameters)
    return tools


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], AfterValidator(_writable)
]


class ResponseTool(FunctionDefinition):
    type: Literal["function"]

    @property
    def declared(self) -> dict[str, Any]:
        """As a response repeats it."""
        said = self.model_dump(include={"type", "name", "description", "parameters"})
        return said | {"strict": bool(self.strict)}


class NamedFunction(Body):
    type: Literal["function"]
    name: FunctionName


class ReasoningOptions(Body):
    effort: Literal["none"] | None = None

    @field_validator("effort", mode="before")
    @classmethod
    def no_degrees(cls, value: Any) -> Any:
        return without_degrees(value, "reasoning.effort")


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, AfterValidator(_writable)] = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def complete(self) -> "TextFormat":
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("a format of type 'json_schema' needs name and schema")
        if self.type != "json_schema" and self.model_fields_set - {"type"}:
            raise ValueError(f"a format of type '{self.type}' takes nothing else")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """A schema is followed whether `strict` or not; name and description are the caller's."""
        if self.schema_ is not None:
            return Grammar("json_schema", json.dumps(self.schema_), param="text.format")
        return Grammar("json_object", param="text.format") if self.type == "json_object" else None


class TextOptions(Body):
    format: TextFormat = TextFormat()
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Body):
    include_obfuscation: Literal[False] | None = None


class ResponseRequest(AdapterFields, Thinking, Sampling):
    effort_field = "reasoning"
    input: list[InputItem] = Field(min_length=1)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=MAX_OUTPUT_TOKENS)
    text: TextOptions = TextOptions()
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: Annotated[list[ResponseTool] | None, AfterValidator(_writable_tools)] = Field(
        default=None, max_length=MAX_TOOLS
    )
    tool_choice: Choice | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    metadata: Metadata | None = Field(default=None, max_length=MAX_METADATA)
    safety_identifier: str | None = Field(default=None, max_length=64)
    prompt_cache_key: str | None = None  # not needed: prompts that begin alike are found by themselves
    # What clients send although it is the default.
    background: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    truncation: Literal["disabled"] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def listed(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    @field_validator("tools", mode="before")
    @classmethod
    def functions(cls, value: Any) -> Any:
        for number, tool in enumerate(value if isinstance(value, list) else []):
            kind = tool.get("type") if isinstance(tool, dict) else None
            if kind not in (None, "function"):
                raise Misfit(
                    f"tools of type '{kind}' are not supported; offer functions, and run them yourself",
                    f"tools.{number}.type",
                )
        return value

    @field_validator("tool_choice", mode="before")
    @classmethod
    def known_choice(cls, value: Any) -> Any:
        named = isinstance(value, dict) and value.get("type") == "function"
        if value not in (None, "none", "auto", "required") and not named:
            raise ValueError("tool_choice takes 'none', 'auto', 'required' or {\"type\": \"function\", \"name\": …}")
        return value

    @field_validator("max_tokens", mode="before")
    @classmethod
    def no_max_tokens(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("max_tokens belongs to chat completions; send max_output_tokens")

    @field_validator("response_format", mode="before")
    @classmethod
    def no_response_format(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("response_format belongs to chat completions; send text.format")

    @model_validator(mode="after")
    def consistent(self) -> "ResponseRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream=true")
        if self.top_logprobs is not None and not self.include:
            raise ValueError(f"top_logprobs needs include=['{LOGPROBS}']")
        if self.text.format.grammar and super().grammar:
            raise ValueError("text.format contradicts the other grammar that is sent; send one of them")
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            raise Misfit("tool_choice asks for a call, but there are no tools", "tool_choice")
        return self

    @property
    def asks_for_no_effort(self) -> bool:
        return self.reasoning is not None and self.reasoning.effort is not None

    @property
    def offered(self) -> Tools | None:
        if not self.tools:
            return None
        functions = [tool.offered(f"tools.{number}.parameters") for number, tool in enumerate(self.tools)]
        if isinstance(self.tool_choice, NamedFunction):
            return offer(functions, None, self.tool_choice.name, self.parallel_tool_calls)
        return offer(functions, self.tool_choice, None, self.parallel_tool_calls)

    @property
    def grammar(self) -> Grammar | None:
        return self.text.format.grammar or super().grammar

    @property
    def reported_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.include else None
