"""The lanes' last answers in another view than as they were said."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Literal

from adapters.errors import BianlianError
from adapters.ui.words import Language
from serving.comparison_store import SavedComparison, SavedLane, SavedTurn, slots_of
from serving.comparisons import BasePrompt, Comparisons
from serving.ui.compare.drawing import letter
from serving.ui.compare.panels import diff_panel, hint_panel, reference_panel, token_panel, trouble_panel

View = Literal["answers", "diff", "tokens"]


async def panels(
    comparisons: Comparisons,
    saved: SavedComparison,
    view: View,
    base_prompt: BasePrompt,
    key: str,
    language: Language,
) -> AsyncGenerator[dict[int, str], None]:
    """HTML by slot, of the lanes of the last turn: at once what is known, then what takes a moment."""
    turn = saved.turns[-1]
    if view == "diff":
        yield await asyncio.to_thread(_diffs, turn, language)
        return
    slots = slots_of(saved.turns)
    yield dict.fromkeys(slots, hint_panel(language, "computing"))
    scored = [_scored(comparisons, saved, slot, base_prompt, key, language) for slot in slots]
    yield dict(zip(slots, await asyncio.gather(*scored), strict=True))


def _diffs(turn: SavedTurn, language: Language) -> dict[int, str]:
    reference, *others = turn.lanes
    found = {reference.slot: reference_panel(_asked(turn, reference.slot, language), reference.text, language)}
    return found | {lane.slot: _diff(turn, reference, lane, language) for lane in others}


def _diff(turn: SavedTurn, reference: SavedLane, lane: SavedLane, language: Language) -> str:
    if not lane.answered:
        return hint_panel(language, "unanswered")
    return diff_panel(_asked(turn, lane.slot, language), reference.text, lane.text, language)


async def _scored(
    comparisons: Comparisons,
    saved: SavedComparison,
    slot: int,
    base_prompt: BasePrompt,
    key: str,
    language: Language,
) -> str:
    last = len(saved.turns) - 1
    lane = saved.turns[last].of(slot)
    if lane is None or not lane.token_ids:
        return hint_panel(language, "unanswered")
    try:
        scores = await comparisons.token_scores(saved, last, slot, base_prompt=base_prompt, key=key)
    except BianlianError as error:
        return trouble_panel(error.message)
    base = comparisons.chat.base
    stops = [str(base.tokenizer.decode([token])) for token in base.stop_token_ids]
    return token_panel(_asked(saved.turns[last], slot, language), scores, stops, language)


def _asked(turn: SavedTurn, slot: int, language: Language) -> str:
    return f"{letter(slot, language)} · {turn.question}"
