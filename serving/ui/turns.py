"""A turn as Gradio's Chatbot shows it."""

from typing import Any

from adapters.ui.words import Language
from serving.ui.markup import shown
from serving.ui.texts import say

Bubble = dict[str, Any]  # a message as the Chatbot takes it


def bubble(role: str, text: str) -> Bubble:
    # As a content part: a plain string would have its indentation taken off.
    return {"role": role, "content": [{"type": "text", "text": shown(text)}]}


def thought(text: str, language: Language, *, done: bool) -> Bubble:
    """What the model thinks before it answers, folded away once it has."""
    status = "done" if done else "pending"
    return bubble("assistant", text) | {"metadata": {"title": say(language, "thought"), "status": status}}
