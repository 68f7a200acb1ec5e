"""Bodies that hold prompts as they stand: text completions, embeddings, token ids."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from adapters.errors import Invalid
from adapters.registry import BASE_ALIAS
from serving.api.chat_schemas import (
    ChatMessage,
)
from serving.api.schemas import (
    MAX_CHOICES,
    MAX_PRIORITY,
    MAX_TOP_LOGPROBS,
    AdapterFields,
    Body,
    Sampling,
    StreamOptions,
)

MAX_PROMPTS = 128  # times choices: what one body may start at once
DEFAULT_TEXT_TOKENS = 16  # of a text completion, as OpenAI has it
MAX_EMBEDDED = 2048  # inputs of one body, as OpenAI has it


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


class EmbeddingRequest(AdapterFields):
    input: list[str | tuple[int, ...]] = Field(max_length=MAX_EMBEDDED)  # sent as prompt of a text completion
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)

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
