"""What responses look like, for /openapi.json alone: the answers themselves are built where they are sent, because
validating every token's chunk would cost more than making it. `tests/serving/test_schema.py` holds the two together."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Declared(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class PromptTokensDetails(Declared):
    cached_tokens: int


class CompletionTokensDetails(Declared):
    reasoning_tokens: int


class Usage(Declared):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AssistantMessage(Declared):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None


class ChatChoice(Declared):
    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatCompletion(Declared):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(Declared):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class TextCompletion(Declared):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(Declared):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    digest: str
    status: Literal["active", "warm", "cold"]


class ModelList(Declared):
    object: Literal["list"]
    data: list[ModelCard]


class Unloaded(Declared):
    message: str
    bytes_freed: int


Responses = dict[int | str, dict[str, Any]]

# Any endpoint may answer these; what brings which about is in the message and its code.
ERRORS: Responses = {
    "4XX": {"model": ErrorBody, "description": "The request's fault; the message says what to change."},
    "5XX": {"model": ErrorBody, "description": "The server's fault, or it is shutting down."},
}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_EVENTS = {"text/event-stream": {"schema": _EVENT}}  # the schema of one event, as tools read it


def answers(model: type[BaseModel]) -> Responses:
    """JSON, or with `stream` an event stream of its chunks that ends with `data: [DONE]`."""
    return {200: {"model": model, "content": _EVENTS, "description": "The answer, whole or as a stream."}}


# The two below go with response_class=Response, or FastAPI would declare JSON too.
EVENTS: Responses = {200: {"content": _EVENTS, "description": "Events; the last is `data: [DONE]`."}}
TEXT: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Plain text."}}
