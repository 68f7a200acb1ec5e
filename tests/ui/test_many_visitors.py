"""Many people at once: every one of them chats and compares, and nobody is turned away."""

import asyncio
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.ui.browser import Server, assert_nothing_runs, visit
from tests.ui.events import PageClient, in_loop, succeeded

VISITORS = 20
LANES = 2  # of a new Compare page
TOKENS = 8


async def visit_and_ask(url: str, number: int) -> list[list[dict[str, Any]]]:
    """One visitor's streams: of a chat, then of a comparison."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        page = PageClient(http)
        await page.open()
        question = f"你好，我是第{number}位。"
        return [
            await page.run(page.event("chat-send"), chat_question=question, max_tokens=TOKENS),
            await page.run(page.event("compare-send"), compare_question=question, max_tokens=TOKENS),
        ]


def requests_booked(url: str) -> int:
    rows = httpx.get(f"{url}/v1/usage", params={"group_by": ""}).json()["data"]
    return sum(row["requests"] for row in rows)


def test_twenty_visitors_chat_and_compare_at_once(studio: Server) -> None:
    before = requests_booked(studio.url)

    @in_loop
    async def everybody() -> list[list[list[dict[str, Any]]]]:
        return await asyncio.gather(*(visit_and_ask(studio.url, number) for number in range(VISITORS)))

    for visitor in everybody():
        for messages in visitor:
            assert succeeded(messages), messages[-1]
            assert "process_generating" in [message["msg"] for message in messages], "nothing was streamed"
    assert requests_booked(studio.url) - before == VISITORS * (1 + LANES)
    assert_nothing_runs(studio)


@pytest.mark.browser
def test_seven_tabs_of_one_browser_answer(browser: Browser, studio: Server) -> None:
    """A browser has six connections for one host; pages that kept one open each would leave none for answers."""
    context = browser.new_context(locale="zh-CN")
    pages = [visit(context, f"{studio.url}/?tab=chat").page for _ in range(7)]
    for page in pages:
        page.locator("#chat-question textarea").fill("你好")
        page.locator("#chat-send").click()
    for page in pages:
        expect(page.locator("#chat-log .message.bot").first).not_to_be_empty()
        expect(page.locator("#chat-send")).to_be_visible()
    context.close()
    assert_nothing_runs(studio)
