"""The Monitor in a real browser: it shows what was asked, moves by itself, and is for admins."""

import json
import re
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import Browser, expect

from tests.ui.browser import ADMIN, USER, Server, logged_in
from tests.ui.conftest import OpenPage


def ask(server: Server, model: str, *, request_id: str, key: str = "") -> dict[str, int]:
    """Usage of one answer; {} when it was refused."""
    body = {"model": model, "messages": [{"role": "user", "content": "你好"}], "max_tokens": 8}
    headers = {"content-type": "application/json", "x-request-id": request_id, "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            usage: dict[str, int] = json.load(reply)["usage"]
            return usage
    except urllib.error.HTTPError:
        return {}


def scraped(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as reply:
        text = reply.read().decode()
    return sum(float(found) for found in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


@pytest.mark.browser
def test_the_monitor_shows_what_was_asked_and_moves_by_itself(studio: Server, open_page: OpenPage) -> None:
    page = open_page("?tab=monitor").page
    expect(page.locator("#monitor-errors")).to_contain_text("启动以来没有出错的请求")
    expect(page.locator("#monitor-traffic")).to_contain_text("这段时间没有请求")
    usage = ask(studio, "wukong", request_id="good-1")
    assert ask(studio, "wukon", request_id="bad-2") == {}
    traffic = page.locator("#monitor-traffic tbody tr")  # nobody has touched the page
    expect(traffic).to_contain_text("wukong")
    expect(traffic).to_contain_text("100%")
    failed = page.locator("#monitor-errors tbody tr")
    expect(failed).to_contain_text("model_not_found")
    expect(failed).to_contain_text("bad-2")
    assert usage["completion_tokens"] == scraped(studio, "bianlian_generated_tokens_total")
    expect(page.locator("#monitor-totals")).to_contain_text(
        f"1 次回答 · {usage['completion_tokens']} tokens 生成 · {usage['prompt_tokens']} tokens 输入"
    )
    expect(page.locator("#monitor-first_token b").first).to_have_text(re.compile(r"\d ms|\d s"))
    expect(page.locator("#monitor-kv")).to_contain_text(f"{int(scraped(studio, 'bianlian_kv_blocks')):,}")
    expect(page.locator("#monitor-slots b")).to_have_text(f"1 / {int(scraped(studio, 'bianlian_adapter_slots'))}")
    expect(page.get_by_role("img", name=re.compile("吞吐，最近 15 分钟"))).to_be_visible()
    page.get_by_label("1 分钟", exact=True).check()
    expect(page.get_by_role("img", name=re.compile("吞吐，最近 1 分钟"))).to_be_visible()


COUNT_CLOCKS = """() => { const begin = window.setInterval, end = window.clearInterval; window.clocks = new Set();
  window.setInterval = (call, ms, ...rest) => { const id = begin(call, ms, ...rest); if (ms === 1000) clocks.add(id);
    return id; };
  window.clearInterval = id => { clocks.delete(id); end(id); }; }"""


@pytest.mark.browser
def test_the_clock_stands_while_another_tab_is_shown(open_page: OpenPage) -> None:
    page = open_page().page
    page.evaluate(COUNT_CLOCKS)
    for _ in range(2):
        page.get_by_role("tab", name="监控").click()
        expect(page.locator("#monitor-throughput")).to_be_visible()
        page.wait_for_function("clocks.size === 1")
        page.get_by_role("tab", name="对话").click()
        page.wait_for_function("clocks.size === 0")


@pytest.mark.browser
def test_the_monitor_fits_a_phone_in_english_and_dark(open_page: OpenPage) -> None:
    page = open_page("?tab=monitor", width=390, height=844, locale="en", dark=True).page
    expect(page.locator("#monitor-throughput")).to_contain_text("generated")
    expect(page.locator("#monitor-totals")).to_contain_text("Since the start")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_with_keys_the_monitor_is_for_admins(browser: Browser, guarded: Server) -> None:
    for key, welcome in ((USER, "The monitor is for admins"), (ADMIN, "Throughput")):
        with logged_in(browser, guarded, key, "?tab=monitor") as page:
            expect(page.locator("#monitor-view")).to_contain_text(welcome)
            if key == USER:
                expect(page.locator("#monitor-window")).to_be_hidden()
                expect(page.locator(".mon-card")).to_have_count(0)
