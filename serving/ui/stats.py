"""The line below an answer: who gave it, and how fast."""

from collections.abc import Sequence
from html import escape

from adapters.ui.words import Language
from serving.engine.sequence import FinishReason
from serving.ui.texts import say

NO_STATS = '<div class="stats"></div>'  # keeps the line's height


def stats_line(
    who: Sequence[str],
    language: Language,
    *,
    running: bool,
    tokens: int,
    first_token_s: float | None,
    tokens_per_s: float | None,
    finish_reason: str | None,
    error: str | None,
    seed: int,
) -> str:
    """HTML; class `done` once the answer has ended. `who` is HTML. An answer that neither runs nor has ended was
    interrupted, by a server that stopped."""
    parts = list(who)
    running = running and finish_reason is None
    if first_token_s is not None:
        parts.append(say(language, "tokens", n=tokens))
        if tokens_per_s is not None:
            parts.append(say(language, "speed", rate=tokens_per_s))
        parts.append(say(language, "first", ms=first_token_s * 1000))
    elif running:
        parts.append(say(language, "waiting"))
    if finish_reason in (FinishReason.LENGTH, FinishReason.ABORT):
        parts.append(say(language, finish_reason))
    if finish_reason is None and not running:
        error = error or say(language, "interrupted")
    text = " · ".join(f'<span class="figure">{part}</span>' for part in parts)
    trouble = f'<div class="trouble" role="alert">⚠ {escape(error)}</div>' if error else ""
    state = "running" if running else "done"
    return f'<div class="stats {state}" title="{say(language, "seed", seed=seed)}">{text}</div>{trouble}'


def digest_badge(digest: str, language: Language) -> str:
    """The beginnings of the digests of a blend, or of one adapter."""
    badges = " + ".join(f"<code>{escape(each[:8])}</code>" for each in digest.split("+"))
    return f"{say(language, 'digest')} {badges}"
