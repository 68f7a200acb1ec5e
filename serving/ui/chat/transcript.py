"""The transcript as HTML: questions, answers with their badge, and what can be done with each.

Gradio's Chatbot has no place for a line under each answer, nor for the versions of a turn. Everything that people or
models wrote goes through `escape` or `prose`; the buttons say what they do in `data-do`, which SCRIPT sends as an
event."""

from html import escape

from adapters.ui.words import Language
from serving.conversation import AnswerRecord, Conversation, StoredMessage
from serving.ui.chat.faces import avatar_class
from serving.ui.chat.words import say
from serving.ui.prose import prose
from serving.ui.stats import digest_badge, stats_line
from serving.ui.texts import say as say_common


def settled(conversation: Conversation, running_id: int | None, language: Language) -> str:
    """The branch on screen, but for the answer `running_id`, which `answer_bubble` draws as it grows."""
    turns = []
    for message in conversation.branch:
        versions = conversation.siblings(message)
        if message.role == "user":
            turns.append(_question(message, versions, language))
        elif message.id != running_id:
            assert message.answer is not None
            turns.append(answer_bubble(message, versions, language))
    return "".join(turns)


def answer_bubble(
    message: StoredMessage, versions: list[StoredMessage], language: Language, *, running: bool = False
) -> str:
    record = message.answer
    assert record is not None  # every answer has one
    text = prose(message.content) if message.content else ""
    if not text and not running and not message.reasoning:
        text = f'<p class="silent">{say(language, "silent")}</p>'
    tools = (
        "" if running else _versions(message, versions, language) + _copy(message, language) + _again(message, language)
    )
    return (
        f'<article class="message bot"><span class="avatar {avatar_class(record.model)}" aria-hidden="true"></span>'
        f'<div class="body"><div class="said">{_thoughts(message, language, running=running and not message.content)}'
        f"{text}</div>{stats(record, language, running=running)}"
        f'<div class="tools">{tools}</div></div></article>'
    )


def stats(record: AnswerRecord, language: Language, *, running: bool = False) -> str:
    """Who answered and how fast."""
    digest = [digest_badge(record.digest, language)] if record.digest else []
    return stats_line(
        [f"<b>{escape(record.adapter)}</b>", *digest],
        language,
        running=running,
        tokens=record.tokens,
        first_token_s=record.first_token_s,
        tokens_per_s=record.tokens_per_s,
        finish_reason=record.finish_reason,
        error=record.error,
        seed=record.seed,
    )


def _question(message: StoredMessage, versions: list[StoredMessage], language: Language) -> str:
    text = escape(message.content)
    rows = min(8, message.content.count("\n") + 2)
    return (
        f'<article class="message user" data-id="{message.id}"><div class="body">'
        f'<span class="sr-only">{say(language, "you")}</span><div class="said">{text}</div>'
        f'<div class="tools">{_versions(message, versions, language)}{_copy(message, language)}'
        f'<details class="edit"><summary>{say(language, "edit")}</summary>'
        f'<textarea rows="{rows}" aria-label="{say(language, "edited")}">{text}</textarea>'
        f'<button type="button" data-do="edit" data-id="{message.id}">{say(language, "resend")}</button></details>'
        "</div></div></article>"
    )


def _thoughts(message: StoredMessage, language: Language, *, running: bool) -> str:
    """What the model thought before it answered: open while there is nothing else, folded away afterwards."""
    if not message.reasoning:
        return ""
    state = " open" if running else ""
    return (
        f'<details class="thoughts"{state}><summary>{say_common(language, "thought")}</summary>'
        f"<div>{escape(message.reasoning)}</div></details>"
    )


def _versions(message: StoredMessage, versions: list[StoredMessage], language: Language) -> str:
    """‹ 2/3 ›, where there is more than one."""
    if len(versions) < 2:
        return ""
    at = [version.id for version in versions].index(message.id)

    def step(to: int, sign: str, name: str) -> str:
        off = "" if 0 <= to < len(versions) else " disabled"
        target = versions[to].id if not off else message.id
        return (
            f'<button type="button" data-do="show" data-id="{target}" aria-label="{say(language, name)}"{off}>'
            f"{sign}</button>"
        )

    here = f'<span class="at">{at + 1}/{len(versions)}</span>'
    return f'<span class="versions">{step(at - 1, "‹", "earlier")}{here}{step(at + 1, "›", "later")}</span>'


def _copy(message: StoredMessage, language: Language) -> str:
    text, done = escape(message.content), say(language, "copied")
    return f'<button type="button" data-copy="{text}" data-copied="{done}">{say(language, "copy")}</button>'


def _again(message: StoredMessage, language: Language) -> str:
    return f'<button type="button" data-do="again" data-id="{message.id}">{say(language, "again")}</button>'
