"""A comparison as the page shows it: conversations as bubbles, one line of figures a lane, what a replay found."""

import html
import time
from collections.abc import Sequence

from adapters.ui.tab import link_to
from adapters.ui.words import Language
from serving.comparison_store import SavedComparison, SavedLane, SavedTurn, Summary
from serving.comparisons import LaneVerdict, ReplayStep
from serving.ui.compare.panels import escaped
from serving.ui.compare.words import say
from serving.ui.stats import NO_STATS, digest_badge, stats_line
from serving.ui.turns import Bubble, bubble, thought


def letter(slot: int, language: Language) -> str:
    return say(language, "lane")[slot]


def bubbles(saved: SavedComparison, slot: int, language: Language) -> list[Bubble]:
    """All that a lane was asked and said. Only the last question may lack an answer; no prompt has such."""
    shown: list[Bubble] = []
    for number, turn in enumerate(saved.turns):
        lane = turn.of(slot)
        last = number == len(saved.turns) - 1
        if lane and (lane.answered or last):
            shown += [bubble("user", turn.question), *_answer(lane, language)]
    return shown


def stats(turn: SavedTurn, slot: int, base_name: str, language: Language, *, running: bool) -> str:
    """Who answered last, under which prompt, and how fast; class `done` once the lane has ended."""
    lane = turn.of(slot)
    if lane is None:
        return NO_STATS
    return stats_line(
        [_badge(lane, base_name, language), _prompt_kind(lane, language)],
        language,
        running=running,
        tokens=len(lane.token_ids),
        first_token_s=lane.first_token_s,
        tokens_per_s=lane.tokens_per_s,
        finish_reason=lane.finish_reason,
        error=lane.error,
        seed=turn.sampling.seed,
    )


def replay_notice(saved: SavedComparison, step: ReplayStep, language: Language, *, ended: bool) -> str:
    """How far a replay is; at its end, whether every text is identical."""
    turns = len(saved.turns)
    if not ended:
        return notice(say(language, "replaying", turn=step.turn + 1, turns=turns))
    bad = [verdict for verdict in step.verdicts if verdict.verdict != "identical"]
    if not bad:
        lanes = len({verdict.slot for verdict in step.verdicts})
        return notice(say(language, "all_identical", lanes=lanes, turns=turns), "good")
    found = "".join(f"<li>{_verdict(verdict, language)}</li>" for verdict in step.verdicts)
    return f'<div class="notice bad" role="status">{say(language, "not_identical")}<ul>{found}</ul></div>'


def notice(text: str, kind: str = "") -> str:
    return f'<div class="notice {kind}" role="status">{escaped(text)}</div>' if text else ""


def recent_list(found: Sequence[Summary], viewer_key: str, language: Language) -> str:
    """Links to comparisons, the latest first."""
    if not found:
        return f'<p class="hint">{say(language, "no_recent")}</p>'
    return f'<ul class="recent">{"".join(_recent(each, viewer_key, language) for each in found)}</ul>'


def _recent(summary: Summary, viewer_key: str, language: Language) -> str:
    address = html.escape(link_to("compare", comparison=summary.id))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.changed_at))
    whose = f" · {say(language, 'made_for', owner=escaped(summary.key))}" if summary.key != viewer_key else ""
    return f'<li><a href="{address}">{escaped(summary.title) or "…"}</a><time>{when}{whose}</time></li>'


def _answer(lane: SavedLane, language: Language) -> list[Bubble]:
    done = bool(lane.text or lane.finish_reason)
    thoughts = [thought(lane.reasoning, language, done=done)] if lane.reasoning else []
    return [*thoughts, *([bubble("assistant", lane.text)] if lane.text else [])]


def _badge(lane: SavedLane, base_name: str, language: Language) -> str:
    """`huanhuan@3 ×0.5 · digest 1a2b3c4d`."""
    strength = f" ×{lane.scale:g}" if lane.version and lane.scale != 1 else ""
    name = f"<b>{html.escape(lane.version or base_name)}{strength}</b>"
    return f"{name} · {digest_badge(lane.digest, language)}" if lane.digest else name


def _prompt_kind(lane: SavedLane, language: Language) -> str:
    if lane.system:
        return say(language, "given_prompt")
    return say(language, "own_prompt" if lane.own_system and lane.system is None else "no_prompt")


def _verdict(verdict: LaneVerdict, language: Language) -> str:
    where = say(language, "verdict_at", turn=verdict.turn + 1, lane=letter(verdict.slot, language))
    what = {
        "identical": say(language, "identical"),
        "differs": say(language, "differs_prompt" if verdict.why == "prompt" else "differs"),
        "gone": say(language, "gone_version", why=escaped(verdict.why)),
        "failed": say(language, "failed", why=escaped(verdict.why)),
    }[verdict.verdict]
    return where + what
