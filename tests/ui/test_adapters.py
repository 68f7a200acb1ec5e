"""The Adapters tab in a real browser: find, publish, roll back, share out, export, delete; and who may."""

import io
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from adapters.samples import PERSONAS
from tests.ui.browser import ADMIN, USER, Server, logged_in
from tests.ui.conftest import OpenPage

WUKONG = PERSONAS / "wukong"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def zipped(directory: Path, alpha: int) -> dict[str, object]:
    """The persona as an upload; `alpha` makes it another version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.write(directory / WEIGHTS, f"adapter/{WEIGHTS}")
        config = (directory / CONFIG).read_text(encoding="utf-8")
        archive.writestr(f"adapter/{CONFIG}", re.sub(r'"lora_alpha": \d+', f'"lora_alpha": {alpha}', config))
    return {"name": "adapter.zip", "mimeType": "application/zip", "buffer": buffer.getvalue()}


def publish(page: Page, name: str, alpha: int) -> None:
    accordion = page.locator("#adapters-upload")
    if not page.locator("#adapters-publish").is_visible():
        accordion.locator("button.label-wrap").click()
    accordion.locator("input[type=file]").set_input_files([zipped(WUKONG, alpha)])
    expect(accordion).to_contain_text("adapter.zip")
    page.locator("#adapters-name textarea").fill(name)
    page.locator("#adapters-notes textarea").fill(f"alpha {alpha}")
    page.locator("#adapters-publish").click()


@pytest.mark.browser
def test_publish_roll_back_export_and_delete(studio: Server, open_page: OpenPage) -> None:
    registry = studio.services.registry
    page = open_page("?tab=adapters").page
    detail, toast = page.locator("#adapters-detail"), page.get_by_test_id("toast-body")
    expect(detail).to_contain_text("孙悟空")  # the first one
    publish(page, "monkey", 24)
    expect(toast.first).to_contain_text("已发布 monkey@1")
    expect(detail).to_contain_text("monkey@1")
    expect(detail).to_contain_text("每 token 改变底座")
    publish(page, "monkey", 12)
    expect(detail).to_contain_text("monkey@2")
    expect(detail.locator("tbody tr")).to_have_count(2)
    expect(detail).to_contain_text("α = 12")
    assert str(registry.resolve("monkey")) == "monkey@2"

    page.locator("#adapters-version input").click()
    page.get_by_role("option", name="monkey@1").click()
    expect(detail).to_contain_text("α = 24")
    page.locator("#adapters-make-current").click()
    expect(page.locator("#adapters-make-current")).to_be_disabled()
    assert str(registry.resolve("monkey")) == "monkey@1"

    page.locator("#adapters-pin").click()
    expect(page.locator("#adapters-unpin")).to_be_visible()
    expect(page.locator("#adapters-list button[aria-current]")).to_contain_text("固定")
    page.locator("#adapters-unpin").click()
    expect(page.locator("#adapters-pin")).to_be_visible()

    page.locator("#adapters-export").click()
    with page.expect_download() as download:
        page.locator("#adapters-download").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert f"monkey/{WEIGHTS}" in archive.namelist()
        assert archive.read(f"monkey/{WEIGHTS}") == (WUKONG / WEIGHTS).read_bytes()

    page.locator("#adapters-delete button.label-wrap").click()
    page.locator("#adapters-confirm textarea").fill("monke")
    page.locator("#adapters-really").click()
    expect(toast.filter(has_text="请输入 monkey@1 或 monkey")).to_be_visible()
    assert registry.store.numbers("monkey") == [1, 2]
    page.locator("#adapters-confirm textarea").fill("monkey@1")
    page.locator("#adapters-really").click()
    expect(detail.locator("tbody tr")).to_have_count(1)
    assert registry.store.numbers("monkey") == [2]
    page.locator("#adapters-delete button.label-wrap").click()
    page.locator("#adapters-confirm textarea").fill("monkey")
    page.keyboard.press("Enter")
    expect(detail).to_contain_text("“monkey”不在了")
    assert registry.store.numbers("monkey") == []


@pytest.mark.browser
def test_what_cannot_be_served_is_refused_by_name_and_stays_to_be_corrected(open_page: OpenPage) -> None:
    page = open_page("?tab=adapters").page
    page.locator("#adapters-upload button.label-wrap").click()
    pickle = {"name": "adapter_model.bin", "mimeType": "application/octet-stream", "buffer": b"x"}
    config = {"name": CONFIG, "mimeType": "application/json", "buffer": (WUKONG / CONFIG).read_bytes()}
    page.locator("#adapters-upload input[type=file]").set_input_files([pickle, config])
    expect(page.locator("#adapters-files")).to_contain_text("adapter_model")
    page.locator("#adapters-name textarea").fill("bad")
    page.locator("#adapters-publish").click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("file: 'adapter_model.bin' is a pickle")
    expect(page.locator("#adapters-files")).to_contain_text("adapter_model")


@pytest.mark.browser
def test_an_alias_is_shared_out_by_sliders_that_stay_at_a_hundred(studio: Server, open_page: OpenPage) -> None:
    chat = studio.services.chat
    page = open_page("?tab=adapters").page
    page.locator("#adapters-aliases button.label-wrap").click()
    expect(page.locator("#aliases-list")).to_contain_text("还没有别名")
    page.locator("#alias-name input").fill("persona")
    page.keyboard.press("Enter")
    for model in ("wukong", f"{chat.base.name} · 底座"):
        page.locator("#alias-targets input").click()
        page.get_by_role("option", name=model, exact=True).click()
    page.keyboard.press("Escape")
    first, second = (page.locator(f"#alias-share-{at} input[type=number]") for at in (0, 1))
    expect(first).to_have_value("50")
    first.fill("90")
    first.blur()
    expect(second).to_have_value("10")
    page.locator("#alias-save").click()
    expect(page.locator("#aliases-list")).to_contain_text("wukong 90.0%")
    alias = chat.aliases.require("persona")
    assert [(target.model, target.weight) for target in alias.targets] == [("wukong", 90), (chat.base.name, 10)]
    page.locator("#alias-delete").click()
    page.locator("#alias-really").click()
    expect(page.locator("#aliases-list")).to_contain_text("还没有别名")
    assert chat.aliases.all() == []


@pytest.mark.browser
def test_hundreds_are_searched_and_turned_over_by_keyboard_on_a_phone(studio: Server, open_page: OpenPage) -> None:
    store = studio.services.registry.store
    names = [f"many-{number:03}" for number in range(120)]
    for name in names:
        store.publish(WUKONG, name)
    try:
        page = open_page("?tab=adapters&adapter=many-007", width=390, height=844, locale="en", dark=True).page
        listed, pager = page.locator("#adapters-list button"), page.locator("#adapters-pager")
        expect(page.locator("#adapters-detail")).to_contain_text("many-007@1")  # the address's
        expect(listed).to_have_count(10)
        expect(pager).to_contain_text("page 1 of 13")
        page.locator("#adapters-next").click()
        expect(pager).to_contain_text("page 2 of 13")
        expect(listed.first).to_contain_text("many-010")
        page.locator("#adapters-search textarea").fill("many-11")
        expect(pager).to_contain_text("page 1 of 1 · 10 in all")
        listed.nth(3).focus()
        page.keyboard.press("Enter")
        expect(page.locator("#adapters-detail")).to_contain_text("many-113@1")
        assert "adapter=many-113" in page.url
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        chat = page.get_by_role("link", name="Chat with it")
        assert chat.get_attribute("href") == "?tab=chat&model=many-113%401"
    finally:
        for name in names:
            studio.services.registry.remove(name)


@pytest.mark.browser
def test_with_keys_users_look_and_admins_change(browser: Browser, guarded: Server) -> None:
    for key in (USER, ADMIN):
        with logged_in(browser, guarded, key, "?tab=adapters") as page:
            expect(page.locator("#adapters-detail")).to_contain_text("persona@1")
            for part in ("#adapters-actions", "#adapters-upload", "#adapters-detail table"):
                expect(page.locator(part)).to_be_visible(visible=key == ADMIN)
