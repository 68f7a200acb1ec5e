"""Battles of the arena: who is drawn, what is kept, what is held back until the vote, and what becomes of votes."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from adapters.base_model import load_base
from adapters.errors import Conflict, Forbidden, Invalid, NotFound
from adapters.renderer import ChatRenderer
from serving.arena import Duel, Outcome, duels
from serving.battle_store import Asked, Battle, BattleSide, BattleStore
from serving.battles import Battles, texts
from serving.chat import ChatService
from serving.database.database import Database
from serving.database.tables import arena_battles, comparisons
from serving.engine.sequence import FinishReason
from serving.files import FileStore
from serving.question_sets import MAX_QUESTION, MAX_QUESTIONS, QuestionSet, QuestionSets
from serving.sampling_record import Sampling
from serving.vote_export import exported, pairs, to_uploads
from serving.votes import NO_SET, UNVOTED_KEPT_S, VotedLane, VoteStore
from tests.serving.running import RunningServer
from training.data.preferences import load_preferences

POOL = ["tiny", "r2", "r8 ×0.5"]
SAMPLING = Sampling(temperature=0.8, top_p=1, top_k=0, min_p=0, repetition_penalty=1, seed=3, max_tokens=16)


@pytest.fixture
def store(database_url: str) -> Iterator[BattleStore]:
    database = Database(database_url)
    yield BattleStore(VoteStore(database))
    database.close()


def side(adapter: str, text: str, finish: FinishReason | None = FinishReason.STOP) -> BattleSide:
    return BattleSide(
        model=adapter, adapter=adapter, digest="d" * 64, scale=1, own_system="你是悟空", text=text, finish_reason=finish
    )


def kept(
    store: BattleStore,
    number: int,
    left: BattleSide,
    right: BattleSide,
    *,
    key: str = "",
    asked: Asked | None = None,
    system: str | None = None,
) -> str:
    """A battle in the database, and its id."""
    battle = Battle(
        id=f"cmp-{number:032x}",
        key=key,
        created_at=int(time.time()),
        base_name="tiny",
        base_fingerprint="f",
        asked=asked or Asked(text=f"question {number}"),
        system=system,
        sampling=SAMPLING,
        sides=(left, right),
    )
    store.begin(battle, [VotedLane(s.model, s.adapter, s.digest, s.scale, None) for s in battle.sides])
    return battle.id


def test_votes_in_the_arena_count_by_question_set_and_in_all(store: BattleStore) -> None:
    sides = side("a@1", "yes"), side("b@1", "no")
    of_set = Asked(text="who?", question_set="zh", set_title="…", number=0)
    first, second = kept(store, 1, *sides, asked=of_set), kept(store, 2, *sides)
    store.votes.remember(over_http := f"cmp-{3:032x}", "", [VotedLane(n, n, None, 1, None) for n in ("a@1", "b@1")])
    for comparison, choice in ((first, 0), (second, 1), (over_http, "tie")):
        store.votes.vote(comparison, "voter", choice)
    names = ("a@1", "b@1")
    assert store.votes.outcomes() == Counter({Outcome(names, 0): 1, Outcome(names, 1): 1, Outcome(names, None): 1})
    assert store.votes.outcomes("zh") == Counter({Outcome(names, 0): 1})
    assert store.votes.outcomes(NO_SET) == Counter({Outcome(names, 1): 1})
    assert store.votes.outcomes("en") == Counter() and store.votes.arena("en").votes == 0


def test_a_battle_nobody_votes_on_goes_with_its_comparison(store: BattleStore) -> None:
    voted, unvoted = (kept(store, number, side("a", "x"), side("b", "y")) for number in (1, 2))
    store.votes.vote(voted, "", "tie")
    with store.database.writing() as connection:
        connection.execute(sa.update(comparisons).values(created_at=comparisons.c.created_at - UNVOTED_KEPT_S - 1))
    kept(store, 3, side("a", "x"), side("b", "y"))
    with store.database.reading() as connection:
        left = set(connection.execute(sa.select(arena_battles.c.comparison_id)).scalars())
    assert voted in left and unvoted not in left
    with pytest.raises(NotFound, match="no such battle"):
        store.get(unvoted)
    assert store.clear() == 1 and store.cast(None) == []


def test_pairs_are_what_most_prefer_and_whole(store: BattleStore) -> None:
    """(left, right, votes) and whether a pair comes of it."""
    whole, cut = side("a", "good"), side("a", "goo", FinishReason.LENGTH)
    other, empty = side("b", "bad"), side("b", " ")
    cases = [
        (whole, other, [0], "good"),
        (whole, other, [1, 1, 0], "bad"),
        (whole, other, [0, 1], None),
        (whole, other, ["tie"], None),
        (whole, other, ["both_bad", "both_bad", 0], None),
        (cut, other, [0], None),
        (cut, other, [1], "bad"),
        (whole, empty, [0], None),
        (whole, side("b", "good"), [0], None),
    ]
    for number, (left, right, choices, _) in enumerate(cases):
        battle = kept(store, number, left, right)
        for voter, choice in enumerate(choices):
            store.votes.vote(battle, f"voter {voter}", choice)
    found = {pair.battle.asked.text: pair.chosen.text for pair in pairs(store.cast(None))}
    wanted = {f"question {number}": text for number, (*_, text) in enumerate(cases) if text}
    assert found == wanted


def test_pairs_are_read_by_dpo_training_as_they_were_said(tiny_base: Path, tmp_path: Path) -> None:
    store = BattleStore(VoteStore(Database(f"sqlite:///{tmp_path}/b.db")))
    for number in range(3):
        battle = kept(
            store, number, side("a", f"yes {number}"), side("b", "no"), system="Be brief." if number else None
        )
        store.votes.vote(battle, "", 0)
    files = FileStore(tmp_path / "uploads")
    stored = to_uploads(store.cast(None), files)
    assert stored.purpose == "fine-tune" and stored.filename.endswith(".jsonl")
    read = tmp_path / stored.filename
    read.write_bytes(files.path(stored.id, "fine-tune").read_bytes())
    base = load_base(str(tiny_base), device="cpu", dtype="float32")
    renderer = ChatRenderer(base.tokenizer, base.stop_token_ids)
    data = load_preferences([read], renderer, objective="dpo", max_length=256)
    assert data.report.formats == {str(read): "dpo"} and (data.report.good, data.report.bad) == (3, [])
    for number, row in enumerate(data.rows):
        system = [{"role": "system", "content": "Be brief."}] if number else []
        asked = [*system, {"role": "user", "content": f"question {number}"}]
        assert row.prompt_ids == renderer.prompt_ids(asked, thinking=False)
        assert base.tokenizer.decode(row.chosen.answer_ids, skip_special_tokens=True).strip() == f"yes {number}"
        assert base.tokenizer.decode(row.rejected.answer_ids, skip_special_tokens=True).strip() == "no"
    store.database.close()


def test_every_vote_is_exported_with_all_it_is_on(store: BattleStore) -> None:
    of_set = Asked(text="谁？", question_set="zh", set_title="十二问", number=4)
    battle = kept(store, 1, side("a@1", "甲"), side("b@2", "乙"), asked=of_set, system="S", key="asker")
    store.votes.vote(battle, "mine", 1)
    store.votes.remember(over_http := f"cmp-{2:032x}", "", [VotedLane(n, n, None, 1, None) for n in ("a", "b")])
    store.votes.vote(over_http, "other", "tie")
    rows = [json.loads(line) for line in exported(store.cast(None), "votes").splitlines()]
    by_id = {row["comparison_id"]: row for row in rows}
    row = by_id[battle]
    assert (row["voter"], row["choice"], row["winner"], row["question"]) == ("mine", "right", "b@2", "谁？")
    assert row["question_set"] == {"question_set": "zh", "set_title": "十二问", "number": 4}
    assert row["sampling"] == SAMPLING.model_dump() and row["system"] == "S"
    assert row["base"] == {"name": "tiny", "fingerprint": "f"}
    left, right = row["lanes"]
    assert (left["side"], left["adapter"], left["digest"], left["text"]) == ("left", "a@1", "d" * 64, "甲")
    assert (right["scale"], right["own_system"], right["finish_reason"]) == (1, "你是悟空", "stop")
    assert by_id[over_http]["choice"] == "tie" and "question" not in by_id[over_http]
    assert [vote.comparison_id for vote in store.cast("mine")] == [battle]  # users take their own
    with pytest.raises(Invalid, match="no vote to export"):
        exported(store.cast("nobody"), "votes")


def test_duels_are_counted_from_both_sides() -> None:
    met = duels({Outcome(("a", "b"), 0): 3, Outcome(("b", "a"), 0): 1, Outcome(("a", "b"), None): 2})
    assert met["a", "b"] == Duel(3, 1, 2) and met["b", "a"] == Duel(1, 3, 2)
    assert met["a", "b"].share == pytest.approx(4 / 6)
    three = duels({Outcome(("a", "b", "c"), 1): 1})
    assert three["b", "a"] == three["b", "c"] == Duel(1, 0, 0) and ("a", "c") not in three


def test_question_sets_are_their_owners_and_bundled_ones_everybodys(store: BattleStore) -> None:
    sets = QuestionSets(store.database)
    mine = sets.add("me", " Mine ", "one?\n\n two? \none?\n")
    assert (mine.title, mine.questions) == ("Mine", ("one?", "two?"))
    bundled = sets.all("you", admin=False)
    assert [each.id for each in bundled] == ["zh", "en"] and all(len(each.questions) == 12 for each in bundled)
    assert sets.all("me", admin=False)[2:] == [mine] == sets.all("admin", admin=True)[2:]
    with pytest.raises(NotFound):
        sets.delete("you", mine.id, admin=False)
    with pytest.raises(Forbidden, match="bundled"):
        sets.delete("admin", "zh", admin=True)
    with pytest.raises(Conflict, match="already"):
        sets.add("me", "Mine", "three?")
    for title, text, param in (
        ("", "one?", "title"),
        ("x", " \n", "questions"),
        ("x", "a" * (MAX_QUESTION + 1), "questions"),
        ("x", "\n".join(map(str, range(MAX_QUESTIONS + 1))), "questions"),
    ):
        with pytest.raises(Invalid) as refused:
            sets.add("me", title, text)
        assert refused.value.param == param
    sets.delete("me", mine.id, admin=False)
    assert sets.all("me", admin=False) == bundled


@pytest.fixture
def chat(server: RunningServer) -> ChatService:
    return server.services.chat


def battles_on(server: RunningServer, seed: int = 0) -> Battles:
    """As the page has them, with dice that fall the same way every time."""
    return Battles(server.services.chat, BattleStore(VoteStore(server.services.database)), random.Random(seed))


async def fought(battles: Battles, key: str = "", asked: Asked | None = None, **options: object) -> Battle:
    params = battles.chat.default_params()
    live = await battles.start(key, asked or Asked(text="who?"), POOL, params, max_tokens=8, **options)
    async for battle in live.watch():
        last = battle
    return last


def test_the_dice_draw_every_pair_and_both_sides(server: RunningServer) -> None:
    async def drawn() -> Counter[tuple[str, str]]:
        battles = battles_on(server)
        return Counter([tuple(side.label for side in (await fought(battles)).sides) for _ in range(40)])

    pairs_drawn = asyncio.run(drawn())
    labels = ["tiny", "r2@1", "r8@1 ×0.5"]
    assert set(pairs_drawn) == {(one, other) for one in labels for other in labels if one != other}


def test_a_battle_is_kept_and_voted_on_once_by_who_asked(server: RunningServer) -> None:
    async def walk() -> None:
        battles = battles_on(server)
        battle = await fought(battles, "me", system="Be brief.")
        assert battle.can_be_voted_on and texts(battle) == tuple(side.text for side in battle.sides)
        assert await battles.get("me", battle.id, admin=False) == battle  # from the database, to the letter
        assert battle.sampling.seed is not None and battle.system == "Be brief."
        for side in battle.sides:
            assert side.tokens and (side.digest is None) == (side.adapter == "tiny")
        with pytest.raises(Forbidden):
            await battles.get("you", battle.id, admin=False)
        with pytest.raises(Forbidden):
            await battles.vote("you", battle.id, "left", admin=False)
        with pytest.raises(Invalid, match="left, right, tie, both_bad"):
            await battles.vote("me", battle.id, "middle", admin=False)
        assert await battles.choice("me", battle) is None
        await battles.vote("me", battle.id, "right", admin=False)
        assert await battles.choice("me", battle) == "right"
        with pytest.raises(Conflict, match="know the names"):
            await battles.vote("me", battle.id, "left", admin=False)
        [vote] = battles.store.cast("me")
        assert (vote.choice, vote.battle) == ("1", battle)

    asyncio.run(walk())
    # Over HTTP a battle is as blind, and its vote as final.
    [voted] = [vote.battle for vote in battles_on(server).store.cast("me") if vote.battle]
    unvoted = asyncio.run(fought(battles_on(server)))
    for comparison, choice, status in (
        (unvoted.id, unvoted.sides[0].adapter, 400),
        (unvoted.id, "nobody", 400),
        (unvoted.id, 2, 400),
        (unvoted.id, 0, 200),
        (unvoted.id, 0, 200),
        (unvoted.id, 1, 409),
        (voted.id, "tie", 200),  # another voter
    ):
        reply = httpx.post(f"{server.url}/v1/votes", json={"comparison_id": comparison, "choice": choice})
        assert reply.status_code == status, reply.text
        if status == 400:
            assert not any(side.adapter in reply.json()["error"]["message"] for side in unvoted.sides)
    reply = httpx.get(f"{server.url}/v1/arena")
    assert reply.json()["votes"] == 3  # the API sees the same votes


def test_a_battle_goes_on_unwatched_and_cannot_be_voted_on_before_its_end(server: RunningServer) -> None:
    async def walk() -> None:
        battles = battles_on(server)
        live = await battles.start("", Asked(text="who?"), POOL, battles.chat.default_params(), max_tokens=64)
        with pytest.raises(Conflict, match="must have ended"):
            await battles.vote("", live.id, "left", admin=True)
        steps = live.watch()
        await anext(steps)
        await steps.aclose()  # the page is reloaded
        again = battles.live(live.id)
        assert again is live
        live.stop()
        async for battle in again.watch():
            last = battle
        assert all(side.finish_reason for side in last.sides)
        assert await battles.store.database.call(battles.store.get, live.id) == last

    asyncio.run(walk())


def test_texts_are_held_back_until_both_sides_have_begun() -> None:
    def battle(left: BattleSide, right: BattleSide) -> Battle:
        return Battle(
            id="cmp-", key="", created_at=0, base_name="", base_fingerprint="", asked=Asked(text="?"), system=None,
            sampling=SAMPLING, sides=(left, right),
        )  # fmt: skip

    fast, waiting, silent = side("a", "fast", None), side("b", "", None), side("b", "")
    assert texts(battle(fast, waiting)) == ("", "")
    assert texts(battle(fast, silent)) == ("fast", "")
    assert not battle(fast, silent).can_be_voted_on
    broken = side("b", "half", FinishReason.ERROR)
    assert not battle(silent, broken).can_be_voted_on and battle(silent, silent).can_be_voted_on


@pytest.mark.parametrize(
    ("pool", "error"),
    [
        ([], Invalid),
        (["tiny"], Invalid),
        (["r2", "r2@1", "r2 ×1"], Invalid),
        (["tiny", "tiny ×0.5"], Invalid),
        (["tiny", "r2 ×9"], Invalid),
        (["tiny", "nobody"], NotFound),
        (["tiny", "'; DROP TABLE votes; --"], NotFound),
        ([f"r2 ×{number / 100}" for number in range(40)], Invalid),
    ],
)
def test_a_pool_of_less_than_two_or_of_strangers_is_refused(
    server: RunningServer, pool: list[str], error: type[Exception]
) -> None:
    with pytest.raises(error) as refused:
        battles_on(server).contestants(pool)
    assert refused.value.param in ("pool", "model", None)


def test_the_next_question_is_the_one_asked_the_fewest_times(server: RunningServer) -> None:
    questions = QuestionSet("qs-next", "me", "Next", ("one?", "two?", "three?"))

    async def walk() -> list[str]:
        battles, said = battles_on(server), []
        for _ in range(4):
            asked = await battles.next_question("me", questions)
            said.append(asked.text)
            await fought(battles, "me", asked)
        assert (await battles.next_question("you", questions)).text == "one?"
        return said

    assert asyncio.run(walk()) == ["one?", "two?", "three?", "one?"]
