"""ChatRenderer: messages → tokens. The one renderer for training and serving, so that what an adapter is
asked in production is, to the token, what it was asked while it learned."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypedDict

from jinja2.exceptions import TemplateError

from adapters.errors import Invalid

ZERO_WIDTH_SPACE = "\u200b"

Role = Literal["system", "user", "assistant", "tool"]


class Message(TypedDict):
    role: Role
    content: str


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

    def prompt_text(self, messages: Sequence[Message], *, head: bool = True) -> str:
        """The text the model continues: the conversation, and the head of the assistant's turn unless that is not
        wanted."""
        return self._render(messages, head=head)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(self.prompt_text(messages))

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

    def _render(self, messages: Sequence[Message], *, head: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                [self._disarmed(message) for message in messages],
                tokenize=False,
                add_generation_prompt=head,
                enable_thinking=self.thinking,
            )
        except TemplateError as error:
            raise Invalid(f"the model's chat template refuses these messages: {error}", param="messages") from error
        return str(text)

    def _disarmed(self, message: Message) -> Message:
        """What somebody writes cannot end their turn and begin another: a special token spelled out in it gets an
        invisible character after its first, and so stays text. The model's own turns are left as they are."""
        content = message["content"]
        if message["role"] == "assistant":
            return message
        for token in self.tokenizer.all_special_tokens:
            if token in content:
                content = content.replace(token, token[0] + ZERO_WIDTH_SPACE + token[1:])
        return message if content == message["content"] else {**message, "content": content}

    def _spoken(self, turn: str) -> str:
        """The part of a rendered assistant turn that the model itself says: up to its end-of-turn token. What
        the template writes after that (ChatML's line break) is context of the next turn."""
        ends = [turn.find(token) + len(token) for token in self._stop_texts() if token in turn]
        return turn[: min(ends)] if ends else turn

    def _reply_ids(self, turn: str) -> list[int]:
        return self.encode(self._spoken(turn))

    def _stop_texts(self) -> list[str]:
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in self.stop_token_ids]
