"""ChatRenderer: messages → tokens. The one renderer for training and serving, so that what an adapter is
asked in production is, to the token, what it was asked while it learned."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NotRequired, TypedDict

from jinja2.exceptions import TemplateError

from adapters.errors import Invalid
from adapters.reasoning import ReasoningMarks, marks_in

ZERO_WIDTH_SPACE = "\u200b"
_PROBE = "a-reply-to-find-again"
_PROBE_CALL = "probe_function"

Role = Literal["system", "user", "assistant", "tool"]


class Message(TypedDict):
    """`tool_calls` are an assistant's, as OpenAI writes them but with their arguments as an object; the tool message
    that answers one has its `tool_call_id`. `reasoning_content` is what an assistant thought before `content`."""

    role: Role
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]


@dataclass(frozen=True)
class RenderedExample:
    """Tokens of a training row. `learned[i]` is True where token i is one the assistant says, end of turn included."""

    ids: list[int]
    learned: list[bool]


class ChatRenderer:
    def __init__(self, tokenizer: Any, stop_token_ids: frozenset[int], *, thinking: bool = False):
        self.tokenizer = tokenizer
        self.stop_token_ids = stop_token_ids
        self.thinking = thinking

    @property
    def template_hash(self) -> str:
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token in the vocabulary."""
        return max(len(token) for token in self.tokenizer.get_vocab())

    @cached_property
    def special_texts(self) -> list[str]:
        """Every text that the tokenizer reads as a special token. Not all of them have a role, and so a name, there."""
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return list(dict.fromkeys([*self.tokenizer.all_special_tokens, *added]))

    def prompt_text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
        head: bool = True,
    ) -> str:
        """The text the model continues: the conversation, and the head of the assistant's turn unless that is not
        wanted. `tools` are described to it if the template can; `thinking` None leaves that as it is set here."""
        return self._render(messages, head=head, tools=tools, thinking=thinking)

    def prompt_ids(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] = (), thinking: bool | None = None
    ) -> list[int]:
        return self.encode(self.prompt_text(messages, tools=tools, thinking=thinking))

    def whole_text(self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] = ()) -> str:
        """A conversation that has ended, as the template writes it down."""
        return self._render(messages, head=False, tools=tools)

    def encode(self, text: str) -> list[int]:
        """Text with the template's special tokens spelled out → ids, nothing added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @property
    def reasoning_marks(self) -> ReasoningMarks | None:
        """How the template marks thoughts; None when it has no place for them."""
        return marks_in(self.tokenizer.chat_template)

    @cached_property
    def has_tools(self) -> bool:
        """Whether the template describes tools to the model and writes down the calls of earlier turns."""
        function = {"name": _PROBE_CALL, "description": "", "parameters": {"type": "object", "properties": {}}}
        question: Message = {"role": "user", "content": "?"}
        called = {"name": _PROBE_CALL, "arguments": {}}
        call: Message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "probe0001", "type": "function", "function": called}],
        }
        answer: Message = {"role": "tool", "content": "?", "tool_call_id": "probe0001", "name": _PROBE_CALL}
        try:
            offered = self.prompt_text([question], tools=[{"type": "function", "function": function}])
            return _PROBE_CALL in offered and _PROBE_CALL in self.whole_text([question, call, answer])
        except (Invalid, TypeError, ValueError, AttributeError, KeyError):  # what templates do with the unexpected
            return False

    def examples(
        self,
        messages: Sequence[Message],
        learn: Sequence[bool] | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
    ) -> list[RenderedExample]:
        """A conversation whose assistant turns are learned, or those for which `learn` (one flag a message) is True.
        The tokens before each learned turn equal `prompt_ids` of what precedes it. One row, unless the template
        rewrites earlier turns (as those do that drop earlier thoughts): then as many as that takes. With `thinking`,
        turns that have thoughts are learned with them, and the others as when it is off.

        Raises Invalid when the template refuses the messages, or hides a reply so that it cannot be found again."""
        rows: list[RenderedExample] = []
        done = ""  # text of the last row so far
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or (learn is not None and not learn[index]):
                continue
            thinks = (self.thinking if thinking is None else thinking) and bool(message.get("reasoning_content"))
            prompt = self._render(messages[:index], head=True, tools=tools, thinking=thinks)
            reply = self.reply_text(messages[:index], message, tools=tools, thinking=thinks)
            if not done or not prompt.startswith(done):
                rows.append(RenderedExample([], []))
                done = ""
            context, said = self.encode(prompt[len(done) :]), self.encode(reply)
            rows[-1].ids.extend(context + said)
            rows[-1].learned.extend([False] * len(context) + [True] * len(said))
            # Only a special token is sure to stay a token of its own, whatever follows it.
            done = prompt + reply if reply.endswith(tuple(self._stop_texts())) else ""
        return rows

    def example(
        self,
        messages: Sequence[Message],
        learn: Sequence[bool] | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
    ) -> RenderedExample:
        """As `examples`, for a caller who needs it in one row. Invalid when it takes several."""
        rows = self.examples(messages, learn, tools=tools, thinking=thinking)
        if len(rows) > 1:
            raise Invalid(
                "the chat template rewrites earlier turns, so a conversation with several learned replies has no "
                "single rendering; learn the last reply only"
            )
        return rows[0] if rows else RenderedExample([], [])

    def reply_text(
        self,
        before: Sequence[Message],
        reply: Message,
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
    ) -> str:
        """What the model itself says after `prompt_text(before)` when its turn is `reply`: thoughts if the template
        has them, content, calls, end of turn."""
        prompt = self._render(before, head=True, tools=tools, thinking=thinking)
        bare: Message = {"role": "assistant", "content": reply["content"]}
        if "tool_calls" in reply:
            bare["tool_calls"] = reply["tool_calls"]
        whole = self._render([*before, reply], head=False, tools=tools, thinking=thinking)
        without = self._render([*before, bare], head=False, tools=tools, thinking=thinking)
        # Bare: many templates drop thoughts when another turn follows.
        end = "" if whole.rstrip().endswith(tuple(self._stop_texts())) else self._stop_after([*before, bare], tools)
        marks, reasoning = self.reasoning_marks, reply.get("reasoning_content", "").strip("\n")
        written = marks is None or (not marks.inside(prompt) and (not reasoning or whole != without))
        if written and whole.startswith(prompt):
            return self._spoken(whole[len(prompt) :] + end)
        # The template writes a past turn otherwise than it asks for a new one: without its thoughts, or without the
        # empty ones that the prompt has. So they are put in front of what it does write.
        probe: Message = {"role": "assistant", "content": _PROBE}
        probed = self._render([*before, probe], head=False, tools=tools, thinking=thinking)
        opening, found, _ = probed.rpartition(_PROBE)
        if not found or not without.startswith(opening):
            raise Invalid("the chat template hides what the assistant says, so it cannot be learned")
        return (marks.around(reasoning, prompt) if marks else "") + self._spoken(without[len(opening) :] + end)

    def _render(
        self,
        messages: Sequence[Message],
        *,
        head: bool,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
    ) -> str:
        thinks = self.thinking if thinking is None else thinking
        try:
            text = self.tokenizer.apply_chat_template(
                [self._disarmed(message) for message in messages],
                tools=json.loads(self._as_text(json.dumps(list(tools), ensure_ascii=False))) if tools else None,
                tokenize=False,
                add_generation_prompt=head,
                enable_thinking=thinks,
                thinking=thinks,  # what DeepSeek calls it
            )
        except TemplateError as error:
            raise Invalid(f"the model's chat template refuses these messages: {error}", param="messages") from error
        return str(text)

    def _disarmed(self, message: Message) -> Message:
        """What somebody writes cannot end their turn and begin another: a special token spelled out in it gets an
        invisible character after its first, and so stays text. The model's own turns are left as they are."""
        if message["role"] == "assistant":
            return message
        content = self._as_text(message["content"])
        return message if content == message["content"] else {**message, "content": content}

    def _as_text(self, text: str) -> str:
        for token in self.special_texts:
            if token in text:
                text = text.replace(token, token[0] + ZERO_WIDTH_SPACE + token[1:])
        return text

    def _spoken(self, turn: str) -> str:
        """The part of a rendered assistant turn that the model itself says: up to its end-of-turn token. What
        the template writes after that (ChatML's line break) is context of the next turn."""
        ends = [turn.find(token) + len(token) for token in self._stop_texts() if token in turn]
        return turn[: min(ends)] if ends else turn

    def _stop_after(self, turns: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
        """The end of the last of `turns` where the template does not write it with the turn, but begins the next one
        with it: GLM stops at what introduces the user or a tool's answer. "" where it does neither."""
        role: Role = "tool" if "tool_calls" in turns[-1] else "user"
        following = Message(role=role, content=_PROBE)
        if role == "tool":
            following["tool_call_id"] = turns[-1]["tool_calls"][-1].get("id", "")
        whole = self._render(turns, head=False, tools=tools)
        longer = self._render([*turns, following], head=False, tools=tools)
        return next((stop for stop in self._stop_texts() if longer.startswith(whole + stop)), "")

    def _stop_texts(self) -> list[str]:
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in sorted(self.stop_token_ids)]
