"""The Chat tab in a real browser, on the bundled base and its persona."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from adapters.settings import Settings
from serving.conversation import AnswerRecord, Conversation, StoredMessage
from serving.history import History
from serving.ui.chat.transcript import answer_bubble, settled
from serving.ui.prose import prose
from tests import templates, tiny
from tests.ui.browser import Server, assert_nothing_runs, start, visit
from tests.ui.conftest import OpenPage

CHAT = "?tab=chat"
RECORD = AnswerRecord(model="wukong", adapter="wukong@1", digest="ab" * 32, seed=7, finish_reason="stop")


def ask(page: Page, question: str) -> None:
    page.locator("#chat-question textarea").fill(question)
    page.keyboard.press("Enter")


def answers(page: Page, count: int) -> None:
    """Until that many answers are on screen, and none is growing."""
    expect(page.locator("#chat-log .stats.done")).to_have_count(count)
    expect(page.locator("#chat-send")).to_be_visible()


def last_answer(page: Page) -> str:
    return page.locator("#chat-log .message.bot .said").last.inner_text()


def conversation_of(page: Page) -> str:
    expect(page).to_have_url(re.compile("c=chat-"))
    found = re.search("c=(chat-[0-9a-f]{32})", page.url)
    assert found
    return found[1]


@pytest.mark.browser
def test_a_persona_greets_answers_and_says_who_it_is(open_page: OpenPage, studio: Server) -> None:
    page = open_page(CHAT).page
    version = studio.services.registry.resolve("wukong")
    card = version.manifest.card  # type: ignore[union-attr]
    welcome = page.locator("#chat-log .welcome")
    expect(welcome.locator("h2")).to_have_text(card.title)
    expect(welcome).to_contain_text(card.greeting)
    assert (welcome.locator(".portrait").get_attribute("src") or "").startswith("data:image/svg+xml;base64,")
    page.locator(".chip", has_text=card.samples[0]).click()
    answers(page, 1)
    expect(page.locator("#chat-log .message.user .said")).to_have_text(card.samples[0])
    expect(page.locator("#chat-log .stats")).to_contain_text(f"{version} · 摘要 {version.digest[:8]}")
    expect(page.locator("#chat-log .stats")).to_contain_text("tokens/s")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#chat-log .bot [data-copy]").click()
    expect(page.locator("#chat-log .bot [data-copy]")).to_have_text("已复制")
    assert page.evaluate("navigator.clipboard.readText()") == last_answer(page) != ""
    expect(page.locator("#chat-list a[aria-current=page]")).to_contain_text(card.samples[0])
    assert_nothing_runs(studio)


@pytest.mark.browser
def test_an_answer_made_again_and_a_question_asked_otherwise_keep_the_older_ones(open_page: OpenPage) -> None:
    page = open_page(CHAT).page
    ask(page, "你会写诗吗？")
    answers(page, 1)
    first = last_answer(page)
    page.locator("[data-do=again]").click()
    expect(page.locator("#chat-log .bot .at")).to_have_text("2/2")
    second = last_answer(page)
    page.get_by_role("button", name="上一个版本").click()
    expect(page.locator("#chat-log .bot .at")).to_have_text("1/2")
    assert last_answer(page) == first
    page.locator(".message.user summary").click()
    page.get_by_label("修改后的问题").fill("你几岁了？")
    page.get_by_role("button", name="重新发送").click()
    expect(page.locator("#chat-log .user .at")).to_have_text("2/2")
    answers(page, 1)
    expect(page.locator("#chat-log .user .said")).to_have_text("你几岁了？")
    page.locator(".user").get_by_role("button", name="上一个版本").click()
    expect(page.locator("#chat-log .user .said")).to_have_text("你会写诗吗？")
    expect(page.locator("#chat-log .bot .at")).to_have_text("2/2")
    assert last_answer(page) == second
    page.reload()
    answers(page, 1)
    assert last_answer(page) == second


@pytest.mark.browser
def test_conversations_are_found_renamed_and_deleted(open_page: OpenPage, studio: Server) -> None:
    page = open_page(CHAT).page
    for question in ("今天喝什么茶？", "明天下雨吗？"):
        page.keyboard.press("Control+k")
        expect(page.locator("#chat-log .welcome")).to_be_visible()
        ask(page, question)
        answers(page, 1)
    page.locator("#chat-title input").fill("天气")
    page.locator("#chat-title input").press("Enter")
    lines = page.locator("#chat-list a")
    expect(lines.first).to_contain_text("天气")
    page.locator("#chat-search input").fill("喝什么茶")
    expect(lines).to_have_count(1)
    lines.click()
    expect(page.locator("#chat-log .user .said")).to_have_text("今天喝什么茶？")
    tea = conversation_of(page)
    page.locator("#chat-search input").fill("没有这样的话")
    expect(page.locator("#chat-list")).to_contain_text("没有找到")
    page.locator("#chat-search input").fill("")
    page.locator("#chat-delete").click()
    page.locator("#chat-keep").click()
    page.locator("#chat-delete").click()
    page.locator("#chat-really").click()
    expect(page.locator("#chat-log .welcome")).to_be_visible()
    expect(page.locator(f"#chat-list a[data-id={tea}]")).to_have_count(0)
    expect(page).not_to_have_url(re.compile("c=chat-"))
    expect(page.locator("#chat-list a", has_text="天气")).to_have_count(1)


@pytest.mark.browser
def test_conversations_leave_as_files_and_as_training_data(open_page: OpenPage, studio: Server) -> None:
    page = open_page(CHAT).page
    ask(page, "你师父是谁？")
    answers(page, 1)
    expected = [("user", "你师父是谁？"), ("assistant", last_answer(page))]
    page.locator("#chat-export button").first.click()
    with page.expect_download() as downloading:
        page.locator("#chat-download").click()
    assert downloading.value.suggested_filename.endswith(".jsonl")
    [line] = Path(downloading.value.path()).read_text(encoding="utf-8").splitlines()
    assert [(each["role"], each["content"]) for each in json.loads(line)["messages"]] == expected
    page.get_by_label("Markdown").check()
    with page.expect_download() as downloading:
        page.locator("#chat-download").click()
    assert Path(downloading.value.path()).read_text(encoding="utf-8").startswith("# 你师父是谁？")
    page.locator("#chat-reuse").click()
    link = page.locator("#chat-note a")
    file_id = (link.get_attribute("href") or "").removeprefix("?tab=train&file=")
    [line] = (studio.services.settings.uploads / file_id / "content").read_text(encoding="utf-8").splitlines()
    assert [(each["role"], each["content"]) for each in json.loads(line)["messages"]] == expected


@pytest.mark.browser
def test_on_a_phone_in_english_and_the_dark(open_page: OpenPage, studio: Server) -> None:
    """The other face is picked by its card, a system prompt is saved and used, the list opens and closes."""
    page = open_page(CHAT, width=390, height=844, locale="en-GB", dark=True).page
    page.locator(".card", has_text=studio.services.base.name).click()
    expect(page.locator(".welcome h2")).to_have_text(studio.services.base.name)
    page.locator("#chat-drawer button").first.click()
    page.locator("#chat-preset input").click()
    page.get_by_role("option", name="Written below").click()
    page.locator("#chat-system textarea").fill("You are a pirate.")
    page.locator("#chat-prompt-name input").fill("Pirate")
    page.locator("#chat-save-prompt").click()
    expect(page.locator("#chat-preset input")).to_have_value("Pirate")
    page.locator("#chat-strength input[type=number]").scroll_into_view_if_needed()
    ask(page, "Who are you?")
    answers(page, 1)
    expect(page.locator("#chat-log .stats")).to_contain_text(studio.services.base.name)
    found = History(studio.services.database).open(ADMIN, conversation_of(page))
    assert found.system == "You are a pirate."
    page.locator("#chat-seed input").fill("-3")
    page.locator("[data-do=again]").click()
    expect(page.get_by_test_id("toast-body").filter(has_text="'-3' is no whole number")).to_be_visible()
    page.locator("#chat-seed input").fill("77")
    page.locator("[data-do=again]").click()
    expect(page.locator("#chat-log .bot .at")).to_have_text("2/2")
    expect(page.locator("#chat-log .stats")).to_have_attribute("title", "seed 77")
    expect(page.locator("#chat-list a").first).not_to_be_visible()
    page.locator("#chat-list-toggle").click()
    page.locator("#chat-new").click()
    expect(page.locator(".welcome h2")).to_have_text(studio.services.base.name)
    page.locator(f"#chat-list a[data-id={found.id}]").click()
    answers(page, 1)
    expect(page.locator("#chat-list a").first).not_to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.reload()
    expect(page.locator("#chat-model input")).to_have_value(re.compile(studio.services.base.name))
    answers(page, 1)


@pytest.mark.browser
def test_the_address_chooses_a_model_that_no_list_has(open_page: OpenPage, studio: Server) -> None:
    page = open_page(f"{CHAT}&model=wukong%401").page
    expect(page.locator("#chat-model input")).to_have_value("wukong@1")
    expect(page.locator(".welcome h2")).to_have_text(re.compile("孙悟空"))
    page.goto(f"{studio.url}/{CHAT}&c=chat-{'0' * 32}")
    expect(page.get_by_test_id("toast-body")).to_contain_text("no such conversation")
    expect(page.locator("#chat-log .welcome")).to_be_visible()


class Admin:
    key, admin = "", True


ADMIN = Admin()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A base whose random weights never stop by themselves, on a slow machine: there is time to do something while an
    answer grows, however busy the browser is."""
    home = tmp_path_factory.mktemp("slow")
    base = tiny.save_base(home / "slow", layers=4, hidden=128)
    running = start(Settings(home=home, base=str(base), device="cpu", dtype="float32", kv_cache_memory=0.1))
    engine = running.services.engine.engine
    step = engine.step

    def slowly() -> object:
        time.sleep(0.02)
        return step()

    engine.step = slowly
    yield running
    running.close()


def tokens(page: Page) -> int:
    """How many the last answer on screen has so far."""
    told = re.search(r"([0-9]+) tokens ", page.locator("#chat-scroll .bot .stats").last.inner_text() + " ")
    return int(told[1]) if told else 0


SPEAKS_ANEW = "document.querySelector('#chat-live .said')?.innerText.length > 0"
SPEAKS = "document.querySelector('#chat-scroll .bot .said')?.innerText.length > 0"


@pytest.mark.browser
def test_a_reload_in_the_middle_of_an_answer_loses_nothing(browser: Browser, slow: Server) -> None:
    seen = visit(browser.new_context(locale="zh-CN"), f"{slow.url}/{CHAT}")
    page = seen.page
    ask(page, "讲个故事")
    page.wait_for_function(SPEAKS)
    begun, before = conversation_of(page), tokens(page)
    page.reload()
    page.wait_for_function(SPEAKS)
    assert tokens(page) >= before > 0
    answers(page, 1)
    found = History(slow.services.database).open(ADMIN, begun)
    kept = found.branch[-1].answer
    assert len(found.messages) == 2 and kept is not None and kept.finish_reason in ("length", "stop")
    assert tokens(page) == kept.tokens
    seen.close()
    seen.assert_kept_to(slow.url)


@pytest.mark.browser
def test_escape_stops_and_who_leaves_finds_the_answer_whole(browser: Browser, slow: Server) -> None:
    context = browser.new_context(locale="zh-CN")
    page = visit(context, f"{slow.url}/{CHAT}").page
    ask(page, "讲个故事")
    page.wait_for_function(SPEAKS_ANEW)
    page.keyboard.press("Escape")
    answers(page, 1)
    expect(page.locator("#chat-log .stats")).to_contain_text("已停止")
    assert_nothing_runs(slow)
    ask(page, "再讲一个")
    page.wait_for_function(SPEAKS_ANEW)
    begun = conversation_of(page)
    page.close()
    page = visit(context, f"{slow.url}/{CHAT}").page
    page.locator(f"#chat-list a[data-id={begun}]").click()
    answers(page, 2)
    expect(page.locator("#chat-log .stats").last).not_to_contain_text("已停止")
    context.close()


@pytest.mark.browser
def test_thoughts_are_folded_away(tmp_path: Path, browser: Browser) -> None:
    thinker = tiny.save_base(tmp_path / "thinker", template=templates.BEGUN)
    adapter = tiny.save_adapter(tmp_path / "wukong", thinker, rank=4, seed=1)
    settings = Settings(
        home=tmp_path / "home",
        base=str(thinker),
        device="cpu",
        dtype="float32",
        kv_cache_memory=0.1,
        adapter=[f"wukong={adapter}"],
    )
    server = start(settings)
    try:
        context = browser.new_context(locale="en-GB", viewport={"width": 1440, "height": 900})
        page = visit(context, f"{server.url}/{CHAT}").page
        ask(page, "one")
        answers(page, 1)
        thoughts = page.locator("#chat-log details.thoughts")
        expect(thoughts.locator("summary")).to_have_text("Thoughts")
        expect(thoughts.locator("div")).not_to_be_visible()  # folded
        assert "think>" not in page.locator("#chat-log").inner_text()
        context.close()
    finally:
        server.close()


@pytest.mark.browser
def test_with_keys_everybody_sees_their_own_conversations(tmp_path: Path, browser: Browser) -> None:
    keys = {"user": ["ann-key", "ben-key"], "admin": "root-key"}
    base = tiny.save_base(tmp_path / "base")
    settings = Settings(
        home=tmp_path / "home",
        base=str(base),
        device="cpu",
        dtype="float32",
        kv_cache_memory=0.1,
        api_key=keys["user"],
        admin_key=keys["admin"],
    )
    server = start(settings)

    def logged_in(key: str) -> Page:
        page = visit(browser.new_context(locale="en-GB"), server.url).page
        page.locator("input[type=password]").fill(key)
        page.locator("button").first.click()
        expect(page.get_by_role("tab", name="Chat")).to_be_visible()
        page.goto(f"{server.url}/{CHAT}")
        expect(page.locator("#chat-log .welcome")).to_be_visible()
        return page

    try:
        ann = logged_in("ann-key")
        ask(ann, "Ann's secret")
        answers(ann, 1)
        anns = conversation_of(ann)
        ben = logged_in("ben-key")
        expect(ben.locator("#chat-list")).to_contain_text("No conversations yet")
        ben.goto(f"{server.url}/{CHAT}&c={anns}")
        expect(ben.get_by_test_id("toast-body")).to_contain_text("no such conversation")
        expect(ben.locator("#chat-everyone")).to_have_count(0)
        ben.locator("#chat-export button").first.click()
        expect(ben.locator("#chat-reuse")).to_be_disabled()
        root = logged_in("root-key")
        root.get_by_label("Everybody's conversations").check()
        root.locator(f"#chat-list a[data-id={anns}]").click()
        expect(root.locator("#chat-log .user .said")).to_have_text("Ann's secret")
        for page in (ann, ben, root):
            page.context.close()
    finally:
        server.close()


@pytest.mark.parametrize(
    "text",
    [
        "![x](https://example.com/a.png)",
        "![x][r]\n\n[r]: https://example.com/a.png",
        '<img src="https://example.com/a.png">',
        "<svg><image href=https://example.com/a.png /></svg>",
        "```\n<img src=//example.com/a.png>\n```",
        '" onmouseover="alert(1)',
        "[x](javascript:alert(1))",
        "<https://example.com/'onload='alert(1)>",
        "</textarea><script>alert(1)</script>",
    ],
)
def test_nothing_that_is_said_loads_or_runs_anything(text: str) -> None:
    asked = StoredMessage(1, None, "user", text)
    told = StoredMessage(2, 1, "assistant", text, text, RECORD)
    conversation = Conversation("chat-1", "", "t", "wukong", None, 2, 0, (asked, told))
    for drawn in (settled(conversation, None, "en"), answer_bubble(told, [told], "en", running=True), prose(text)):
        tags = re.findall(r"<(\w+)([^>]*)>", re.sub(r'"[^"]*"', '""', drawn))
        assert not {"img", "script", "svg", "image", "iframe"} & {name for name, _ in tags}
        assert not [rest for _, rest in tags if re.search(r"\son\w+\s*=|\ssrc\s*=", rest)]
        assert 'href="javascript' not in drawn.lower()


def test_an_answer_that_a_killed_server_left_says_so() -> None:
    left = StoredMessage(2, 1, "assistant", "half an", "", replace(RECORD, finish_reason=None))
    assert "the server stopped halfway" in answer_bubble(left, [left], "en")
    assert "the server stopped halfway" not in answer_bubble(left, [left], "en", running=True)
