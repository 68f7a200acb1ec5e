"""Request bodies. A field that is not here is refused by name, never ignored."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from adapters.renderer import Message
from serving.chat import MAX_SCALE, random_seed
from serving.engine.sequence import SamplingParams

_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_STOPS = 16
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_PRIORITY = 100


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="after")
    @classmethod
    def writable(cls, value: Any) -> Any:
        """JSON can spell half a surrogate pair, which is no text and cannot be encoded."""
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and _SURROGATE.search(text) for text in texts):
            raise ValueError("the text contains half of a surrogate pair, which is not valid Unicode")
        return value


class TextPart(Body):
    type: Literal["text"]
    text: str


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(Body):
    include_usage: bool = False


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


class ResponseFormat(Body):
    type: Literal["text"]


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
        )


class ChatCompletionRequest(Sampling):
    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    lora: list[LoraChoice] = []
    user: str | None = None

    @model_validator(mode="after")
    def consistent(self) -> "ChatCompletionRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream=true")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        return self

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


class LoadAdapterRequest(Body):
    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapterRequest(Body):
    lora_name: str
    force: bool = False
    lora_int_id: int | None = None  # vLLM's clients may send it; names are enough here


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value
