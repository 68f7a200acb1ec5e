"""Bodies of chat completions and comparisons."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from adapters.renderer import Message
from serving.api.schemas import MAX_CHOICES, MAX_TOP_LOGPROBS, AdapterFields, Body, Misfit, Sampling, StreamOptions
from serving.api.thinking import Thinking, without_degrees
from serving.api.tool_schemas import MAX_TOOLS, Choice, FunctionDefinition, FunctionName, arguments_of, offer
from serving.chat import MAX_SCALE
from serving.parsing.tools import Tools


class TextPart(Body):
    type: Literal["text"]
    text: str


class CalledFunction(Body):
    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def an_object(cls, value: str) -> str:
        arguments_of(value)
        return value


class ToolCall(Body):
    """A call of an earlier turn, as it was answered."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # clients that join a stream's chunks leave it in

    def plain(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": arguments_of(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None  # in a tool's answer; elsewhere without effect: chat templates have no place for it
    provider_specific_fields: dict[str, Any] = {}  # LiteLLM's notes on an answer, in what it sends back as history
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # What answers carry and clients send back, always without a value.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)

    @model_validator(mode="after")
    def fits_its_role(self) -> "ChatMessage":
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.reasoning_content)):
            raise ValueError(f"content is required in a message of role '{self.role}'")
        for field in ("tool_calls", "reasoning_content"):
            if getattr(self, field) is not None and self.role != "assistant":
                raise ValueError(f"{field} belongs to role 'assistant', not '{self.role}'")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id goes with role 'tool', and with no other")
        return self

    def plain(self) -> Message:
        parts = self.content or ""
        content = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        message: Message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
            if self.name is not None:
                message["name"] = self.name
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        return message


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition


class ChosenName(Body):
    name: FunctionName


class ChosenFunction(Body):
    type: Literal["function"]
    function: ChosenName


class ChatCompletionRequest(AdapterFields, Thinking, Sampling):
    effort_field = "reasoning_effort"
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Choice | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none"] | None = None
    # Without effect; docs/api.md says of each why that is no lie. A value that asks for more is refused.
    safety_identifier: str | None = None
    metadata: dict[str, str] = {}
    store: Literal[False] = False
    service_tier: Literal["auto", "default"] = "auto"
    modalities: list[Literal["text"]] = []
    verbosity: Literal["medium"] = "medium"
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory"] = "in_memory"

    @field_validator("tool_choice", mode="before")
    @classmethod
    def known_choice(cls, value: Any) -> Any:
        named = isinstance(value, dict) and value.get("type") == "function"
        if value not in (None, "none", "auto", "required") and not named:
            raise ValueError(
                'tool_choice takes \'none\', \'auto\', \'required\' or {"type": "function", "function": {"name": …}}'
            )
        return value

    @field_validator("reasoning_effort", mode="before")
    @classmethod
    def no_degrees(cls, value: Any) -> Any:
        return without_degrees(value, "reasoning_effort")

    @model_validator(mode="after")
    def consistent(self) -> "ChatCompletionRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream=true")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        return self

    @model_validator(mode="after")
    def answered(self) -> "ChatCompletionRequest":
        """Every tool message answers a call made before it."""
        called: set[str] = set()
        for number, message in enumerate(self.messages):
            if message.tool_call_id is not None and message.tool_call_id not in called:
                field = f"messages.{number}.tool_call_id"
                raise Misfit(
                    f"{field} is '{message.tool_call_id}', which no assistant message before it has in its tool_calls",
                    field,
                )
            called |= {call.id for call in message.tool_calls or []}
        return self

    @model_validator(mode="after")
    def tools_agree(self) -> "ChatCompletionRequest":
        if self.tools is None and self.tool_choice not in (None, "none", "auto"):
            raise Misfit("tool_choice asks for a call, but there are no tools", "tool_choice")
        return self

    @property
    def asks_for_no_effort(self) -> bool:
        return self.reasoning_effort is not None

    @property
    def offered(self) -> Tools | None:
        if self.tools is None:
            return None
        functions = [
            tool.function.offered(f"tools.{number}.function.parameters") for number, tool in enumerate(self.tools)
        ]
        choice = self.tool_choice
        if isinstance(choice, ChosenFunction):
            return offer(functions, None, choice.function.name, self.parallel_tool_calls)
        return offer(functions, choice, None, self.parallel_tool_calls)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def reported_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class LaneChoice(Body):
    model: str
    scale: float = Field(default=1.0, ge=-MAX_SCALE, le=MAX_SCALE)
    system: str | None = None


class CompareRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1)
    lanes: list[LaneChoice] = Field(min_length=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)  # what the stream can repeat
    thinking: bool | None = None
