"""What both tabs do with a running answer: follow it at a pace the browser can draw, turn the Chatbot's messages into
a conversation and back, and tell tokens, speed and version in one line."""

import asyncio
import html
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from adapters.renderer import Message
from adapters.ui.words import Language
from serving.compare import Comparison, LaneProgress
from serving.engine.sequence import FinishReason
from serving.ui.markup import shown, spoken
from serving.ui.texts import say

UPDATE_S = 0.1  # six columns at 20 updates a second leave a browser behind; at 10 they do not
HEARTBEAT_S = 0.5  # Gradio notices a closed tab only when the generator yields

NO_STATS = '<div class="stats"></div>'  # keeps the line's height

Bubble = dict[str, Any]  # a message as the Chatbot sends and takes it


async def follow(comparison: Comparison) -> AsyncGenerator[set[int], None]:
    """Run `comparison` to its end. Yields the lanes that have grown since the last time, at most every UPDATE_S, and an
    empty set as a sign of life. Leaving early stops all lanes."""
    grown: set[int] = set()

    async def read() -> None:
        async for number, _ in comparison:
            grown.add(number)

    async with comparison:
        reader = asyncio.create_task(read())
        silent_s = 0.0
        try:
            while not reader.done():
                await asyncio.wait([reader], timeout=UPDATE_S)
                silent_s += UPDATE_S
                if grown or silent_s >= HEARTBEAT_S:
                    now, silent_s = set(grown), 0.0
                    grown.clear()
                    yield now
            reader.result()
            if grown:
                yield set(grown)
        finally:
            reader.cancel()


class Running:
    """Comparisons in progress, by browser session, so that a Stop button finds them."""

    def __init__(self) -> None:
        self._by_session: dict[str, Comparison] = {}

    async def follow(self, session: str, comparison: Comparison) -> AsyncGenerator[set[int], None]:
        """`follow`, within reach of `stop`."""
        self._by_session[session] = comparison
        try:
            async with aclosing(follow(comparison)) as steps:
                async for grown in steps:
                    yield grown
        finally:
            if self._by_session.get(session) is comparison:
                del self._by_session[session]

    def stop(self, session: str) -> None:
        """End the session's lanes where they are; their generator then finishes as usual."""
        comparison = self._by_session.get(session)
        for lane in comparison.lanes if comparison else []:
            lane.answer.stop()


def bubble(role: str, text: str) -> Bubble:
    # As a content part: a plain string would have its indentation taken off.
    return {"role": role, "content": [{"type": "text", "text": shown(text)}]}


def thought(text: str, language: Language, *, done: bool) -> Bubble:
    """What the model thinks before it answers, folded away once it has."""
    status = "done" if done else "pending"
    return bubble("assistant", text) | {"metadata": {"title": say(language, "thought"), "status": status}}


def conversation(bubbles: Iterable[Bubble] | None) -> list[Message]:
    """What was said, without thoughts, and without questions that got no answer; those may end the list but not stand
    inside it."""
    messages: list[Message] = []
    for each in bubbles or []:
        if (each.get("metadata") or {}).get("title"):
            continue
        text = spoken("".join(part["text"] for part in each["content"] if part.get("type") == "text"))
        role = each["role"]
        if role not in ("user", "assistant"):
            continue
        if messages and messages[-1]["role"] == role == "user":
            messages.pop()
        messages.append({"role": role, "content": text})
    return messages


def followable(messages: list[Message]) -> list[Message]:
    """A conversation a new question may follow: a last question that got no answer is left out."""
    return messages[:-1] if messages and messages[-1]["role"] == "user" else messages


def bubbles_of(messages: Iterable[Message]) -> list[Bubble]:
    return [bubble(message["role"], message["content"]) for message in messages]


def with_answer(asked: list[Bubble], lane: LaneProgress, language: Language) -> list[Bubble]:
    """The conversation as it stands; before the first character the Chatbot shows that it waits."""
    done = bool(lane.text or lane.finish_reason)
    thoughts = [thought(lane.reasoning, language, done=done)] if lane.reasoning else []
    return [*asked, *thoughts, *([bubble("assistant", lane.text)] if lane.text else [])]


def stats_line(lane: LaneProgress, language: Language) -> str:
    """Who answered and how fast, as HTML; class `done` once the lane has ended."""
    answer = lane.answer
    parts = [f"<b>{html.escape(answer.adapter)}</b>"]
    if answer.digest:
        badges = " + ".join(f"<code>{digest[:8]}</code>" for digest in answer.digest.split("+"))
        parts.append(f"{say(language, 'digest')} {badges}")
    if lane.first_token_s is None:
        parts.append(say(language, "waiting") if lane.finish_reason is None else "")
    else:
        parts.append(say(language, "tokens", n=lane.tokens))
        if lane.tokens_per_s is not None:
            parts.append(say(language, "speed", rate=lane.tokens_per_s))
        parts.append(say(language, "first", ms=lane.first_token_s * 1000))
    if lane.finish_reason in (FinishReason.LENGTH, FinishReason.ABORT):
        parts.append(say(language, lane.finish_reason.value))
    text = " · ".join(part for part in parts if part)
    trouble = f'<div class="trouble" role="alert">⚠ {html.escape(lane.error)}</div>' if lane.error else ""
    state = "done" if lane.finish_reason else "running"
    return f'<div class="stats {state}" title="{say(language, "seed", seed=answer.seed)}">{text}</div>{trouble}'
