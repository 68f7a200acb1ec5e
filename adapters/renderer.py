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

ZERO_WIDTH_SPACE = "\u200b"

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
    """A training row. `learned[i]` is True where token i is one the assistant says, end of turn included."""

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
    def _special_texts(self) -> list[str]:
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

    def example(self, messages: Sequence[Message], learn: Sequence[bool] | None = None) -> RenderedExample:
        """A conversation whose assistant turns are learned, or those for which `learn` (one flag a message) is
        True. The tokens before each learned turn equal `prompt_ids` of what precedes it.

        Raises Invalid when the template rewrites earlier turns, so that no such prefix exists."""
        ids: list[int] = []
        learned: list[bool] = []
        done = ""  # text rendered so far
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or (learn is not None and not learn[index]):
                continue
            prompt = self._render(messages[:index], head=True)
            whole = self._render(messages[: index + 1], head=False)
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                raise Invalid(
                    "the chat template rewrites earlier turns, so a conversation with several learned replies has no "
                    "single rendering; learn the last reply only"
                )
            context = self.encode(prompt[len(done) :])
            reply = self._reply_ids(whole[len(prompt) :])
            ids += context + reply
            learned += [False] * len(context) + [True] * len(reply)
            done = prompt + self._spoken(whole[len(prompt) :])
        return RenderedExample(ids, learned)

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
        for token in self._special_texts:
            if token in text:
                text = text.replace(token, token[0] + ZERO_WIDTH_SPACE + token[1:])
        return text

    def _spoken(self, turn: str) -> str:
        """The part of a rendered assistant turn that the model itself says: up to its end-of-turn token. What
        the template writes after that (ChatML's line break) is context of the next turn."""
        ends = [turn.find(token) + len(token) for token in self._stop_texts() if token in turn]
        return turn[: min(ends)] if ends else turn

    def _reply_ids(self, turn: str) -> list[int]:
        return self.encode(self._spoken(turn))

    def _stop_texts(self) -> list[str]:
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in self.stop_token_ids]
