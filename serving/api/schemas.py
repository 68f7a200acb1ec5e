"""What request bodies have in common. A field that is not here is refused by name, never ignored."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from serving.chat import MAX_SCALE, random_seed
from serving.engine.grammar import Grammar
from serving.engine.sequence import SamplingParams

_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_STOPS = 16
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_PRIORITY = 100


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
        if any(map(has_half_surrogates, value if isinstance(value, list) else [value])):
            raise ValueError("the text contains half of a surrogate pair, which is not valid Unicode")
        return value


class Misfit(ValueError):
    """A field that does not go with the others."""

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.param = param


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


def _json_grammar(schema: dict[str, Any] | str, param: str) -> Grammar:
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema), param=param)


def has_half_surrogates(value: Any) -> bool:
    """Whether a text, or one anywhere in a JSON object, has what cannot be encoded."""
    try:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return isinstance(text, str) and bool(_SURROGATE.search(text))


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value
