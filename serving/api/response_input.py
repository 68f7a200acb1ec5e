"""Input items of /v1/responses, and the conversation that they are: what was said, thought, called and answered."""

import uuid
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from adapters.errors import Invalid
from adapters.renderer import Message
from serving.api.schemas import Body
from serving.api.tool_schemas import FunctionName, arguments_of

Status = Literal["in_progress", "completed", "incomplete"]


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


def _parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


Content = Annotated[list[ContentPart], BeforeValidator(_parts)]


class Item(Body):
    id: str | None = None
    status: Status | None = None

    @abstractmethod
    def resource(self) -> dict[str, Any]:
        """The item as it is kept and listed, with an id."""

    def _listed(self, prefix: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {"id": self.id or f"{prefix}_{uuid.uuid4().hex}", "status": self.status or "completed", **fields}


class InputMessage(Item):
    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    phase: None = None

    @field_validator("type")
    @classmethod
    def is_message(cls, value: str) -> str:
        if value != "message":
            known = ", ".join(_ITEMS)
            raise ValueError(f"input items of type '{value}' are not supported; send {known}")
        return value

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)

    def resource(self) -> dict[str, Any]:
        said = self.role == "assistant"
        extra: dict[str, Any] = {"annotations": [], "logprobs": []} if said else {}
        kind = "output_text" if said else "input_text"
        content = [{"type": kind, "text": part.text, **extra} for part in self.content]
        return self._listed("msg", {"type": "message", "role": self.role, "content": content})


class FunctionCall(Item):
    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: str

    @field_validator("arguments")
    @classmethod
    def an_object(cls, value: str) -> str:
        arguments_of(value)
        return value

    def resource(self) -> dict[str, Any]:
        return self._listed("fc", self.model_dump(include={"type", "call_id", "name", "arguments"}))


class FunctionCallOutput(Item):
    type: Literal["function_call_output"]
    call_id: str
    output: Content
    name: str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.output)

    def resource(self) -> dict[str, Any]:
        named = {} if self.name is None else {"name": self.name}
        return self._listed("fco", {"type": self.type, "call_id": self.call_id, "output": self.text, **named})


class ReasoningPart(Body):
    type: Literal["reasoning_text"]
    text: str


class Reasoning(Item):
    """Thoughts of an answer that is sent back."""

    type: Literal["reasoning"]
    summary: list[Any] = Field(default=[], max_length=0)  # answers have none
    content: list[ReasoningPart] = []
    encrypted_content: None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)

    def resource(self) -> dict[str, Any]:
        return self._listed("rs", self.model_dump(include={"type", "summary", "content"}))


_ITEMS: dict[str, type[Item]] = {
    "message": InputMessage,
    "function_call": FunctionCall,
    "function_call_output": FunctionCallOutput,
    "reasoning": Reasoning,
}


def _item(value: Any) -> Any:
    """As its own type says, so that what is wrong with it is said of its own fields."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    return _ITEMS.get(kind if isinstance(kind, str) else "message", InputMessage).model_validate(value)


InputItem = Annotated[InputMessage | FunctionCall | FunctionCallOutput | Reasoning, BeforeValidator(_item)]


def items_of(kept: Sequence[dict[str, Any]]) -> list[Item]:
    """Items that were kept, as resources."""
    return [_item(resource) for resource in kept]


def conversation(before: Sequence[Item], said: Sequence[Item]) -> tuple[Message, ...]:
    """The messages of what was kept and what is sent now. An answer's thoughts, text and calls are one message.
    Invalid where a function's output answers no call."""
    messages: list[Message] = []
    called: set[str] = set()
    for place, item in enumerate([*before, *said], -len(before)):
        match item:
            case InputMessage(role="assistant"):
                _assistant(messages, item)
            case InputMessage():
                messages.append({"role": "user" if item.role == "user" else "system", "content": item.text})
            case Reasoning():
                messages.append({"role": "assistant", "content": "", "reasoning_content": item.text})
            case FunctionCall():
                _call(messages, item)
                called.add(item.call_id)
            case FunctionCallOutput():
                if item.call_id not in called:
                    raise Invalid(
                        f"input.{place}.call_id is '{item.call_id}', which no function_call before it has",
                        param=f"input.{place}.call_id",
                    )
                answer: Message = {"role": "tool", "content": item.text, "tool_call_id": item.call_id}
                messages.append(answer if item.name is None else {**answer, "name": item.name})
    return tuple(messages)


def _assistant(messages: list[Message], item: InputMessage) -> None:
    """A message of its own, unless the answer has begun with thoughts, or goes on after calls."""
    last = messages[-1] if messages else None
    if last and last["role"] == "assistant" and (not last["content"] or "tool_calls" in last):
        last["content"] += item.text
    else:
        messages.append({"role": "assistant", "content": item.text})


def _call(messages: list[Message], item: FunctionCall) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    function = {"name": item.name, "arguments": arguments_of(item.arguments)}
    messages[-1].setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
