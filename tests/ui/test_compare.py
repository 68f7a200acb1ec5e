"""The Compare tab in a real browser, on the bundled base and persona."""

import re

import pytest
from playwright.sync_api import Page, expect

from adapters.ui.words import translations
from serving.ui.compare.panels import diff_panel, escaped, token_panel
from serving.ui.compare.words import WORDS
from tests.ui.browser import Server, assert_nothing_runs, said
from tests.ui.conftest import OpenPage

COMPARE = "?tab=compare"


def ask(page: Page, question: str) -> None:
    page.locator("#compare-question textarea").fill(question)
    page.keyboard.press("Enter")


def ended(page: Page, lanes: int) -> None:
    expect(page.locator(".stats.done")).to_have_count(lanes)
    expect(page.locator("#compare-send")).to_be_visible()


def lanes_shown(page: Page) -> list[int]:
    return [slot for slot in range(6) if page.locator(f"#lane-{slot}").is_visible()]


def choose_view(page: Page, name: str) -> None:
    page.locator("#compare-view").get_by_text(name).click()


def address(page: Page) -> str:
    """What a reload would ask for."""
    return "?" + page.url.partition("?")[2]


@pytest.mark.browser
def test_a_page_left_in_the_middle_loses_nothing_and_the_lanes_go_on(open_page: OpenPage, studio: Server) -> None:
    left = open_page(COMPARE).page
    ask(left, "你是谁？请慢慢说。")
    left.wait_for_function("location.search.includes('comparison=c-')")
    link = address(left)
    left.close()
    page = open_page(link).page
    expect(page.locator("#lane-1-log .message.user")).to_have_text("你是谁？请慢慢说。")
    ended(page, 2)
    version = studio.services.registry.resolve("wukong")
    expect(page.locator("#lane-0-stats")).to_contain_text(studio.services.base.name)
    expect(page.locator("#lane-1-stats")).to_contain_text(f"{version} · 摘要 {version.digest[:8]}")
    for figure in ("首字", "tokens/s", "无系统提示词"):
        expect(page.locator("#lane-1-stats")).to_contain_text(figure)
    before = [said(page, f"lane-{slot}-log") for slot in (0, 1)]
    assert all(before) and before[0] != before[1]
    page = open_page(link).page
    expect(page.locator("#lane-1-log .message.bot")).to_have_count(1)
    assert [said(page, f"lane-{slot}-log") for slot in (0, 1)] == before
    ask(page, "然后呢？")
    expect(page.locator("#lane-0-log .message.bot")).to_have_count(2)
    ended(page, 2)
    page.locator("#compare-clear").click()
    expect(page.locator("#lane-0-log .message")).to_have_count(0)
    page.wait_for_function("!location.search.includes('comparison')")
    page.get_by_text("最近的对比").click()
    expect(page.locator(".recent li").first).to_contain_text("你是谁？请慢慢说。")
    assert_nothing_runs(studio)


@pytest.mark.browser
def test_a_strength_sweep_in_one_click_seen_as_words_and_as_tokens(open_page: OpenPage) -> None:
    page = open_page(COMPARE).page
    page.locator("#compare-question textarea").fill("你师父是谁？")
    page.locator("#compare-sweep").click()
    expect(page.locator("#lane-3-log .message.user")).to_have_text("你师父是谁？")
    ended(page, 4)
    assert lanes_shown(page) == [0, 1, 2, 3]
    for slot, strength in enumerate(("×0 ", "×0.5 ", "@1 ", "×1.5 ")):
        expect(page.locator(f"#lane-{slot}-stats")).to_contain_text(strength)
    choose_view(page, "与甲逐词比较")
    expect(page.locator("#lane-0-panel .said")).to_have_text(said_in_record(page, 0))
    expect(page.locator("#lane-2-panel ins").nth(1)).to_be_visible()
    expect(page.locator("#lane-2-log")).to_be_hidden()
    choose_view(page, "逐 token 看底座")
    expect(page.locator("#lane-2-panel .tk").first).to_be_visible()
    strongest = "els => Math.max(...els.map(e => parseFloat(e.style.getPropertyValue('--d'))))"
    assert page.locator("#lane-0-panel .tk").evaluate_all(strongest) == 0  # at strength 0 it is the base
    assert page.locator("#lane-2-panel .tk").evaluate_all(strongest) > 0.3
    page.locator("#lane-2-panel .tk").first.hover()
    inspector = page.locator("#lane-2-panel .inspector")
    expect(inspector).to_contain_text("底座在此会说")
    expect(inspector.locator(".row")).to_have_count(7)
    first = inspector.inner_text()
    page.locator("#lane-2-panel .tk").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#lane-2-panel .tk").nth(1)).to_be_focused()
    assert inspector.inner_text() != first
    choose_view(page, "答案")
    expect(page.locator("#lane-2-log .message.bot")).to_be_visible()


def said_in_record(page: Page, slot: int) -> re.Pattern[str]:
    """A pattern of the first word a lane has said; the log itself is hidden in other views, not empty."""
    text = page.locator(f"#lane-{slot}-log .message.bot").first.text_content() or ""
    return re.compile(re.escape(text.strip()[:4]))


@pytest.mark.browser
def test_a_link_shows_the_same_to_another_visitor_and_replays_to_the_same_text(open_page: OpenPage) -> None:
    page = open_page(COMPARE).page
    page.locator("#compare-add").click()
    expect(page.locator("#lane-2")).to_be_visible()
    page.locator("#lane-1-remove").click()
    expect(page.locator("#lane-1")).to_be_hidden()
    page.locator("#lane-2-strength input[type=number]").fill("-0.5")
    page.locator("#lane-2-strength input[type=number]").blur()
    ask(page, "我今天心情不好。")
    ended(page, 2)
    expect(page.locator("#lane-2-stats")).to_contain_text("wukong@1 ×-0.5")
    texts = [said(page, f"lane-{slot}-log") for slot in (0, 2)]
    expect(page.locator("#compare-link textarea, #compare-link input")).to_have_value(re.compile("comparison=c-"))
    assert page.locator("#compare-link textarea, #compare-link input").input_value() == page.url
    other = open_page(address(page), locale="en-GB").page
    expect(other.locator("#lane-2-log .message.bot")).to_be_visible()
    assert lanes_shown(other) == [0, 2]
    assert [said(other, f"lane-{slot}-log") for slot in (0, 2)] == texts
    other.locator("#compare-replay").click()
    expect(other.locator("#compare-notice")).to_contain_text("Replayed: 2 lanes, 1 turns, every text identical")
    expect(other.locator("#compare-send")).to_be_visible()
    other.locator("#compare-delete").click()
    expect(other.locator("#compare-notice")).to_contain_text("Deleted")
    page.reload()
    expect(page.locator("#compare-notice")).to_contain_text("does not exist")


@pytest.mark.browser
def test_was_tuning_worth_it_on_a_phone_in_the_dark(open_page: OpenPage) -> None:
    page = open_page(COMPARE, width=390, height=844, locale="en-GB", dark=True).page
    page.locator("#compare-ablation").click()
    ended(page, 4)
    kinds = ["no system prompt", "prompt as given"] * 2
    for slot, kind in enumerate(kinds):
        expect(page.locator(f"#lane-{slot}-stats")).to_contain_text(kind)
    expect(page.locator("#lane-3-stats")).to_contain_text("wukong@1 · digest")
    choose_view(page, "Tokens against the base")
    expect(page.locator("#lane-3-panel .tk").first).to_be_visible()
    page.locator("#lane-3-panel .tk").nth(2).click()
    expect(page.locator("#lane-3-panel .inspector")).to_contain_text("The base would have said")
    page.locator("#compare-base-prompt").get_by_text("The base reads its own").click()
    expect(page.locator("#lane-3-panel .tk").first).to_be_visible()
    choose_view(page, "Word diff against A")
    expect(page.locator("#lane-1-panel ins").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.browser
def test_the_address_chooses_the_lanes_and_every_control_has_a_name(open_page: OpenPage) -> None:
    page = open_page(f"{COMPARE}&models=wukong,bianlian-mini,wukong@1").page
    expect(page.locator("#lane-2")).to_be_visible()
    assert lanes_shown(page) == [0, 1, 2]
    expect(page.locator("#lane-0-model input")).to_have_value(re.compile("wukong@1"))
    expect(page.locator("#lane-1-model input")).to_have_value(re.compile("bianlian-mini"))
    expect(page.locator("#lane-2-model input")).to_have_value("wukong@1")
    page.locator("#lane-2-model input").click()  # which asks what is offered now
    expect(page.get_by_role("option", name="wukong@1", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, textarea, select')]
           .filter(e => e.checkVisibility() && !e.innerText.trim() && !e.getAttribute('aria-label')
                        && !e.getAttribute('aria-labelledby') && !e.title && !(e.labels && e.labels.length))
           .map(e => e.outerHTML.slice(0, 160))"""
    )
    assert unnamed == []


def test_texts_of_models_cannot_become_markup_or_templates() -> None:
    evil = "<img src=//x onerror=alert(1)> {{value}} ${alert(1)} `\\ '\""
    assert not set("<>{}$`\\'\"") & set(escaped(evil))
    assert "<img" not in diff_panel(evil, evil, evil + evil, "zh")
    from serving.token_view import TokenScore

    panel = token_panel(evil, [TokenScore(evil, -1, -2, ((evil, 0.5),), ((evil, 0.5),))], [], "en")
    assert "<img" not in panel and "{{" not in panel


def test_every_word_is_there_in_both_languages() -> None:
    translations([WORDS])
    for zh, en in [*WORDS.labels.values(), *WORDS.lines.values()]:
        assert zh and en and sorted(set(re.findall(r"\{(\w+)", zh))) == sorted(set(re.findall(r"\{(\w+)", en)))
