"""Comparisons that are kept: nobody needs to watch them, they can be continued, and replayed after a restart."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import Conflict, Invalid, NotFound
from app import Services, build_services
from serving.compare import Lane
from serving.comparison_store import ComparisonStore, SavedComparison, new_id
from serving.comparisons import Comparisons, ReplayStep
from serving.database.database import Database
from serving.engine.sequence import FinishReason, SamplingParams
from serving.live_turn import LiveTurn
from tests import tiny
from tests.serving.running import settings_for

QUESTION = "你好，你是谁？"
SEEDED = SamplingParams(temperature=1.0, top_p=0.9, seed=11)
GREEDY = SamplingParams(temperature=0)


def run(
    base: Path, adapters: dict[str, Path], home: Path, use: Callable[[Comparisons], Coroutine[Any, Any, None]]
) -> None:
    """Start a server's services on `home`, use them, and stop them."""
    services: Services = build_services(
        settings_for(base, home, adapter=[f"{name}={path}" for name, path in adapters.items()])
    )
    try:
        asyncio.run(use(Comparisons(services.chat, ComparisonStore(services.database))))
    finally:
        services.close()


async def ended(live: LiveTurn) -> SavedComparison:
    async for _ in live.watch():
        pass
    return live.saved()


async def replayed(comparisons: Comparisons, comparison_id: str) -> ReplayStep:
    async for step in comparisons.replay(comparison_id):
        last = step
    return last


def verdicts(step: ReplayStep) -> dict[tuple[int, int], str]:
    return {(verdict.turn, verdict.slot): verdict.verdict for verdict in step.verdicts}


LANES = {0: Lane("base"), 1: Lane("r8"), 3: Lane("r8", -0.5, "你是助手。"), 5: Lane("r4", 1.5, "")}


def test_a_comparison_is_read_continued_and_replayed_to_the_same_text_after_a_restart(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    used = {name: tiny_adapters[name] for name in ("r4", "r8")}
    kept: list[SavedComparison] = []

    async def ask(comparisons: Comparisons) -> None:
        live = await comparisons.ask(None, QUESTION, LANES, SEEDED, 24)
        assert await comparisons.get(live.id) == live.saved()
        first = await ended(live)
        assert comparisons.live(live.id) is None
        # A lane that was not there continues with the others, and has seen nothing of the first turn.
        lanes = {**LANES, 2: Lane("base")}
        second = await ended(await comparisons.ask(live.id, "然后呢？", lanes, GREEDY, 16))
        assert second.turns[0] == first.turns[0] and second.id == first.id
        assert [len(second.conversation(slot, 1)) for slot in (0, 1, 2, 3, 5)] == [2, 2, 0, 2, 2]
        kept.append(second)

    async def again(comparisons: Comparisons) -> None:
        saved = await comparisons.get(kept[0].id)
        assert saved == kept[0]
        for turn in saved.turns:
            for lane in turn.lanes:
                assert lane.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) and lane.token_ids
                assert (lane.digest is None) == (lane.model == "base") == (lane.version is None)
        assert len({lane.token_ids for lane in saved.turns[0].lanes}) > 1
        step = await replayed(comparisons, saved.id)
        assert set(verdicts(step).values()) == {"identical"} and len(step.verdicts) == 9
        # Nor does it matter what the prefix cache has by now.
        assert verdicts(await replayed(comparisons, saved.id)) == verdicts(step)
        assert await comparisons.get(saved.id) == saved

    run(tiny_base, used, tmp_path, ask)
    run(tiny_base, used, tmp_path, again)


def test_a_replay_says_which_versions_are_gone_and_what_differs(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    kept: list[str] = []

    async def ask(comparisons: Comparisons) -> None:
        saved = await ended(await comparisons.ask(None, QUESTION, {0: Lane("base"), 1: Lane("r8")}, GREEDY, 8))
        kept.append(saved.id)
        text = saved.turns[0].lanes[0].model_copy(update={"token_ids": (1, 2, 3)})
        turn = saved.turns[0].model_copy(update={"lanes": (text, saved.turns[0].lanes[1])})
        forged = saved.model_copy(update={"id": new_id(), "turns": (turn,)})
        comparisons.store.put(forged)
        assert verdicts(await replayed(comparisons, forged.id)) == {(0, 0): "differs", (0, 1): "identical"}

    async def other_weights(comparisons: Comparisons) -> None:
        step = await replayed(comparisons, kept[0])
        assert verdicts(step) == {(0, 0): "identical", (0, 1): "gone"}
        assert "r8@1" in next(verdict.why for verdict in step.verdicts if verdict.verdict == "gone")

    async def other_base(comparisons: Comparisons) -> None:
        with pytest.raises(Invalid, match="made on base"):
            await replayed(comparisons, kept[0])
        with pytest.raises(Invalid, match="made on base"):
            await comparisons.ask(kept[0], "?", {0: Lane("base")}, GREEDY, 8)

    run(tiny_base, {"r8": tiny_adapters["r8"]}, tmp_path, ask)
    run(tiny_base, {"r8": tiny_adapters["r4"]}, tmp_path, other_weights)
    run(tiny.save_base(tmp_path / "other", seed=1), {}, tmp_path, other_base)


def test_answers_go_on_unwatched_stop_when_told_and_are_one_at_a_time(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    endless = SamplingParams(temperature=0, ignore_eos=True)

    async def use(comparisons: Comparisons) -> None:
        live = await comparisons.ask(None, QUESTION, {0: Lane("base"), 1: Lane("r8")}, endless, 400)
        watcher: AsyncGenerator[set[int], None] = live.watch()
        assert await anext(watcher) == {0, 1}
        await watcher.aclose()  # a page that goes away
        with pytest.raises(Conflict, match="still answering"):
            await comparisons.ask(live.id, "?", {0: Lane("base")}, endless, 8)
        live.stop()
        saved = await ended(live)
        assert {lane.finish_reason for lane in saved.turns[0].lanes} == {FinishReason.ABORT}
        assert comparisons.store.get(saved.id) == saved

    run(tiny_base, {"r8": tiny_adapters["r8"]}, tmp_path, use)


def test_a_refused_question_leaves_nothing_behind(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    async def use(comparisons: Comparisons) -> None:
        with pytest.raises(NotFound, match="nobody"):
            await comparisons.ask(None, QUESTION, {0: Lane("base"), 1: Lane("nobody")}, GREEDY, 8)
        assert comparisons.store.recent(None) == [] and comparisons._live == {}
        saved = await ended(await comparisons.ask(None, QUESTION, {0: Lane("base"), 1: Lane("r8")}, GREEDY, 8))
        with pytest.raises(Invalid, match="maximum context length"):
            await comparisons.ask(saved.id, "长" * 600, {0: Lane("base"), 1: Lane("r8")}, GREEDY, 8)
        assert await comparisons.get(saved.id) == saved

    run(tiny_base, {"r8": tiny_adapters["r8"]}, tmp_path, use)


def test_lanes_without_a_system_prompt_get_none_and_the_lane_says_what_it_was_asked_under(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    from adapters.base_model import fingerprint_of
    from adapters.manifest import AdapterManifest

    directory = tiny.copy(tiny_adapters["r8"], tmp_path / "persona")
    AdapterManifest(
        name="persona",
        base_name=tiny_base.name,
        base_fingerprint=fingerprint_of(tiny_base),
        template_hash="",
        system_prompt="你是孙悟空。",
    ).write(directory)

    async def use(comparisons: Comparisons) -> None:
        lanes = {
            0: Lane("persona"),
            1: Lane("persona", 1.0, ""),
            2: Lane("base"),
            3: Lane("persona", 1.0, "你是孙悟空。"),
        }
        saved = await ended(await comparisons.ask(None, QUESTION, lanes, GREEDY, 8))
        own, none, base, given = saved.turns[0].lanes
        assert own.prompt_sha256 == given.prompt_sha256 != none.prompt_sha256 == base.prompt_sha256
        assert own.token_ids == given.token_ids
        assert own.own_system == "你是孙悟空。" and base.own_system is None
        scores = await comparisons.token_scores(saved, 0, 0)
        other = await comparisons.token_scores(saved, 0, 0, base_prompt="own")
        assert [score.logprob for score in scores] == pytest.approx([score.logprob for score in other], abs=1e-6)
        assert [score.base_logprob for score in scores] != [score.base_logprob for score in other]

    run(tiny_base, {"persona": directory}, tmp_path / "home", use)


def saved_by(key: str) -> SavedComparison:
    return SavedComparison(id=new_id(), key=key, base_name="b", base_fingerprint="f", created_at=1)


def test_lists_and_deletions_are_the_owners_and_links_are_anybodys(database_url: str) -> None:
    database = Database(database_url)
    try:
        store = ComparisonStore(database)
        mine, theirs = saved_by("me"), saved_by("them")
        for each in (mine, theirs):
            store.put(each)
        assert [found.id for found in store.recent("me")] == [mine.id]
        assert {found.id for found in store.recent(None)} == {mine.id, theirs.id}
        assert store.get(theirs.id) == theirs
        with pytest.raises(NotFound):
            store.delete(theirs.id, "me")
        store.delete(mine.id, "me")
        store.delete(theirs.id, None)
        for gone in (mine.id, theirs.id, "c-../../etc/passwd", ""):
            with pytest.raises(NotFound, match="does not exist"):
                store.get(gone)
    finally:
        database.close()
