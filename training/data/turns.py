"""A list of turns, in any of the shapes people write them, as messages: content, calls, thoughts, and whether each is
to be learned. Also the functions a row offers to the model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.renderer import Message, Role
from training.data.fields import RowError, parsed, text_of
from training.data.files import Object, json_type

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
}
_CALLS = ("function_call", "tool_call")  # turns that are nothing but calls
_SYSTEMS = ("system", "system_prompt")
_WEIGHTS = ("loss", "weight", "loss_weight", "loss_scale")
_THOUGHTS = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


@dataclass
class Turns:
    """Messages, each with its own say on whether it is learned (None: it says nothing), and its place in the row."""

    messages: list[Message] = field(default_factory=list)
    weights: list[bool | None] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    _calls: int = 0
    _unanswered: list[str] = field(default_factory=list)  # ids of calls

    def add(self, message: Message, weight: bool | None, where: str) -> None:
        """`message` as the next turn, or as more of the last one: calls go on with the assistant's turn before them."""
        for call in message.get("tool_calls", ()):
            self._calls += 1
            # Nine letters and digits, which some templates insist on.
            call["id"] = call["id"] or f"call{self._calls:05d}"
            self._unanswered.append(call["id"])
        if message["role"] == "tool" and self._unanswered:
            given = message.get("tool_call_id")
            answered = given if given in self._unanswered else self._unanswered[0]
            self._unanswered.remove(answered)
            message["tool_call_id"] = answered
        last = self.messages[-1] if self.messages else None
        if last and last["role"] == "assistant" and "tool_calls" in message:
            if weight != self.weights[-1]:
                raise RowError(where, "a call is one turn with what the assistant said before it, and learned like it")
            last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
            last["content"] = "\n".join(text for text in (last["content"], message["content"]) if text)
            return
        self.messages.append(message)
        self.weights.append(weight)
        self.fields.append(where)


def read_turns(value: Any, name: str) -> Turns:
    """The turns in field `name`. Raises RowError for what is no list of turns, or is empty."""
    if not isinstance(value, list):
        raise RowError(name, f"must be a list of turns, is {json_type(value)}")
    if not value:
        raise RowError(name, "is empty", "empty")
    turns = Turns()
    for number, turn in enumerate(value, 1):
        where = f"{name}[{number}]"
        if not isinstance(turn, Mapping):
            raise RowError(where, f"must be an object, is {json_type(turn)}")
        if "from" not in turn and "role" not in turn:
            for message in _both_sides(turn, where):
                turns.add(message, None, where)
        else:
            turns.add(_message(turn, where), _weight(turn, where), where)
    return turns


def _both_sides(turn: Object, where: str) -> list[Message]:
    """A turn that holds both sides: {human, assistant} (Firefly, ms-swift) or {system?, input, output} (XTuner)."""
    for asked, answered in (("human", "assistant"), ("input", "output"), ("user", "assistant")):
        if asked in turn and answered in turn:
            before = system_of(turn) if where.endswith("[1]") else []
            return [*before, user(text_of(turn, asked, where)), assistant(text_of(turn, answered, where))]
    named = ", ".join(sorted(map(str, turn))) or "none"
    raise RowError(where, f"a turn has from and value, or role and content; found {named}")


def _message(turn: Object, where: str) -> Message:
    name = turn.get("from", turn.get("role"))
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        field = "from" if "from" in turn else "role"
        raise RowError(f"{where}.{field}", f"unknown role {name!r}; known: {', '.join(sorted(ROLES))}")
    text, thought, calls = _content(turn, where, only_calls=str(name).lower() in _CALLS)
    if not text.strip() and not calls and role in ("user", "assistant"):
        raise RowError(_content_field(turn, where), f"the {role} turn is empty", "empty")
    if role != "assistant":
        if calls or thought:
            raise RowError(where, f"a {role} turn has calls or thoughts; only the assistant's can")
        message = Message(role=role, content=text)
        if role == "tool":
            for key in ("name", "tool_call_id"):
                if isinstance(turn.get(key), str):
                    message[key] = turn[key]
        return message
    message = assistant(text, thought)
    if calls:
        message["tool_calls"] = calls
    return message


def _content(turn: Object, where: str, *, only_calls: bool) -> tuple[str, str, list[dict[str, Any]]]:
    """Text, thoughts and calls of a turn."""
    value = turn.get("value", turn.get("content"))
    calls = _calls(turn["tool_calls"], where) if turn.get("tool_calls") else []
    thought = turn.get("reasoning_content") or ""
    if not isinstance(thought, str):
        raise RowError(f"{where}.reasoning_content", f"must be text, is {json_type(thought)}")
    if only_calls:
        return "", thought, _calls(value, where)
    if value is None and calls:
        return "", thought, calls
    if isinstance(value, str):
        return value, thought, calls
    if not isinstance(value, list):
        raise RowError(_content_field(turn, where), f"must be text, is {json_type(value)}")
    said: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("value", part.get("text")) if isinstance(part, Mapping) else None
        if kind == "tool_call":
            calls += _calls(text, where)
        elif kind not in ("text", "reasoning") or not isinstance(text, str):
            raise RowError(_content_field(turn, where), f"content of type {kind!r} cannot be learned; text can")
        elif kind == "text":
            said.append(text)
        else:
            thought = "\n".join(filter(None, (thought, text)))
    return "\n".join(said), thought, calls


def _content_field(turn: Object, where: str) -> str:
    return f"{where}.{'value' if 'value' in turn else 'content'}"


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as OpenAI writes them, with their arguments as an object; an id of their own may be missing ("")."""
    value = parsed(value, where, "a function call")
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(where, "a function call has a name and arguments; this has no name")
        arguments = parsed(function.get("arguments", function.get("parameters", {})), where, "arguments")
        if not isinstance(arguments, Mapping):
            raise RowError(where, f"the arguments of a function call are an object, not {json_type(arguments)}")
        given = call.get("id")
        calls.append(
            {
                "id": given if isinstance(given, str) else "",
                "type": "function",
                "function": {"name": function["name"], "arguments": dict(arguments)},
            }
        )
    return calls


def _weight(turn: Object, where: str) -> bool | None:
    """Whether the turn says of itself that it is learned; None when it says nothing."""
    for name in _WEIGHTS:
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise RowError(f"{where}.{name}", f"must be 0 or 1 (or true, false), is {value!r}")
        return bool(value)
    return None


def read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """What a row offers, as the server hands a request's `tools` to the chat template: name, description and
    parameters, nothing else. Takes OpenAI's form and bare functions, as a list or as JSON text."""
    if value in (None, "", []):
        return ()
    value = parsed(value, "tools", "the list of functions")
    if not isinstance(value, list):
        raise RowError("tools", f"must be a list of functions, is {json_type(value)}")
    tools = []
    for number, tool in enumerate(value, 1):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(f"tools[{number}]", "a function needs a name")
        schema = function.get("parameters")
        if schema is not None and not isinstance(schema, Mapping):
            raise RowError(f"tools[{number}].parameters", f"must be a JSON schema, is {json_type(schema)}")
        declared = {
            "name": function["name"],
            "description": function.get("description") or "",
            "parameters": schema or {"type": "object", "properties": {}, "additionalProperties": False},
        }
        tools.append({"type": "function", "function": declared})
    return tuple(tools)


def system_of(row: Object) -> list[Message]:
    """The row's system message, if it has one."""
    for name in _SYSTEMS:
        if row.get(name) not in (None, ""):
            return [Message(role="system", content=text_of(row, name))]
    return []


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, reasoning: str = "") -> Message:
    """An assistant's message. Thoughts written into the text, as <think>…</think> before the answer, are taken out."""
    if not reasoning and (found := _THOUGHTS.fullmatch(text)) and found[2]:
        reasoning, text = found[1].strip("\n"), found[2]
    message = Message(role="assistant", content=text)
    if reasoning.strip():
        message["reasoning_content"] = reasoning
    return message
