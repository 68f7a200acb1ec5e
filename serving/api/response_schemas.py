"""Bodies of POST /v1/responses. A field that is not here, or has another value than the one it can have here, is
refused by name."""

import json
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import AfterValidator, Field, field_validator, model_validator

from adapters.renderer import Message
from serving.api.schemas import MAX_BLEND, MAX_TOP_LOGPROBS, Body, LoraChoice, Sampling
from serving.engine.grammar import Grammar

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


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], AfterValidator(_writable)
]


class ContentPart(Body):
    type: str
    text: str
    annotations: list[Any] | None = None  # with `logprobs`, what an answer has that is sent back as input
    logprobs: list[Any] | None = None

    @field_validator("type")
    @classmethod
    def is_text(cls, value: str) -> str:
        if value not in ("input_text", "output_text"):
            raise ValueError(f"content of type '{value}' is not supported; the model reads input_text and output_text")
        return value


class InputMessage(Body):
    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: list[ContentPart]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: None = None

    @field_validator("type")
    @classmethod
    def is_message(cls, value: str) -> str:
        if value != "message":
            raise ValueError(f"input items of type '{value}' are not supported; send messages")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def parts(cls, value: Any) -> Any:
        return [{"type": "input_text", "text": value}] if isinstance(value, str) else value

    def plain(self) -> Message:
        content = "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


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


class ResponseRequest(Sampling):
    model: str
    input: list[InputMessage] = Field(min_length=1)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=MAX_OUTPUT_TOKENS)
    text: TextOptions = TextOptions()
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    lora: list[LoraChoice] = Field(default=[], max_length=MAX_BLEND)
    metadata: Metadata | None = Field(default=None, max_length=MAX_METADATA)
    user: str | None = None
    safety_identifier: str | None = Field(default=None, max_length=64)
    prompt_cache_key: str | None = None  # not needed: prompts that begin alike are found by themselves
    # What clients send although it is the default.
    background: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    truncation: Literal["disabled"] | None = None
    tools: list[Any] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None

    @field_validator("input", mode="before")
    @classmethod
    def listed(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    @field_validator("tools")
    @classmethod
    def no_tools(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise ValueError("tools are not supported on /v1/responses")
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
        return self

    @property
    def grammar(self) -> Grammar | None:
        return self.text.format.grammar or super().grammar

    @property
    def reported_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.include else None
