"""Conversations as files: training rows (messages JSONL, ShareGPT) and Markdown to read. Of every conversation the
branch on screen, questions with their answers, without thoughts."""

import json
import time
from collections.abc import Iterable
from typing import Any, Literal, get_args

from adapters.errors import Invalid
from adapters.renderer import Message
from serving.conversation import Conversation
from serving.files import FileStore, StoredFile

ExportFormat = Literal["messages", "sharegpt", "markdown"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

_SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
_SUFFIXES: dict[ExportFormat, str] = {"messages": ".jsonl", "sharegpt": ".json", "markdown": ".md"}


def exported(conversations: Iterable[Conversation], form: ExportFormat) -> str:
    """The text of a file. Invalid when there is no answered question in any of them."""
    answered = [(conversation, said) for conversation in conversations if (said := _messages(conversation))]
    if not answered:
        raise Invalid("there is no answered question to export; ask one first", param="conversation_id")
    if form == "messages":
        return "".join(_json({"messages": said}) + "\n" for _, said in answered)
    if form == "sharegpt":
        return "[\n" + ",\n".join(_json({"conversations": _sharegpt(said)}) for _, said in answered) + "\n]\n"
    return "\n---\n\n".join(_markdown(conversation) for conversation, _ in answered)


def file_name(form: ExportFormat) -> str:
    return f"conversations-{time.strftime('%Y%m%d-%H%M%S')}{_SUFFIXES[form]}"


def to_uploads(conversations: Iterable[Conversation], files: FileStore) -> StoredFile:
    """Put them among the uploads, as rows that a training run reads. Blocks; Invalid as `exported`."""
    text = exported(conversations, "messages")
    with files.workspace() as workspace:
        rows = workspace / "rows"
        rows.write_text(text, encoding="utf-8")
        return files.add(rows, file_name("messages"), "fine-tune")


def _messages(conversation: Conversation) -> list[Message]:
    said = conversation.said(conversation.leaf_id)
    if said and conversation.system:
        return [{"role": "system", "content": conversation.system}, *said]
    return said


def _sharegpt(said: Iterable[Message]) -> list[dict[str, str]]:
    return [{"from": _SHAREGPT_NAMES[message["role"]], "value": message["content"]} for message in said]


def _markdown(conversation: Conversation) -> str:
    day = time.strftime("%Y-%m-%d", time.localtime(conversation.created_at))
    parts = [f"# {conversation.title}", f"{day} · {conversation.model}"]
    if conversation.system:
        parts.append("\n".join(f"> {line}" for line in conversation.system.splitlines()))
    for message in conversation.branch:
        name = message.answer.adapter if message.answer else "User"
        parts += [f"## {name}", message.content]
    return "\n\n".join(parts) + "\n"


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
