"""A conversation as a tree of messages. An answer made again, or a question asked otherwise, is one more child of the
same parent; one branch at a time is on screen."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from adapters.errors import NotFound
from adapters.renderer import Message

Role = Literal["user", "assistant"]


class Reader(Protocol):
    """Who asks: the name of an API key, and whether it is an admin's."""

    @property
    def key(self) -> str: ...
    @property
    def admin(self) -> bool: ...


@dataclass(frozen=True)
class AnswerRecord:
    """Who answered and how fast. Times in seconds. `finish_reason` is None until the answer has ended."""

    model: str  # as it was asked for
    adapter: str  # `name@number` of what answered, or the base's name
    digest: str | None
    seed: int
    tokens: int = 0
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class StoredMessage:
    id: int
    parent_id: int | None
    role: Role
    content: str
    reasoning: str = ""
    answer: AnswerRecord | None = None


@dataclass(frozen=True)
class Summary:
    """A line of the list of conversations."""

    id: str
    key: str
    title: str
    model: str
    updated_at: float


@dataclass(frozen=True)
class Conversation:
    """`messages` are those of all branches, in the order in which they came; `leaf_id` ends the one on screen.
    `system` is None for the model's own prompt and "" for none."""

    id: str
    key: str
    title: str
    model: str
    system: str | None
    leaf_id: int | None
    created_at: int
    messages: tuple[StoredMessage, ...]

    @cached_property
    def _by_id(self) -> dict[int, StoredMessage]:
        return {message.id: message for message in self.messages}

    def message(self, message_id: int, role: Role) -> StoredMessage:
        """NotFound for a message that is not in this conversation, or somebody else's words."""
        found = self._by_id.get(message_id)
        if found is None or found.role != role:
            raise NotFound(f"this conversation has no {role} message {message_id}", param="message_id")
        return found

    def path(self, to: int | None) -> list[StoredMessage]:
        """From the first message to `to`."""
        found: list[StoredMessage] = []
        while to is not None:
            found.append(self._by_id[to])
            to = found[-1].parent_id
        return found[::-1]

    @property
    def branch(self) -> list[StoredMessage]:
        """The messages on screen."""
        return self.path(self.leaf_id)

    def siblings(self, message: StoredMessage) -> list[StoredMessage]:
        """The message and its other versions, the oldest first."""
        return [other for other in self.messages if other.parent_id == message.parent_id]

    def leaf_under(self, message_id: int) -> int:
        """Where the branch ends that goes on from a message, always with the newest version."""
        while following := [other.id for other in self.messages if other.parent_id == message_id]:
            message_id = following[-1]
        return message_id

    def said(self, to: int | None) -> list[Message]:
        """What a model reads of the branch up to `to`: questions with their answers, without thoughts, and without
        questions that got no answer."""
        path = self.path(to)
        pairs = [(asked, told) for asked, told in zip(path[::2], path[1::2], strict=False) if told.content]
        return [{"role": each.role, "content": each.content} for pair in pairs for each in pair]
