"""The page in a real browser: lanes grow together, nothing leaves for another host, files stay on the server."""

import json
import os
import socket
import tempfile
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from adapters.aliases import Alias, AliasTarget
from adapters.base_model import fingerprint_of
from adapters.manifest import AdapterManifest, PersonaCard
from adapters.settings import Settings
from serving.ui.markup import shown
from tests import tiny
from tests.ui.browser import Server, Visit, assert_nothing_runs, said, start, visit

GREETING = "俺老孙来也"
SAMPLE = "今天吃什么好？"
KEY = "a-user-key"


def start_with(base: Path, adapter: Path, home: Path, **options: object) -> Server:
    """Answers are long enough to be watched while they grow."""
    settings = Settings(
        home=home,
        base=str(base),
        device="cpu",
        dtype="float32",
        kv_cache_memory=0.1,
        adapter=[f"wukong={adapter}"],
        **options,
    )
    return start(settings)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_base(tmp_path_factory.mktemp("ui") / "slow", layers=4, hidden=128)


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    directory = tiny.save_adapter(base.parent / "wukong", base, rank=4, seed=1)
    AdapterManifest(
        name="wukong",
        base_name=base.name,
        base_fingerprint=fingerprint_of(base),
        template_hash="",
        system_prompt="你是孙悟空。",
        card=PersonaCard(title="孙悟空", greeting=GREETING, samples=["你是谁？", SAMPLE]),
    ).write(directory)
    return directory


@pytest.fixture(scope="module")
def server(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_with(base, adapter, tmp_path_factory.mktemp("home"))
    yield running
    running.close()


@pytest.fixture
def visitor(browser: Browser, server: Server) -> Iterator[Visit]:
    """Someone at a Chinese browser with the page open. Leaves without console errors and without having asked
    any other host for anything."""
    context = browser.new_context(locale="zh-CN", viewport={"width": 1440, "height": 900})
    seen = visit(context, f"{server.url}/?tab=compare")
    expect(seen.page.locator("#compare-send")).to_be_visible()
    yield seen
    seen.close()
    seen.assert_kept_to(server.url)


@pytest.mark.browser
def test_both_lanes_grow_before_either_ends(visitor: Visit, server: Server) -> None:
    page = visitor.page
    page.locator("#compare-question textarea").fill("你好")
    page.keyboard.press("Enter")
    expect(page.locator("#compare-stop")).to_be_visible()
    lengths: list[tuple[int, int]] = []
    while page.locator(".stats.done").count() == 0:
        lengths.append((len(said(page, "lane-0-log")), len(said(page, "lane-1-log"))))
    while_both_run = [(a, b) for a, b in lengths if a and b]
    assert len(set(while_both_run)) >= 2, f"lanes were not seen growing together: {lengths}"
    expect(page.locator(".stats.done")).to_have_count(2)
    expect(page.locator("#compare-send")).to_be_visible()
    version = server.services.registry.resolve("wukong")
    expect(page.locator("#lane-0-stats")).to_contain_text(server.services.base.name)
    expect(page.locator("#lane-1-stats")).to_contain_text(f"{version} · 摘要 {version.digest[:8]}")
    expect(page.locator("#lane-1-stats")).to_contain_text("tokens/s")
    assert said(page, "lane-0-log") != said(page, "lane-1-log")
    assert_nothing_runs(server)


@pytest.mark.browser
def test_strength_zero_with_the_same_dice_says_what_the_base_says(visitor: Visit) -> None:
    page = visitor.page
    page.locator("#lane-1-strength input[type=number]").fill("0")
    page.locator("#lane-1-strength input[type=number]").blur()
    # The adapter's own system prompt would differ from the base's none: give both the same.
    for lane in ("lane-0", "lane-1"):
        page.locator(f"#{lane} button.label-wrap").click()
        page.locator(f"#{lane} textarea").first.fill("你是助手。")
    page.locator("#compare-question textarea").fill("你好")
    page.locator("#compare-send").click()
    expect(page.locator(".stats.done")).to_have_count(2)
    assert said(page, "lane-0-log") == said(page, "lane-1-log") != ""


@pytest.mark.browser
def test_stop_ends_both_lanes_and_frees_the_engine(visitor: Visit, server: Server) -> None:
    page = visitor.page
    page.locator("#compare-question textarea").fill("讲个故事")
    page.locator("#compare-send").click()
    page.wait_for_function("document.querySelectorAll('#lane-0-log .message.bot').length > 0")
    page.locator("#compare-stop").click()
    expect(page.locator(".stats.done")).to_have_count(2)
    expect(page.locator("#lane-0-stats")).to_contain_text("已停止")
    expect(page.locator("#compare-send")).to_be_visible()
    assert_nothing_runs(server)


@pytest.mark.browser
def test_leaving_the_page_frees_the_engine(browser: Browser, server: Server) -> None:
    context = browser.new_context(locale="zh-CN")
    seen = visit(context, f"{server.url}/?tab=compare")
    seen.page.locator("#compare-question textarea").fill("讲个故事")
    seen.page.locator("#compare-send").click()
    seen.page.wait_for_function("document.querySelectorAll('#lane-0-log .message.bot').length > 0")
    context.close()
    assert_nothing_runs(server)


@pytest.mark.browser
def test_an_adapter_loaded_while_the_page_is_open_can_be_chosen(
    visitor: Visit, server: Server, base: Path, tmp_path: Path
) -> None:
    page, registry = visitor.page, server.services.registry
    registry.attach("later", tiny.save_adapter(tmp_path / "later", base, rank=2, seed=9))
    try:
        page.locator("#lane-1-model input").click()
        page.get_by_role("option", name="later@1").click()
        page.locator("#compare-question textarea").fill("你好")
        page.locator("#compare-send").click()
        expect(page.locator(".stats.done")).to_have_count(2)
        expect(page.locator("#lane-1-stats")).to_contain_text("later@1")
    finally:
        registry.detach("later")


def test_aliases_can_be_chosen_after_the_adapters_while_they_mean_something(server: Server) -> None:
    from serving.ui.models import choices, manifest_of

    chat = server.services.chat
    adapter, directory = "wukong", chat.registry.resolve("wukong").directory
    before = choices(chat, "en")
    for name, target in (("persona", adapter), ("plain", chat.base.name)):
        chat.aliases.put(Alias(name=name, targets=[AliasTarget(model=target)]), chat.registry)
    try:
        assert choices(chat, "en") == [*before, ("persona · alias", "persona"), ("plain · alias", "plain")]
        assert choices(chat)[-1] == ("plain · 别名", "plain")
        assert manifest_of(chat, "persona") == manifest_of(chat, adapter) and manifest_of(chat, "plain") is None
        chat.registry.detach(adapter)
        assert [name for _, name in choices(chat)] == [name for _, name in before if name != adapter] + ["plain"]
    finally:
        chat.registry.attach(adapter, directory, replace=True)
        for name in ("persona", "plain"):
            chat.aliases.delete(name)


@pytest.mark.browser
def test_a_refused_question_says_why_and_stays(visitor: Visit) -> None:
    page = visitor.page
    page.locator("#compare-question textarea").fill("长" * 600)
    page.locator("#compare-send").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("maximum context length is 512")
    expect(page.locator("#compare-question textarea")).not_to_be_empty()
    expect(page.locator("#compare-send")).to_be_visible()


@pytest.mark.browser
def test_a_sample_question_goes_to_both_lanes_and_the_next_one_continues(visitor: Visit) -> None:
    page = visitor.page
    page.locator("#compare-samples").get_by_text(SAMPLE).click()
    expect(page.locator(".stats.done")).to_have_count(2)
    page.locator("#compare-question textarea").fill("然后呢")
    page.locator("#compare-send").click()
    expect(page.locator("#lane-1-log .message.user")).to_have_count(2)
    expect(page.locator("#lane-1-log .message.bot")).to_have_count(2)
    page.locator("#compare-stop").click()
    expect(page.locator("#compare-send")).to_be_visible()


@pytest.mark.browser
@pytest.mark.parametrize(("locale", "label"), [("zh", "发送"), ("zh-SG", "发送"), ("en-GB", "Send"), ("fr", "Send")])
def test_the_page_speaks_the_browsers_language(browser: Browser, server: Server, locale: str, label: str) -> None:
    context = browser.new_context(locale=locale, viewport={"width": 390, "height": 844})
    page = visit(context, f"{server.url}/?tab=compare").page
    expect(page.locator("#compare-send")).to_have_text(label)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


@pytest.mark.browser
def test_every_control_has_a_name(visitor: Visit) -> None:
    expect(visitor.page.locator("#compare-samples")).to_contain_text(SAMPLE)
    unnamed = visitor.page.evaluate(
        """[...document.querySelectorAll('button, input, textarea, select')]
           .filter(e => e.checkVisibility() && !e.innerText.trim() && !e.getAttribute('aria-label')
                        && !e.getAttribute('aria-labelledby') && !e.title && !(e.labels && e.labels.length))
           .map(e => e.outerHTML.slice(0, 160))"""
    )
    assert unnamed == []
    expect(visitor.page.locator("h1")).to_have_text("变脸 Bianlian")


def exchange(request: urllib.request.Request) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers, whatever the status."""
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return (
                answer.status,
                answer.read().decode(),
                {name.lower(): value for name, value in answer.headers.items()},
            )
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), {}


def get(url: str) -> tuple[int, str, dict[str, str]]:
    return exchange(urllib.request.Request(url))


def post(url: str, body: object) -> tuple[int, str]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    return exchange(request)[:2]


def run_event(server: Server, data: list[object], fn_index: int) -> str:
    """Send an event as the page does, with any data; what the server answers, whole."""
    join = {"data": data, "fn_index": fn_index, "session_hash": "forger", "trigger_id": None, "event_data": None}
    status, body = post(f"{server.url}/gradio_api/queue/join", join)
    if status != 200:
        return body
    _, events, _ = get(f"{server.url}/gradio_api/queue/data?session_hash=forger")
    return events


def events_of(server: Server) -> list[dict[str, Any]]:
    _, config, _ = get(f"{server.url}/config")
    dependencies: list[dict[str, Any]] = json.loads(config)["dependencies"]
    return dependencies


def test_a_forged_file_is_refused_by_every_event(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / f"{uuid.uuid4().hex}.txt"
    secret.write_text("not for clients")
    forged = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    message = {"role": "user", "content": [{"type": "file", "file": forged}], "metadata": None, "options": None}
    for event in events_of(server):
        for value in (forged, [message]):
            answer = run_event(server, [value] * len(event["inputs"]), event["id"])
            assert '"success":true' not in answer or not event["inputs"], (event["id"], answer)
    cache = Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio")
    assert list(cache.rglob(secret.name)) == []  # whatever lies there can be downloaded
    status, body, _ = get(f"{server.url}/gradio_api/file={secret}")
    assert status == 403 and "not for clients" not in body


def test_the_server_fetches_no_address_for_a_client(server: Server) -> None:
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(1.5)

        def wait() -> None:
            try:
                trap.accept()
                asked.set()
            except TimeoutError:
                pass

        waiting = threading.Thread(target=wait)
        waiting.start()
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        assert get(f"{server.url}/gradio_api/file={address}")[0] == 403
        assert get(f"{server.url}/gradio_api/proxy={address}")[0] == 403
        forged = {"path": address, "meta": {"_type": "gradio.FileData"}}
        join = {"data": [forged], "fn_index": 0, "session_hash": "forger"}
        assert post(f"{server.url}/gradio_api/queue/join", join)[0] == 403
        component = {"component": "file", "value": None, "constructor_args": {"value": "/etc/hostname"}, "props": {}}
        join["data"] = [[{"role": "user", "content": [component]}]]
        assert post(f"{server.url}/gradio_api/queue/join", join)[0] == 403
        waiting.join()
    assert not asked.is_set()


def test_the_page_may_load_from_this_server_only(server: Server) -> None:
    status, page, headers = get(server.url)
    policy = headers["content-security-policy"]
    assert status == 200 and "default-src 'self'" in policy and "img-src 'self' data: blob:" in policy
    assert "http:" not in policy and "https:" not in policy
    assert page.index("<script>(()") < page.index("<meta")


def test_an_answer_with_a_remote_image_fetches_nothing() -> None:
    for text in (
        "看 ![x](https://example.com/a.png) 图",
        "![x][r]\n\n[r]: https://example.com/a.png",
        '<img src="https://example.com/a.png">',
        "<svg><image href=https://example.com/a.png /></svg>",
        "```\ncode\n```\n<img src=//example.com/a.png>",
        "- a\n  ```\n<img src=//example.com/a.png>",
        "```\r```\r<img src=//example.com/a.png>",
        "\\`<img src=//example.com/a.png>\\`",
    ):
        markup = shown(text)
        assert "![" not in markup
        assert "<" not in markup


def test_code_is_shown_as_code() -> None:
    markup = shown("  缩进\n```html\n<b>1 < 2</b>\n```\n<i>x</i> ![a](b)")
    assert markup == "  缩进\n```html\n<b>1 < 2</b>\n```\n&#60;i>x&#60;/i> !&#91;a](b)"


def test_with_a_key_the_page_asks_for_it(
    base: Path, adapter: Path, tmp_path: Path, browser: Browser, server: Server
) -> None:
    guarded = start_with(base, adapter, tmp_path / "home", api_key=[KEY])
    try:
        assert get(f"{guarded.url}/config")[0] == 401
        join = {"data": [], "fn_index": 0, "session_hash": "x"}
        assert post(f"{guarded.url}/gradio_api/queue/join", join)[0] == 401
        assert exchange(urllib.request.Request(f"{guarded.url}/login", b"password=wrong"))[0] == 401
        context = browser.new_context(locale="zh-CN")
        page = visit(context, f"{guarded.url}/?tab=compare").page
        page.locator("input[type=password]").fill(KEY)
        page.locator("button").first.click()
        expect(page.locator("#compare-send")).to_be_visible()
        page.locator("#compare-question textarea").fill("你好")
        page.locator("#compare-send").click()
        expect(page.locator(".stats.done")).to_have_count(2)
        request = urllib.request.Request(f"{guarded.url}/v1/usage", headers={"authorization": f"Bearer {KEY}"})
        booked = json.loads(exchange(request)[1])["data"]
        assert [(row["key"], row["model"]) for row in booked] == [
            ("--api-key 1", base.name),
            ("--api-key 1", "wukong@1"),
        ]
        context.close()
    finally:
        guarded.close()


def test_gradio_is_imported_only_to_serve_the_page() -> None:
    import subprocess
    import sys

    code = "import sys, app, serving.api.server; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
