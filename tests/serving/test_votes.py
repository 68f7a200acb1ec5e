"""Votes on comparisons, and the scores made of them."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import httpx
import pytest
import sqlalchemy as sa

from serving.arena import ELO, MEAN_SCORE, Arena, Outcome, rank
from serving.database.database import Database
from serving.database.tables import comparisons
from serving.keys import KeyStore
from serving.votes import UNVOTED_KEPT_S, VotedLane, VoteStore
from tests.serving.running import GREEDY, QUESTION, RunningServer


def games(*results: tuple[str, str, int, int, int]) -> Arena:
    """(a, b, won by a, won by b, ties), ..."""
    outcomes: Counter[Outcome] = Counter()
    for a, b, won, lost, tied in results:
        for winner, count in ((0, won), (1, lost), (None, tied)):
            if count:
                outcomes[Outcome((a, b), winner)] += count
    return rank(outcomes)


def by_name(arena: Arena) -> dict[str, float]:
    return {standing.contestant: standing.score for standing in arena.standings}


def test_three_wins_in_four_are_three_to_one_and_ties_half_a_win_each() -> None:
    for arena in (games(("a", "b", 75_000, 25_000, 0)), games(("a", "b", 50_000, 0, 50_000))):
        scores = by_name(arena)
        assert scores["a"] - scores["b"] == pytest.approx(400 * math.log10(3), abs=0.1)
        assert scores["a"] + scores["b"] == pytest.approx(2 * MEAN_SCORE)
    [first, second] = games(("a", "b", 6, 2, 2)).standings
    assert (first.contestant, first.comparisons, first.wins, first.ties) == ("a", 10, 6, 2)
    assert (second.wins, second.ties) == (2, 2)


def test_the_interval_of_two_is_that_of_the_log_odds() -> None:
    """n even votes say n/4 of information on the difference; the imaginary opponent 1/2 on each strength."""
    [first, second] = games(("a", "b", 200, 200, 0)).standings
    information = 400 / 4 + 1 / 4
    assert first.score == second.score == pytest.approx(MEAN_SCORE)
    assert first.high - first.low == pytest.approx(2 * 1.959964 * ELO * math.sqrt(1 / information) / 2, rel=1e-6)


def test_one_vote_moves_a_little_and_unanimity_stays_finite() -> None:
    one, many = games(("a", "b", 1, 0, 0)), games(("a", "b", 1000, 0, 0))
    for arena in (one, many):
        [best, worst] = arena.standings
        assert best.contestant == "a" and best.score > worst.score and math.isfinite(best.high - worst.low)
    assert one.standings[0].low < MEAN_SCORE < one.standings[0].high  # one vote settles nothing
    assert many.standings[0].low > MEAN_SCORE
    assert 400 < many.standings[0].score - many.standings[1].score < 1600


def test_models_never_compared_are_said_to_be_so_and_vaguely_placed() -> None:
    apart = games(("a", "b", 30, 10, 0), ("c", "d", 30, 10, 0))
    joined = games(("a", "b", 30, 10, 0), ("c", "d", 30, 10, 0), ("a", "c", 20, 20, 0), ("b", "d", 20, 20, 0))
    assert not apart.connected and joined.connected
    assert by_name(apart)["a"] == pytest.approx(by_name(apart)["c"])

    def width(arena: Arena) -> float:
        return arena.standings[0].high - arena.standings[0].low

    assert width(apart) > 2 * width(joined)


def test_no_votes_and_votes_between_lanes_of_one_model_rank_nobody() -> None:
    assert rank({}) == Arena((), 0, True) == rank({Outcome(("a", "a"), 0): 5})


def test_more_lanes_are_luces_choice() -> None:
    """Chosen in proportion to strength; equal shares of a tie."""
    counts = {0: 60_000, 1: 30_000, 2: 10_000}
    scores = by_name(rank({Outcome(("a", "b", "c"), winner): count for winner, count in counts.items()}))
    assert scores["a"] - scores["b"] == pytest.approx(400 * math.log10(2), abs=0.2)
    assert scores["b"] - scores["c"] == pytest.approx(400 * math.log10(3), abs=0.2)
    tied = rank({Outcome(("a", "b", "c"), None): 9})
    assert list(by_name(tied).values()) == pytest.approx([MEAN_SCORE] * 3)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth = {"a": 0.8, "b": 0.2, "c": -0.3, "d": -0.7}  # centred
    dice = random.Random(1)
    held = 0
    for _ in range(100):
        outcomes: Counter[Outcome] = Counter()
        for a, b in combinations(truth, 2):
            for _ in range(40):
                won = dice.random() < 1 / (1 + math.exp(truth[b] - truth[a]))
                outcomes[Outcome((a, b), 0 if won else 1)] += 1
        for standing in rank(outcomes).standings:
            held += standing.low <= MEAN_SCORE + ELO * truth[standing.contestant] <= standing.high
    assert 0.92 <= held / 400 <= 0.98


LANES = [VotedLane("tiny", "tiny", None, 1.0, None), VotedLane("r8", "r8@1", "d" * 64, 1.0, None)]
ID = "cmp-" + "0" * 32


@pytest.fixture
def store(database_url: str) -> Iterator[VoteStore]:
    database = Database(database_url)
    yield VoteStore(database)
    database.close()


def test_a_voter_who_votes_many_times_at_once_has_one_vote(store: VoteStore) -> None:
    store.remember(ID, "asker", LANES)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.vote(ID, "voter", number % 2), range(40)))
    assert store.arena().votes == 1
    store.vote(ID, "x'); DELETE FROM votes; --", "tie")
    assert store.arena().votes == 2


def test_comparisons_nobody_voted_on_are_forgotten_after_a_month(store: VoteStore) -> None:
    ids = [f"cmp-{number:032x}" for number in range(3)]
    store.remember(ids[0], "", LANES)
    store.remember(ids[1], "", LANES)
    store.vote(ids[0], "", 0)
    with store.database.writing() as connection:
        connection.execute(sa.update(comparisons).values(created_at=comparisons.c.created_at - UNVOTED_KEPT_S - 1))
    store.remember(ids[2], "", LANES)
    with store.database.reading() as connection:
        assert set(connection.execute(sa.select(comparisons.c.id)).scalars()) == {ids[0], ids[2]}


def test_strengths_and_unshared_system_prompts_compete_as_what_they_are(store: VoteStore) -> None:
    half = VotedLane("r8", "r8@1", "d" * 64, 0.5, None)
    told = VotedLane("tiny", "tiny", None, 1.0, "1a2b3c4d")
    for number, lanes in enumerate(([LANES[1], half], [told, LANES[0]], [told, told])):
        comparison = f"cmp-{number:032x}"
        store.remember(comparison, "", lanes)
        store.vote(comparison, "", 0)
    arena = store.arena()
    assert arena.votes == 2 and not arena.connected
    assert set(by_name(arena)) == {"r8@1", "r8@1 ×0.5", "tiny", "tiny system:1a2b3c4d"}


@pytest.fixture(scope="module")
def voters(server: RunningServer) -> list[dict[str, str]]:
    """Headers of three voters."""
    store = KeyStore(server.services.database)
    return [{"authorization": f"Bearer {store.create(f'voter {number}')[1]}"} for number in range(3)]


def compared(server: RunningServer, headers: dict[str, str], *lanes: dict) -> str:
    """The id of a comparison, as its events and its header say it."""
    body = {"messages": QUESTION, "lanes": list(lanes), **GREEDY}
    reply = httpx.post(f"{server.url}/v1/compare", json=body, headers=headers, timeout=30)
    assert reply.status_code == 200, reply.text
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    said = {event["comparison_id"] for event in events if event["type"] != "delta"}
    assert said == {reply.headers["x-bianlian-comparison"]}
    return reply.headers["x-bianlian-comparison"]


def vote(server: RunningServer, headers: dict[str, str], comparison: object, choice: object) -> httpx.Response:
    body = {"comparison_id": comparison, "choice": choice}
    return httpx.post(f"{server.url}/v1/votes", json=body, headers=headers)


def arena_of(server: RunningServer, headers: dict[str, str]) -> dict:
    reply = httpx.get(f"{server.url}/v1/arena", headers=headers)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_votes_count_once_a_voter_can_be_changed_and_rank_the_versions(
    server: RunningServer, voters: list[dict[str, str]]
) -> None:
    assert arena_of(server, voters[0]) == {"object": "list", "votes": 0, "connected": True, "data": []}
    comparison = compared(server, voters[0], {"model": "tiny"}, {"model": "r8"})
    first = vote(server, voters[0], comparison, 0)
    assert first.status_code == 200
    assert first.json() == {
        "object": "vote",
        "comparison_id": comparison,
        "choice": 0,
        "winner": "tiny",
        "changed": False,
    }
    assert vote(server, voters[0], comparison, 0).json()["changed"] is False
    again = vote(server, voters[0], comparison, "r8").json()
    assert (again["choice"], again["winner"], again["changed"]) == (1, "r8@1", True)
    assert vote(server, voters[1], comparison, "r8@1").json()["choice"] == 1
    assert vote(server, voters[2], comparison, "both_bad").json()["winner"] is None
    arena = arena_of(server, voters[0])
    assert arena["votes"] == 3
    best, worst = arena["data"]
    assert (best["model"], best["wins"], best["ties"], best["comparisons"]) == ("r8@1", 2, 1, 3)
    assert (worst["model"], worst["wins"]) == ("tiny", 0)
    low, high = best["confidence_interval"]
    assert low < best["score"] < high and best["score"] > MEAN_SCORE > worst["score"]
    assert best["score"] + worst["score"] == pytest.approx(2 * MEAN_SCORE)


@pytest.mark.parametrize(
    ("choice", "status", "param"),
    [
        (2, 400, "choice"),
        (-1, 400, "choice"),
        (10**30, 400, "choice"),
        (True, 400, "choice"),
        (0.0, 400, "choice"),
        (None, 400, "choice"),
        ("nobody", 400, "choice"),
        ("'; DROP TABLE votes; --", 400, "choice"),
        ("tie", 200, None),
    ],
)
def test_a_choice_the_comparison_does_not_have_is_refused(
    server: RunningServer, voters: list[dict[str, str]], choice: object, status: int, param: str | None
) -> None:
    comparison = compared(server, voters[0], {"model": "r2"}, {"model": "r8", "scale": 0.5})
    reply = vote(server, voters[0], comparison, choice)
    assert reply.status_code == status, reply.text
    if param:
        assert reply.json()["error"]["param"] == param


def test_lanes_of_one_model_are_chosen_by_number_and_one_lane_is_no_choice(
    server: RunningServer, voters: list[dict[str, str]]
) -> None:
    same = compared(server, voters[0], {"model": "r2"}, {"model": "r2", "scale": 0.5})
    refused = vote(server, voters[0], same, "r2")
    assert refused.status_code == 400 and "[0, 1]" in refused.json()["error"]["message"]
    assert vote(server, voters[0], same, 1).json()["winner"] == "r2@1"
    alone = compared(server, voters[0], {"model": "r2"})
    assert vote(server, voters[0], alone, 0).status_code == 400


@pytest.mark.parametrize("comparison", ["cmp-" + "0" * 32, "", "cmp-\0", "' OR 1=1 --", "c" * 64])
def test_an_unknown_comparison_is_404(server: RunningServer, voters: list[dict[str, str]], comparison: str) -> None:
    reply = vote(server, voters[0], comparison, 0)
    assert reply.status_code == 404 and reply.json()["error"]["code"] == "comparison_not_found"


def test_without_a_key_nobody_votes(server: RunningServer, voters: list[dict[str, str]]) -> None:
    comparison = compared(server, voters[0], {"model": "tiny"}, {"model": "r8"})
    assert vote(server, {}, comparison, 0).status_code == 401
    assert httpx.get(f"{server.url}/v1/arena").status_code == 401
