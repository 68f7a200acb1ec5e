"""The Settings tab and the first page in a browser, on a server that goes from no keys to keys."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from adapters.manifest import AdapterManifest, AdapterVersion, PersonaCard
from adapters.settings import Settings, load_settings
from serving.ui.home.faces import cards
from serving.ui.home.tab import api_lines
from serving.ui.tables import table
from tests.ui.browser import Server, Visit, settle, start, visit
from tests.ui.conftest import OpenPage

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server whose keys are nobody else's."""
    running = start(Settings(home=tmp_path / "home", device="cpu", kv_cache_memory=0.1))
    yield running
    running.close()


def make_key(page: Page, name: str, *, admin: bool) -> str:
    """Fill the form in, and read the key off the screen."""
    if not page.locator("#key-create").is_visible():
        page.locator("#settings-new-key button.label-wrap").click()
    page.locator("#key-name input, #key-name textarea").first.fill(name)
    page.locator(f"#key-scope input[value={'admin' if admin else 'user'}]").check()
    page.locator("#key-create").click()
    expect(page.locator("#settings-key-table td", has_text=re.compile(f"^{name}$"))).to_be_visible()
    shown = page.locator("#key-made input, #key-made textarea").first
    expect(shown).to_have_value(re.compile(r"^bl-[0-9a-f]{12}-.{43}$"))
    return shown.input_value()


def enter(page: Page, key: str) -> None:
    page.locator("input[type=password]").fill(key)
    page.get_by_role("button").click()
    expect(page.locator("#home-talk")).to_be_visible()


@pytest.mark.browser
def test_from_no_keys_to_an_admin_and_a_guest_who_is_shown_out(own: Server, browser: Browser) -> None:
    context, elsewhere = (browser.new_context(locale="en-US") for _ in range(2))
    page = visit(context, f"{own.url}/?tab=settings").page
    expect(page.locator("#settings-facts")).to_contain_text("There are no keys yet")
    page.locator("#settings-new-key button.label-wrap").click()
    page.locator("#key-name input, #key-name textarea").first.fill("nobody")
    page.locator("#key-create").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("make an admin key first")
    make_key(page, "me", admin=True)
    guest_key = make_key(page, "guest", admin=False)  # still in, though keys are wanted now
    page.reload()
    expect(page.locator("#settings-facts")).to_contain_text("You are me (admin)")
    expect(page.locator("#settings-effective")).to_be_visible()
    assert guest_key not in page.content()

    guest = visit(elsewhere, own.url).page
    expect(guest.locator("h1")).to_contain_text("Bianlian")
    guest.locator("input[type=password]").fill("guess")
    guest.get_by_role("button").click()
    expect(guest.get_by_role("alert")).to_have_text("This key is wrong, or no longer valid")
    enter(guest, guest_key)
    guest.locator("#tab-settings-button").click()
    expect(guest.locator("#settings-facts")).to_contain_text("You are guest (user)")
    expect(guest.locator("#settings-log-out")).to_be_visible()
    for hidden in ("#settings-keys", "#settings-effective"):
        expect(guest.locator(hidden)).to_be_hidden()

    page.locator("#key-which input").click()
    page.get_by_role("option", name="guest").click()
    page.locator("#key-revoke").click()
    page.locator("#key-really").click()
    expect(page.locator("#settings-key-table")).to_contain_text("revoked")
    guest.locator("#tab-chat-button").click()  # the next thing he does leads to the login
    expect(guest.locator("input[type=password]")).to_be_visible()

    page.locator("#settings-log-out").click()
    expect(page.locator("input[type=password]")).to_be_visible()
    context.close()
    elsewhere.close()


def arrived(seen: Visit) -> None:
    """What the page asks for when it is opened has come."""
    expect(seen.page.locator("#settings-facts dl")).to_be_visible()
    settle(seen)


@pytest.mark.browser
def test_language_and_theme_are_chosen_and_stay(open_page: OpenPage) -> None:
    seen = open_page("?tab=settings", locale="zh-CN")
    page = seen.page
    arrived(seen)
    page.locator("#settings-language input[value=en]").check()
    expect(page.locator("#settings-theme")).to_contain_text("As the system")
    expect(page.locator("#settings-facts")).to_contain_text("About this server")  # the server's lines too
    expect(page.locator("#settings-language input[value=en]")).to_be_checked()
    arrived(seen)
    page.locator("#settings-theme input[value=dark]").check()
    expect(page.locator("body.dark")).to_be_visible()
    arrived(seen)
    page.reload()
    expect(page.locator("body.dark")).to_be_visible()
    expect(page.locator("#settings-theme input[value=dark]")).to_be_checked()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    arrived(seen)
    page.locator("#settings-language input[value='']").check()
    expect(page.locator("#settings-theme")).to_contain_text("跟随系统")
    arrived(seen)


@pytest.mark.browser
def test_usage_is_shown_as_chart_and_as_numbers(studio: Server, open_page: OpenPage) -> None:
    body = {"model": "wukong", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 5}
    used = httpx.post(f"{studio.url}/v1/chat/completions", json=body, timeout=60).json()["usage"]
    page = open_page("?tab=settings", locale="en-US").page
    row = page.locator("#settings-usage-table tr", has_text="wukong@1")
    expect(row).to_contain_text("without a key")
    assert row.locator("td.number").all_inner_texts()[-1] == str(used["completion_tokens"])
    expect(page.locator("#settings-usage svg, #settings-usage canvas").first).to_be_visible()


def test_every_setting_says_where_it_is_from_and_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bianlian.toml").write_text('max_running = 7\nport = 1\nadmin_key = "very-secret"\n')
    monkeypatch.setenv("BIANLIAN_PORT", "2")
    url = "postgresql://me:pass@word@db.example/bianlian"
    settings = load_settings(host="127.0.0.2", api_key=["secret-one", "secret-two"], database=url)
    shown = {each.name: (each.value, each.origin) for each in settings.effective()}
    assert shown["host"] == ("127.0.0.2", "flag")
    assert shown["port"] == ("2", "BIANLIAN_PORT")
    assert shown["max_running"] == ("7", "bianlian.toml")
    assert shown["prefix_cache"] == ("True", "default")
    assert shown["api_key"] == ("2 × •••", "flag") and shown["admin_key"] == ("•••", "bianlian.toml")
    assert shown["database"] == ("postgresql://me:•••@db.example/bianlian", "flag")
    assert set(shown) == set(Settings.model_fields)
    assert not any(word in str(shown) for word in ("secret", "pass@", "word@"))


def test_what_an_adapter_says_of_itself_is_text(tmp_path: Path) -> None:
    manifest = AdapterManifest(
        name="a", base_name="b", base_fingerprint="", template_hash="", card=PersonaCard(title=EVIL, greeting=EVIL)
    )
    shown = cards([AdapterVersion("a", 1, "", tmp_path, manifest)], EVIL, "en")
    assert "<img src=x" not in shown and shown.count("&lt;img src=x") >= 2
    assert "models=%3Cimg" in shown
    assert "<img" not in table([EVIL], [[EVIL]], EVIL)


def test_a_base_without_faces_says_how_to_get_one() -> None:
    assert "Drop in a file" in cards([], "base", "en") and "?tab=train" in cards([], "base", "en")


def test_the_line_for_programs_wants_a_key_where_keys_are() -> None:
    assert "curl https://studio.example/v1/chat/completions \\" in api_lines("https://studio.example", "a", "en", False)
    assert "Authorization: Bearer $BIANLIAN_KEY" in api_lines("https://studio.example", "a", "zh", True)
