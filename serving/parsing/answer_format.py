"""How a base model writes down thoughts and tool calls, found out from its chat template by rendering with it."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from adapters.errors import Invalid
from adapters.reasoning import ReasoningMarks, marks_in
from adapters.renderer import ChatRenderer, Message
from serving.parsing.calls import CallFormat
from serving.parsing.hermes import Hermes
from serving.parsing.llama import Llama
from serving.parsing.mistral import MistralList, MistralNamed
from serving.parsing.tagged import GLM, QWEN_CODER, Tagged
from serving.parsing.tools import Function

FORMATS: tuple[CallFormat, ...] = (
    Hermes(),
    Tagged(QWEN_CODER),
    Tagged(GLM),
    MistralList(),
    MistralNamed(),
    Llama(),
)

_QUESTION = "Which probe?"
_REPLY = "A plain reply."
_PROBE = Function(
    "probe_function",
    {
        "type": "function",
        "function": {
            "name": "probe_function",
            "description": "Probes.",
            "parameters": {"type": "object", "properties": {"probe": {"type": "string"}}, "required": ["probe"]},
        },
    },
    {"type": "object", "properties": {"probe": {"type": "string"}}, "required": ["probe"]},
)
_CALL_ID = "probe0001"  # nine letters and digits, which some templates insist on
_ARGUMENTS = {"probe": "value"}
_FUNCTION = {"name": _PROBE.name, "arguments": _ARGUMENTS}


@dataclass(frozen=True)
class AnswerFormat:
    calls: CallFormat | None
    no_tools: str  # why `calls` is None
    reasoning: ReasoningMarks | None
    switchable: bool  # whether thinking can be turned on and off

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that carry meaning, even where the tokenizer has a special token for them."""
        reasoning = (self.reasoning.opening, self.reasoning.closing) if self.reasoning else ()
        return (*(self.calls.markers if self.calls else ()), *reasoning)


def answer_format(renderer: ChatRenderer) -> AnswerFormat:
    """Never raises: what the template cannot do is what the format says."""
    if not renderer.tokenizer.chat_template:
        return AnswerFormat(None, "the model has no chat template", None, False)
    calls, reason = _call_format(renderer)
    reasoning = marks_in(renderer.tokenizer.chat_template)
    return AnswerFormat(calls, reason, reasoning, reasoning is not None and _switchable(renderer))


def _call_format(renderer: ChatRenderer) -> tuple[CallFormat | None, str]:
    question: list[Message] = [{"role": "user", "content": _QUESTION}]
    described = _attempt(lambda: renderer.prompt_text(question, tools=[_PROBE.declaration]))
    if described is None or _PROBE.name not in described:
        return None, "the model's chat template has no place for tools"
    call = {"id": _CALL_ID, "type": "function", "function": _FUNCTION}
    calling: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    # As in a conversation that goes on: templates insist that a call is answered.
    answer: Message = {"role": "tool", "content": _REPLY, "tool_call_id": _CALL_ID, "name": _PROBE.name}
    for turns in ([calling], [calling, answer]):
        written = _attempt(lambda turns=turns: renderer.whole_text([*question, *turns], tools=[_PROBE.declaration]))  # type: ignore[misc]
        if written is None or _PROBE.name not in written:
            continue
        turn = _without_head(renderer, written.rpartition(_QUESTION)[2])
        found = next((form for form in FORMATS if _reads(form, turn)), None)
        if found:
            return found, ""
    return None, "the model's chat template writes tool calls in a form that is not known here"


def _without_head(renderer: ChatRenderer, turn: str) -> str:
    """A rendered assistant turn without what the template puts before every such turn, and up to its end."""
    plain: list[Message] = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _REPLY}]
    written = _attempt(lambda: renderer.whole_text(plain, tools=[_PROBE.declaration])) or ""
    head = written.rpartition(_QUESTION)[2].partition(_REPLY)[0]
    turn = turn.removeprefix(head) if turn.startswith(head) else turn.removeprefix(head.rstrip())
    ends = [str(renderer.tokenizer.convert_ids_to_tokens(token)) for token in renderer.stop_token_ids]
    return turn[: min((at for end in ends if (at := turn.find(end)) >= 0), default=len(turn))]


def _reads(form: CallFormat, turn: str) -> bool:
    """Whether the format reads exactly the call that was written."""
    reader = form.reader([_PROBE], live=False)
    calls = [*reader.feed(turn).calls, *reader.finish().calls]
    return (
        {call.index for call in calls} == {0}
        and calls[0].name == _PROBE.name
        and json.loads("".join(call.arguments for call in calls)) == _ARGUMENTS
    )


def _switchable(renderer: ChatRenderer) -> bool:
    question: list[Message] = [{"role": "user", "content": _QUESTION}]
    on = _attempt(lambda: renderer.prompt_text(question, thinking=True))
    return on != _attempt(lambda: renderer.prompt_text(question, thinking=False))


def _attempt(render: Callable[[], str]) -> str | None:
    """None where the template refuses, or fails on, what it is given."""
    try:
        return render()
    except (Invalid, TypeError, ValueError, AttributeError, KeyError):
        return None
