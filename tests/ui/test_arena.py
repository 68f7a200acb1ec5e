"""The Arena tab as a visitor meets it: blind until the vote, by buttons and keys, nothing lost on a reload."""

import json
import re
import uuid
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from adapters.ui.words import translations
from serving.arena import Duel, Outcome, rank
from serving.battle_store import BattleStore
from serving.files import FileStore
from serving.question_sets import QuestionSet
from serving.ui.arena.charts import chart, matrix, table
from serving.ui.arena.drawing import question_list
from serving.ui.arena.words import WORDS
from serving.votes import VoteStore
from tests.ui.browser import Server, assert_nothing_runs, said
from tests.ui.conftest import OpenPage

ARENA = "?tab=arena"
FIRST = "你是谁？请介绍一下自己。"
SECOND = "今天下雨了，我心情不太好。"


def store_of(studio: Server) -> BattleStore:
    return BattleStore(VoteStore(studio.services.database))


def letters(text: str) -> list[str]:
    """A text without what Markdown takes away."""
    return re.findall(r"[^\W\d_]", text)


def shape(message: object) -> list[str]:
    """Where every value of a message stands, without what it is."""
    if isinstance(message, dict):
        return [f"{key}.{rest}" for key, value in message.items() for rest in shape(value)]
    if isinstance(message, list):
        return [f"{place}.{rest}" for place, value in enumerate(message) for rest in shape(value)]
    return [type(message).__name__]


def votable(page: Page) -> None:
    expect(page.locator("#arena-votes")).to_be_visible()
    expect(page.locator("#arena-ask")).to_be_visible()


def draw(page: Page) -> None:
    expect(page.locator("#arena-set input")).not_to_have_value("")
    page.locator("#arena-draw").click()


@pytest.mark.browser
def test_a_drawn_question_is_voted_on_blind_by_key_and_the_next_one_follows(
    open_page: OpenPage, studio: Server
) -> None:
    page = open_page(ARENA).page
    expect(page.locator("#arena-chart")).to_contain_text("还没有票")
    draw(page)
    votable(page)
    expect(page.locator("#arena-state")).to_contain_text("日常十二问 · 第 1 / 12 题")
    for side in ("left", "right"):
        expect(page.locator(f"#arena-{side} .message.user")).to_have_text(FIRST)
    assert said(page, "arena-left") and said(page, "arena-right")

    version = studio.services.registry.resolve("wukong")
    sides, whole = (page.locator(f"#arena{part}").evaluate("e => e.outerHTML") for part in ("-sides", ""))
    for secret in (str(version), studio.services.base.name, "tokens"):
        assert secret not in sides, secret
    for secret in (str(version), version.digest[:8], "tokens/s", "摘要", "首字"):
        assert secret not in whole, secret

    # A key that is typed into a box is no vote; the same key outside of it is one.
    page.locator("#arena-question textarea").press("2")
    expect(page.locator("#arena-question textarea")).to_have_value("2")
    expect(page.locator("#arena-votes")).to_be_visible()
    page.locator("#arena-question textarea").fill("")
    page.locator("#arena-question textarea").blur()
    page.keyboard.press("2")
    expect(page.locator(".reveal .verdict")).to_contain_text("你选了右边")
    expect(page.locator("#arena-votes")).to_be_hidden()
    reveal = page.locator(".reveal")
    expect(reveal).to_contain_text(str(version))
    expect(reveal).to_contain_text(f"摘要 {version.digest[:8]}")
    expect(reveal).to_contain_text(studio.services.base.name)
    expect(reveal).to_contain_text("tokens/s")
    [vote] = store_of(studio).cast(None)
    assert vote.choice == "1" and vote.battle is not None
    names = page.locator(".reveal .card b").all_inner_texts()
    assert names == [side.label for side in vote.battle.sides]  # left is left, and right is right
    expect(page.locator(".reveal .crowned b")).to_have_text(vote.battle.sides[1].label)
    for side, name in zip(vote.battle.sides, ("left", "right"), strict=True):
        assert letters(side.text) == letters(said(page, f"arena-{name}"))
    expect(page.locator(".forest .row")).to_have_count(2)
    expect(page.locator("table.duels")).to_contain_text("100%")

    page.wait_for_function("document.activeElement.id === 'arena-next'")
    page.keyboard.press("Enter")
    expect(page.locator("#arena-left .message.user")).to_have_text(SECOND)
    expect(page.locator("#arena-reveal")).to_be_hidden()
    votable(page)
    page.keyboard.press("3")
    expect(page.locator(".reveal .verdict")).to_contain_text("你判了平局")
    expect(page.locator("table.standings tbody tr").first).to_contain_text("1")
    assert sorted(vote.choice for vote in store_of(studio).cast(None)) == ["1", "tie"]
    assert_nothing_runs(studio)


def test_nothing_the_server_sends_before_the_vote_tells_the_sides_apart(studio: Server) -> None:
    """The stream of an event as the browser gets it, read whole; and its first message, which says everything that the
    later ones change, has the same parts with the sides either way."""
    config = httpx.get(f"{studio.url}/config").json()
    ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    [ask] = [each for each in config["dependencies"] if [ids["arena-ask"], "click"] in each["targets"]]
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    inputs = {**values, ids["arena-question"]: "你是谁？", ids["arena-pool"]: ["bianlian-mini", "wukong ×0.5"]}
    version = studio.services.registry.resolve("wukong")
    shapes: dict[tuple[str, ...], list[str]] = {}
    while len(shapes) < 2:  # until the dice have fallen both ways
        session = uuid.uuid4().hex
        join = {"data": [inputs[each] for each in ask["inputs"]], "fn_index": ask["id"], "session_hash": session}
        httpx.post(f"{studio.url}/gradio_api/queue/join", json=join).raise_for_status()
        stream = httpx.get(f"{studio.url}/gradio_api/queue/data?session_hash={session}", timeout=60).text
        for secret in (str(version), version.name, version.digest[:8], "×0.5", "tokens", "bianlian-mini", "digest"):
            assert secret not in stream, secret
        battle = store_of(studio).get(re.findall("cmp-[0-9a-f]{32}", stream)[0])
        assert battle.can_be_voted_on
        events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
        outputs = [event["output"]["data"] for event in events if event["msg"].startswith("process_generating")]
        shapes[tuple(side.label for side in battle.sides)] = shape(outputs[0])
    one, other = shapes.values()
    assert one == other


@pytest.mark.browser
def test_a_reload_finds_the_battle_before_and_after_the_vote(open_page: OpenPage, studio: Server) -> None:
    before = len(store_of(studio).cast(None))
    page = open_page(ARENA).page
    page.locator("#arena-samples button").first.click()
    page.wait_for_function("location.search.includes('battle=cmp-')")
    page.reload()
    votable(page)
    texts = [said(page, f"arena-{side}") for side in ("left", "right")]
    assert all(texts)
    expect(page.locator("#arena-reveal")).to_be_hidden()
    page.locator("#arena-vote-bad").click()
    expect(page.locator(".reveal .verdict")).to_contain_text("都不好")
    page.reload()
    expect(page.locator(".reveal .verdict")).to_contain_text("都不好")
    expect(page.locator("#arena-votes")).to_be_hidden()
    assert [said(page, f"arena-{side}") for side in ("left", "right")] == texts
    assert len(store_of(studio).cast(None)) == before + 1
    page.locator("#arena-next").click()  # it was no question of a set: a new one is to be asked
    expect(page.locator("#arena-left .message")).to_have_count(0)
    page.wait_for_function("!location.search.includes('battle')")


@pytest.mark.browser
def test_own_questions_are_kept_asked_and_ranked_apart_and_become_training_data(
    open_page: OpenPage, studio: Server, tmp_path: Path
) -> None:
    page = open_page(ARENA).page
    expect(page.locator("#arena-set input")).to_have_value("日常十二问")
    page.locator("#arena-sets-shelf .label-wrap").click()
    (tmp_path / "我的题.txt").write_text("一加一等于几？\n\n你会唱歌吗？\n", encoding="utf-8")
    page.locator("#arena-sets-shelf input[type=file]").set_input_files(tmp_path / "我的题.txt")
    expect(page.locator("#arena-set-text textarea")).to_have_value(re.compile("你会唱歌吗"))
    page.locator("#arena-set-save").click()
    expect(page.locator("#arena-questions")).to_contain_text("我的题：2 题")
    expect(page.locator("#arena-set input")).to_have_value("我的题")
    draw(page)
    votable(page)
    page.locator("#arena-vote-left").click()
    expect(page.locator(".reveal .verdict")).to_contain_text("你选了左边")
    page.locator("#arena-filter input").click()
    page.get_by_role("option", name="我的题").click()
    expect(page.locator("#arena-chart figcaption")).to_contain_text("· 1 票")
    page.locator("#arena-export .label-wrap").click()
    with page.expect_download() as got:
        page.locator("#arena-export-votes").click()
    rows = [json.loads(line) for line in Path(got.value.path()).read_text("utf-8").splitlines()]
    assert rows[-1]["question"] == "一加一等于几？" and rows[-1]["question_set"]["set_title"] == "我的题"
    assert got.value.suggested_filename.endswith(".jsonl")
    page.locator("#arena-train").click()
    link = page.locator("#arena-note a")
    expect(link).to_have_attribute("href", re.compile(r"\?tab=train&file=file-[0-9a-f]{24}"))
    [stored] = FileStore(studio.services.settings.uploads).all("fine-tune")
    assert stored.id in str(link.get_attribute("href"))
    page.locator("#arena-delete-set").click()
    page.locator("#arena-delete-really").click()
    expect(page.locator("#arena-set input")).to_have_value("日常十二问")
    page.locator("#arena-clear").click()
    page.locator("#arena-clear-really").click()
    expect(page.locator("#arena-chart")).to_contain_text("还没有票")
    assert store_of(studio).cast(None) == []


@pytest.mark.browser
def test_on_a_dark_phone_in_english(open_page: OpenPage, studio: Server) -> None:
    page = open_page(ARENA, width=390, height=844, locale="en-GB", dark=True).page
    expect(page.locator("#arena-set input")).to_have_value("Twelve everyday questions")
    page.locator("#arena-question textarea").fill("Who are you?")
    page.keyboard.press("Enter")
    votable(page)
    for name, label in (("left", "1 · Left is better"), ("bad", "4 · Both are bad")):
        expect(page.locator(f"#arena-vote-{name}")).to_have_text(label)
    page.keyboard.press("1")  # Enter has left the box
    expect(page.locator(".reveal .verdict")).to_contain_text("You chose the left one")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    rows = page.locator(".forest .row")
    assert rows.first.locator(".track").bounding_box()["width"] > 0
    page.locator("#arena-pool .token-remove").first.click()
    page.locator("#arena-draw").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("at least two different contestants")
    assert_nothing_runs(studio)


def test_every_word_is_there_in_both_languages() -> None:
    translations([WORDS])
    for both in [*WORDS.labels.values(), *WORDS.lines.values()]:
        zh, en = both
        assert zh and en
        assert set(re.findall(r"{(\w+)", zh)) == set(re.findall(r"{(\w+)", en))


def test_what_people_and_models_are_called_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    arena = rank({Outcome((evil, "b"), 0): 2})
    met = {(evil, "b"): Duel(2, 0, 0), ("b", evil): Duel(0, 2, 0)}
    for language in ("zh", "en"):
        drawn = chart(arena, language, filtered=False) + matrix(arena, met, language) + table(arena, language)
        drawn += question_list(QuestionSet("x", "", evil, (evil,)), language)
        assert "<img" not in drawn and drawn.count("&lt;img") >= 6
