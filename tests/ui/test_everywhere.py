"""What holds on every tab there is: accessible (as axe sees it), named, reachable by keyboard, no wider than the phone,
and it keeps no connection open. A new tab is tested here from its first day.

Every page is opened by `open_page`, so none may ask another host for anything or leave an error on the console."""

import json
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.ui.browser import Server, Visit, settle
from tests.ui.conftest import OpenPage

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")
PHONE, DESK = 390, 1440
GRAVE = ("serious", "critical")

VIOLATIONS = """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations
  .map(v => [v.impact, v.id, v.nodes.slice(0, 3).map(n => n.html.slice(0, 200) + ' | ' + (n.any[0]?.message || ''))])"""

UNNAMED = """() => [...document.querySelectorAll('button, input, textarea, select, a[href]')]
  .filter(e => e.checkVisibility() && !e.innerText.trim() && !e.getAttribute('aria-label')
    && !e.getAttribute('aria-labelledby') && !e.title && !(e.labels && e.labels.length))
  .map(e => e.outerHTML.slice(0, 160))"""


def tabs_of(server: Server) -> list[str]:
    """Ids of the tabs on the page, in their order."""
    config = httpx.get(f"{server.url}/config").json()
    ids = [each["props"].get("elem_id") or "" for each in config["components"] if each["type"] == "tabitem"]
    found = [id.removeprefix("tab-") for id in ids if id.startswith("tab-")]
    assert {"home", "chat", "compare", "settings"} <= set(found)
    return found


def show(seen: Visit, tab: str) -> None:
    """As a visitor does."""
    seen.page.locator(f"#tab-{tab}-button").click()
    expect(seen.page.locator(f"#tab-{tab}")).to_be_visible()
    settle(seen)


def graves(page: Page) -> list[object]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    return [found for found in page.evaluate(VIOLATIONS) if found[0] in GRAVE]


def of_the_tab_in_sight(visit: Visit) -> list[object]:
    """What is wrong with it."""
    page = visit.page
    wrong: list[object] = [*graves(page), *page.evaluate(UNNAMED)]
    width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return [*wrong, *([f"{width} px wide"] if width > window else [])]


# Colours depend on theme and width, which are crossed; words on the language, which meets each of them.
@pytest.mark.browser
@pytest.mark.parametrize(
    ("width", "locale", "dark"),
    [(DESK, "zh-CN", False), (DESK, "en-US", True), (PHONE, "zh-CN", True), (PHONE, "en-US", False)],
)
def test_every_tab_is_fit_for_everybody(
    studio: Server, open_page: OpenPage, width: int, locale: str, dark: bool
) -> None:
    visit = open_page(width=width, height=844 if width == PHONE else 900, locale=locale, dark=dark)
    wrong: dict[str, list[object]] = {}
    for tab in tabs_of(studio):
        show(visit, tab)
        if found := of_the_tab_in_sight(visit):
            wrong[tab] = found
        assert visit.page.evaluate("document.body.classList.contains('dark')") == dark
    assert not wrong, json.dumps(wrong, ensure_ascii=False, indent=1)
    assert str(visit.page.locator("html").get_attribute("lang")).startswith(locale[:2])
    assert [asked for asked in visit.requests if "/heartbeat/" in asked] == []


@pytest.mark.browser
def test_tabs_and_main_buttons_are_reached_by_keyboard(studio: Server, open_page: OpenPage) -> None:
    seen = open_page(locale="en-US")
    page, tabs = seen.page, tabs_of(studio)
    page.locator(f"#tab-{tabs[0]}-button").focus()
    for tab in [*tabs[1:], tabs[0]]:  # the arrow leads around
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#tab-{tab}-button")).to_be_focused()
        expect(page.locator(f"#tab-{tab}")).to_be_visible()
    for tab in tabs:
        show(seen, tab)
        main = page.evaluate(
            "id => [...document.querySelectorAll(`#tab-${id} button.primary`)]"
            ".filter(b => b.checkVisibility() && !b.disabled).map(b => b.innerText)",
            tab,
        )
        page.locator(f"#tab-{tab}-button").focus()
        reached: list[str] = []
        for _ in range(150):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.innerText || ''"))
            if set(main) <= set(reached):
                break
        assert set(main) <= set(reached), tab


@pytest.mark.browser
def test_whoever_comes_first_meets_the_first_page_and_later_what_he_left(open_page: OpenPage) -> None:
    seen = open_page()
    page = seen.page
    expect(page.locator("#home-talk")).to_be_visible()
    page.locator("#home-compare").click()
    expect(page.locator("#compare-send")).to_be_visible()
    assert page.url.endswith("?tab=compare")
    settle(seen)
    page.reload()
    expect(page.locator("#compare-send")).to_be_visible()
    page.locator("#tab-settings-button").click()
    expect(page.locator("#settings-theme")).to_be_visible()
    page.go_back()
    expect(page.locator("#compare-send")).to_be_visible()
    page.locator("#tab-settings-button").click()
    settle(seen)
    page.goto(page.url.partition("?")[0])
    expect(page.locator("#settings-theme")).to_be_visible()
    assert page.url.endswith("?tab=settings")


@pytest.mark.browser
def test_the_browser_keeps_no_conversation_and_fetches_no_picture(studio: Server, open_page: OpenPage) -> None:
    """Gradio's run history is off, and pictures in what is said are shown as they are spelled."""
    said = "看这张图 ![x](https://pictures.example/secret-of-mine.png) <img src='https://pictures.example/b.png'>"
    page = open_page("?tab=chat").page
    page.locator("#chat-question textarea").fill(said)
    page.locator("#chat-send").click()
    expect(page.locator("#chat-log .message.bot").first).not_to_be_empty()
    expect(page.locator("#chat-send")).to_be_visible()
    assert "secret-of-mine" not in page.evaluate("JSON.stringify(localStorage) + JSON.stringify(sessionStorage)")
    assert page.evaluate("async () => (await indexedDB.databases()).length") == 0


def test_what_models_write_is_sanitised_in_every_tab(studio: Server) -> None:
    components = httpx.get(f"{studio.url}/config").json()["components"]
    written = [each for each in components if each["type"] in ("chatbot", "markdown")]
    assert len(written) >= 2
    assert [each["props"].get("elem_id") for each in written if not each["props"]["sanitize_html"]] == []


@pytest.mark.browser
def test_the_policy_holds_back_whatever_slips_through(studio: Server, open_page: OpenPage) -> None:
    """One page of its own, whose console has the errors that this must leave."""
    seen = open_page()
    blocked = seen.page.evaluate(
        """() => new Promise(done => {
          document.addEventListener('securitypolicyviolation', event => done(event.violatedDirective));
          document.body.append(Object.assign(new Image(), { src: 'https://pictures.example/a.png' }));
        })"""
    )
    assert blocked == "img-src"
    seen.errors.clear()
    seen.requests[:] = [asked for asked in seen.requests if "pictures.example" not in asked]
