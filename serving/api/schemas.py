"""Request bodies. A field that is not here is refused by name, never ignored."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from adapters.aliases import MAX_TARGETS, Alias, AliasTarget
from adapters.errors import Invalid
from adapters.registry import BASE_ALIAS
from adapters.renderer import Message
from serving.chat import MAX_SCALE, random_seed
from serving.engine.grammar import Grammar
from serving.engine.sequence import SamplingParams
from serving.parsing.tools import Function, Tools

_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_STOPS = 16
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 128  # times choices: what one body may start at once
DEFAULT_TEXT_TOKENS = 16  # of a text completion, as OpenAI has it
MAX_PRIORITY = 100
MAX_EMBEDDED = 2048  # inputs of one body, as OpenAI has it
MAX_TOOLS = 128  # as OpenAI has it


class Misfit(ValueError):
    """A field that does not go with the others."""

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.param = param


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, body: Any) -> Any:
        """null asks for nothing. Clients write it for every parameter their caller left out."""
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body

    @field_validator("*", mode="after")
    @classmethod
    def writable(cls, value: Any) -> Any:
        """JSON can spell half a surrogate pair, which is no text and cannot be encoded."""
        texts = value if isinstance(value, list) else [_spelled(value) if isinstance(value, dict) else value]
        if any(isinstance(text, str) and _SURROGATE.search(text) for text in texts):
            raise ValueError("the text contains half of a surrogate pair, which is not valid Unicode")
        return value


class TextPart(Body):
    type: Literal["text"]
    text: str


class CalledFunction(Body):
    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def an_object(cls, value: str) -> str:
        arguments = _parsed(value)
        if not isinstance(arguments, dict) or _SURROGATE.search(_spelled(arguments)):
            raise ValueError("arguments must be a JSON object, as text")
        return value


class ToolCall(Body):
    """A call of an earlier turn, as it was answered."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # clients that join a stream's chunks leave it in

    def plain(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": _parsed(self.function.arguments)}
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


FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionDefinition(Body):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition

    def offered(self, number: int) -> Function:
        """Without parameters it takes none. `strict` is for the server; models have not seen it."""
        schema = self.function.parameters
        schema = {"type": "object", "properties": {}, "additionalProperties": False} if schema is None else schema
        declared = {"name": self.function.name, "description": self.function.description or "", "parameters": schema}
        return Function(
            self.function.name,
            {"type": "function", "function": declared},
            schema,
            strict=bool(self.function.strict),
            param=f"tools.{number}.function.parameters",
        )


class ChosenName(Body):
    name: FunctionName


class ChosenFunction(Body):
    type: Literal["function"]
    function: ChosenName


class TemplateOptions(Body):
    """Of what vLLM passes on to the chat template, the one that is known here."""

    enable_thinking: bool


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False  # padding against eavesdroppers who watch sizes: there is none


class LoraChoice(Body):
    """One adapter of a blend, in llama.cpp's shape: `name` (or `id`) and its strength."""

    name: str | None = None
    id: str | None = None
    scale: float = Field(default=1.0, ge=-MAX_SCALE, le=MAX_SCALE)

    @model_validator(mode="after")
    def named(self) -> "LoraChoice":
        if (self.name is None) == (self.id is None):
            raise ValueError("each entry of lora takes either name or id")
        return self

    @property
    def model(self) -> str:
        return self.name or self.id or ""


class JsonSchema(Body):
    """OpenAI's wrapping. The schema is followed whether `strict` or not; name and description are the caller's."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def complete(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type 'json_schema', and with no other")
        return self

    @property
    def grammar(self) -> Grammar | None:
        if self.json_schema:
            return _json_grammar(self.json_schema.schema_, "response_format")
        return Grammar("json_object", param="response_format") if self.type == "json_object" else None


def _schema(value: Any) -> Any:
    if value is not None and not isinstance(value, (dict, str)):
        raise ValueError("takes a JSON schema, as an object or as text")
    return value


Schema = Annotated[dict[str, Any] | str, BeforeValidator(_schema)]
MAX_PATTERN = 8192  # characters; compiling takes seconds from a few ten thousand on
MAX_BLEND = 16
Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN)]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class StructuredOutputs(Body):
    """vLLM's field: one of these."""

    json_: Schema | None = Field(default=None, alias="json")
    regex: Pattern | None = None
    choice: Choices | None = None

    @model_validator(mode="after")
    def one(self) -> "StructuredOutputs":
        if sum(value is not None for value in (self.json_, self.regex, self.choice)) != 1:
            raise ValueError("structured_outputs takes exactly one of json, regex and choice")
        return self


class Sampling(Body):
    """Sampling fields shared by every endpoint that generates. None means: the model's own default."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    seed: int | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=5)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None

    @model_validator(mode="after")
    def one_grammar(self) -> "Sampling":
        free = self.response_format is None or self.response_format.type == "text"
        names = ["structured_outputs", "guided_json", "guided_regex", "guided_choice"]
        sent = ([] if free else ["response_format"]) + [name for name in names if getattr(self, name) is not None]
        if len(sent) > 1:
            raise ValueError(f"{' and '.join(sent)} contradict each other; send one of them")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """What the answer has to follow."""
        if self.response_format and self.response_format.grammar:
            return self.response_format.grammar
        asked = self.structured_outputs
        schema, regex, choice = (
            (asked.json_, asked.regex, asked.choice)
            if asked
            else (self.guided_json, self.guided_regex, self.guided_choice)
        )
        if schema is not None:
            return _json_grammar(schema, "structured_outputs" if asked else "guided_json")
        if regex is not None:
            return Grammar("regex", regex, param="structured_outputs" if asked else "guided_regex")
        if choice is None:
            return None
        spelled = json.dumps(choice, ensure_ascii=False)
        return Grammar("choice", spelled, param="structured_outputs" if asked else "guided_choice")

    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)  # vLLM's: lower runs earlier

    @field_validator("stop")
    @classmethod
    def stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS:
            raise ValueError(f"stop takes at most {MAX_STOPS} strings, not {len(stops)}")
        if "" in stops:
            raise ValueError("stop may not contain an empty string")
        return value

    def params(self, default: SamplingParams, vocab_size: int, *, logprobs: int | None = None) -> SamplingParams:
        """These fields over the model's defaults. ValueError when a token id is outside the vocabulary."""
        for token in [*(self.logit_bias or {}), *self.stop_token_ids]:
            if not 0 <= token < vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary of {vocab_size}")
        top_k = default.top_k if self.top_k is None else max(self.top_k, 0)  # -1 also means all
        top_k = 0 if top_k >= vocab_size else top_k
        return SamplingParams(
            temperature=_first(self.temperature, default.temperature),
            top_p=_first(self.top_p, default.top_p),
            top_k=top_k,
            min_p=_first(self.min_p, default.min_p),
            min_tokens=self.min_tokens,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            seed=random_seed() if self.seed is None else self.seed,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=_first(self.repetition_penalty, default.repetition_penalty),
            logit_bias=tuple((self.logit_bias or {}).items()),
            logprobs=logprobs,
            grammar=self.grammar,
        )


def _single(value: Any) -> Any:
    """iFlytek's WebSocket clients send their patch id in a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class AdapterFields(Body):
    """Who answers, in the words of several servers. What they mean together: serving/api/dialects.py."""

    model: str
    user: str | None = None  # decides what an alias means
    lora: list[LoraChoice] = Field(default=[], max_length=MAX_BLEND)  # llama.cpp
    adapter_id: str | None = None  # LoRAX, TGI
    lora_path: str | None = None  # SGLang: the name under which it was loaded
    use_adapter: bool | str | None = None  # Unsloth: false is the base
    lora_id: str | None = None  # iFlytek: "0" is the base
    patch_id: Annotated[str | None, BeforeValidator(_single)] = None


class ChatCompletionRequest(AdapterFields, Sampling):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    thinking: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
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
        if value not in (None, "none"):
            raise ValueError(
                "only reasoning_effort 'none' is supported: thinking has no degrees here; send thinking=true instead"
            )
        return value

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

    @model_validator(mode="after")
    def thinking_agrees(self) -> "ChatCompletionRequest":
        sent = {
            "thinking": self.thinking,
            "chat_template_kwargs.enable_thinking": self.chat_template_kwargs
            and self.chat_template_kwargs.enable_thinking,
            "reasoning_effort": None if self.reasoning_effort is None else False,
        }
        given = {name: value for name, value in sent.items() if value is not None}
        if len(set(given.values())) > 1:
            raise Misfit(f"{' and '.join(given)} contradict each other; send one of them", next(iter(given)))
        return self

    @property
    def thinking_field(self) -> str:
        """The one that says whether the model thinks."""
        sent = [name for name in ("thinking", "chat_template_kwargs") if getattr(self, name) is not None]
        return (sent or ["reasoning_effort"])[0]

    @property
    def thinks(self) -> bool | None:
        if self.thinking is not None:
            return self.thinking
        if self.chat_template_kwargs is not None:
            return self.chat_template_kwargs.enable_thinking
        return None if self.reasoning_effort is None else False

    @property
    def offered(self) -> Tools | None:
        if self.tools is None:
            return None
        functions = tuple(tool.offered(number) for number, tool in enumerate(self.tools))
        parallel = self.parallel_tool_calls is not False
        if isinstance(self.tool_choice, ChosenFunction):
            return Tools(functions, "required", only=self.tool_choice.function.name, parallel=parallel)
        return Tools(functions, self.tool_choice or "auto", parallel=parallel)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def reported_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class TextCompletionRequest(AdapterFields, Sampling):
    """Continues text as it stands. max_tokens 0 with echo and logprobs scores the prompt."""

    prompt: list[str | tuple[int, ...]]  # sent as one text, one list of token ids, or a list of either
    max_tokens: int | None = Field(default=None, ge=0)
    suffix: str | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def listed(cls, value: Any) -> Any:
        return as_prompts("prompt", value)

    @field_validator("suffix")
    @classmethod
    def no_suffix(cls, value: str | None) -> None:
        if value:
            raise ValueError("suffix is not supported: the model only continues; put what follows into the prompt")

    @model_validator(mode="after")
    def consistent(self) -> "TextCompletionRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream=true")
        if self.best_of not in (None, self.n):
            raise ValueError(f"best_of is {self.best_of}; only n ({self.n}) is supported: every choice is returned")
        if len(self.prompt) * self.n > MAX_PROMPTS:
            raise ValueError(
                f"{len(self.prompt)} prompts times n={self.n} are more than {MAX_PROMPTS}; send several requests"
            )
        return self


class EmbeddingRequest(Body):
    model: str
    input: list[str | tuple[int, ...]] = Field(max_length=MAX_EMBEDDED)  # sent as prompt of a text completion
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    lora: list[LoraChoice] = Field(default=[], max_length=MAX_BLEND)
    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    user: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def listed(cls, value: Any) -> Any:
        return as_prompts("input", value)

    @field_validator("dimensions")
    @classmethod
    def no_dimensions(cls, value: int | None) -> None:
        if value is not None:
            raise ValueError(
                "dimensions is not supported: a part of a chat model's hidden state means nothing by itself"
            )


class TokenizeRequest(Body):
    """vLLM's. Without `model` the base's tokens are counted, which differ from an adapter's by its system prompt."""

    model: str = BASE_ALIAS
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = None  # by default for a prompt, and not for messages: the template has them
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        if self.prompt is not None and "add_generation_prompt" in self.model_fields_set:
            raise ValueError("add_generation_prompt goes with messages")
        return self


class DetokenizeRequest(Body):
    model: str = BASE_ALIAS
    tokens: list[Annotated[int, Field(ge=0)]]


class LaneChoice(Body):
    model: str
    scale: float = Field(default=1.0, ge=-MAX_SCALE, le=MAX_SCALE)
    system: str | None = None


class CompareRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1)
    lanes: list[LaneChoice] = Field(min_length=1)
    thinking: bool | None = None


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


def as_prompts(name: str, value: Any) -> list[Any]:
    """A text, a list of token ids, or a list of either, as a list of such prompts. ValueError for anything else."""
    entries = value if isinstance(value, list) and value and not _is_ids(value) else [value]
    if not (all(isinstance(entry, str) for entry in entries) or all(_is_ids(entry) for entry in entries)):
        raise ValueError(f"{name} takes a text, a list of token ids, or a list of texts or of such lists")
    return entries


def check_token_ids(name: str, prompts: Iterable[str | Sequence[int]], vocab_size: int) -> None:
    """Invalid when a prompt of token ids has one outside the vocabulary."""
    for prompt in prompts:
        unknown = [] if isinstance(prompt, str) else [token for token in prompt if token >= vocab_size]
        if unknown:
            raise Invalid(f"token id {unknown[0]} is outside the vocabulary of {vocab_size}", param=name)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)


def _json_grammar(schema: dict[str, Any] | str, param: str) -> Grammar:
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema), param=param)


def _spelled(value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _parsed(text: str) -> Any:
    """JSON, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value
