"""The Train tab: a stranger drops a file, starts, watches, and keeps what was learned; and who may not is kept out."""

import asyncio
import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Page, expect

from adapters.errors import NotFound
from adapters.ui.tab import Viewer
from serving.files import FileStore
from serving.lifecycle import AdapterLifecycle
from serving.own_thread import run_on_own_thread
from tests.ui.browser import Server
from tests.ui.conftest import OpenPage
from training.jobs.fine_tuning import FineTuning
from training.jobs.queue import JobQueue
from training.ui.charts import Line, bar_chart, line_chart, nice_ticks, share_bar, short
from training.ui.desk import Desk
from training.ui.form import KNOBS, choices_of
from training.ui.services import TrainServices

QUESTION = "你是谁？"


def rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"第 {n} 问", "input": "", "output": f"本宫答第 {n} 问。"} for n in range(count)]


def data_file(directory: Path, name: str, content: object) -> Path:
    path = directory / name
    path.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")
    return path


def drop(page: Page, path: Path) -> None:
    page.locator("#train-file input[type=file]").set_input_files(path)


def fill(page: Page, box: str, text: str) -> None:
    """Type into a box and leave it."""
    element = page.locator(f"#{box} textarea, #{box} input").first
    element.fill(text)
    element.blur()


def open_drawer(page: Page, name: str) -> None:
    page.get_by_role("button", name=name).click()
    expect(page.locator("#train-seed input")).to_be_visible()
    for number in page.locator("#train-advanced input[type=number]").all():
        expect(number).to_have_value("")


def expect_state(page: Page, state: str) -> None:
    expect(page.locator(f"#train-head .tr-chip.{state}")).to_be_visible(timeout=180_000)


def files_of(server: Server) -> FileStore:
    return FileStore(server.services.settings.uploads)


def jobs_of(server: Server) -> JobQueue:
    return JobQueue(server.services.settings.root)


@pytest.mark.browser
def test_a_stranger_trains_a_face_watches_it_learn_and_keeps_a_snapshot(
    open_page: OpenPage, studio: Server, tmp_path: Path
) -> None:
    page = open_page("?tab=train").page
    expect(page.locator("#train-status")).to_contain_text("先给它一个文件")
    drop(page, data_file(tmp_path, "huanhuan-30.json", [*rows(30), {"instruction": "没有答案"}]))
    report = page.locator("#train-report")
    expect(report).to_contain_text("alpaca")
    expect(report).to_contain_text("1 行不能用")
    report.get_by_text("1 行不能用").click()
    expect(report.locator("details[open] li")).to_contain_text("huanhuan-30.json:")
    expect(page.locator("#train-preview .tr-learned").nth(1)).to_have_text("本宫答第 0 问。<|im_end|>")
    expect(page.locator("#train-name input, #train-name textarea").first).to_have_value("huanhuan")
    page.get_by_role("button", name="自动选择了什么").click()
    expect(page.locator("#train-plan")).to_contain_text("0.0032")
    page.get_by_label("快速试试").check()
    expect(page.locator("#train-estimate")).to_contain_text("约 7 步")
    fill(page, "train-questions", QUESTION)
    page.locator("#train-start").click()
    expect_state(page, "running")
    expect_state(page, "succeeded")
    expect(page.locator("#train-head")).to_contain_text("第 7 / 7 步")
    expect(page.locator("#train-charts polyline.train").first).to_be_attached()
    expect(page.locator("#train-charts polyline.validation")).to_be_attached()
    expect(page.locator("#train-head a").first).to_have_attribute("href", "?tab=chat&model=huanhuan%401")
    assert str(studio.services.registry.resolve("huanhuan")) == "huanhuan@1"

    (job,) = jobs_of(studio).all()
    page.reload()  # nothing is lost: the address says which run
    expect(page.locator("#train-head")).to_contain_text(job.id)
    answers = page.locator("#train-answers")
    expect(answers).to_contain_text("快照 7 / 7 · 第 7 步")
    expect(answers).to_contain_text(QUESTION)
    ask = page.locator("#train-ask")
    if ask.is_visible():  # the server answers by itself unless others were waiting
        ask.click()
    expect(answers.locator(".tr-cell.tuned p:not(.none)")).to_be_visible()
    expect(answers.locator(".tr-cell:not(.tuned) p:not(.none)")).to_be_visible()
    expect(answers.locator("a").first).to_have_attribute("href", f"?tab=chat&model={job.id}%3Astep-7")
    slider = page.locator("#train-snapshot input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(answers).to_contain_text("快照 6 / 7 · 第 6 步")
    fill(page, "train-publish-name", "坏 名字")
    page.locator("#train-publish").click()
    expect(page.locator("#train-published")).to_contain_text("must be 1 to 64 letters")
    fill(page, "train-publish-name", "early")
    page.locator("#train-publish").click()
    expect(page.locator("#train-published")).to_contain_text("已发布为 early@1")
    snapshot = studio.services.registry.snapshots.resolve(f"{job.id}:step-6")
    assert studio.services.registry.resolve("early").digest == snapshot.digest
    gone = AdapterLifecycle(studio.services.chat).publish_snapshot(f"{job.id}:step-99", "late")
    with pytest.raises(NotFound, match="has snapshots of steps"):
        run_on_own_thread(asyncio.run, gone)


@pytest.mark.browser
def test_on_a_phone_in_english_and_dark_an_upload_of_another_tab_is_checked(
    open_page: OpenPage, studio: Server, tmp_path: Path
) -> None:
    files = files_of(studio)
    with files.workspace() as workspace:
        stored = files.add(data_file(workspace, "received", rows(12)), "from-chat.json", "fine-tune")
    page = open_page(f"?tab=train&file={stored.id}", width=390, height=844, locale="en-US", dark=True).page
    expect(page.locator("#train-report")).to_contain_text("usable rows")
    expect(page.locator("#train-name input, #train-name textarea").first).to_have_value("from-chat")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    open_drawer(page, "Advanced")
    fill(page, "train-max_length", "100000")
    expect(page.locator("#train-estimate")).to_contain_text("is more than the base")
    expect(page.locator("#train-start")).to_be_disabled()
    fill(page, "train-max_length", "")
    expect(page.locator("#train-estimate")).to_contain_text("About")
    expect(page.locator("#train-start")).to_be_enabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.reload()  # what was filled in is kept
    expect(page.locator("#train-report")).to_contain_text("usable rows")
    drop(page, data_file(tmp_path, "torn.json", [{"question": "?"}] * 3))
    expect(page.locator("#train-new-run")).to_contain_text("torn.json")
    expect(page.locator("#train-new-run .tr-verdict.bad").first).to_be_visible()
    expect(page.locator("#train-start")).not_to_be_enabled()


@pytest.mark.browser
def test_a_run_is_paused_resumed_and_cancelled_from_any_page(
    open_page: OpenPage, studio: Server, tmp_path: Path
) -> None:
    page = open_page("?tab=train").page
    drop(page, data_file(tmp_path, "long.json", rows(40)))
    expect(page.locator("#train-report .tr-cards")).to_be_visible()
    open_drawer(page, "高级设置")
    fill(page, "train-epochs", "50")
    fill(page, "train-snapshot_steps", "1000")
    expect(page.locator("#train-estimate")).to_contain_text("约 250 步")
    page.locator("#train-start").click()
    expect(page.locator("#train-charts polyline.train").first).to_be_attached(timeout=180_000)
    other = open_page("?tab=train").page  # whoever comes sees what runs
    expect_state(other, "running")
    other.locator("#train-pause").click()
    expect_state(other, "paused")
    expect_state(page, "paused")
    page.locator("#train-resume").click()
    expect(page.locator("#train-head .tr-chip")).not_to_have_class("tr-chip paused")
    page.locator("#train-cancel").click()
    expect_state(page, "cancelled")
    expect(page.locator("#train-resume")).to_be_visible()
    expect(page.locator("#train-pause")).to_be_hidden()
    page.reload()
    expect_state(page, "cancelled")
    page.locator("#train-new").click()  # with what was filled in before
    expect(page.locator("#train-name input, #train-name textarea").first).to_have_value("long")
    expect(page.locator("#train-report .tr-cards")).to_be_visible()


def desk_for(home: Path, base: Path, *, admin: bool) -> Desk:
    tuning = FineTuning(JobQueue(home), FileStore(home / "uploads"), {"tiny": str(base)}, lambda name: None)

    async def viewer_of(request: gr.Request) -> Viewer:
        return Viewer("somebody", admin)

    async def apart(function: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(function, *args, **kwargs)

    class Nobody:
        def kept(self, job_id: str) -> Any:
            raise AssertionError("nobody may ask")

        async def probe(self, job_id: str, *, key: str = "") -> Any:
            raise AssertionError("nobody may ask")

    async def publish(model_id: str, name: str) -> Any:
        raise AssertionError("nobody may publish")

    return Desk(TrainServices(tuning, "cpu", viewer_of, Nobody(), publish, apart), [None] * (8 + len(KNOBS)))


def test_without_the_admin_key_nothing_is_shown_and_nothing_done(tiny_base: Path, tmp_path: Path) -> None:
    desk = desk_for(tmp_path, tiny_base, admin=False)
    upload = data_file(tmp_path, "rows.json", rows(12))
    file = desk.new.take(str(data_file(tmp_path, "other.json", rows(12))))
    request = gr.Request(headers={"accept-language": "en"}, query_params={"tab": "train"}, cookies={})
    values = [file, "face", "short", "normal", "", "", "tiny", "auto", *[None] * len(KNOBS)]

    async def drained(generator: Any) -> list[Any]:
        return [value async for updates in generator for value in updates]

    async def everything() -> list[Any]:
        job = await asyncio.to_thread(desk.new.tuning.create, choices_of(values).request("sft"))
        before = job.journal.status()
        told = [
            *(await desk.open(request, None, None)),
            *(await desk.begin(request, None)),
            *(await desk.refresh(request, job.id, "", 0, "")),
            *(await desk.show(request, job.id)),
            *(await desk.turn(request, job.id, 1)),
            *(await desk.pause(request, job.id, 0)),
            *(await desk.resume(request, job.id, 0)),
            *(await desk.cancel(request, job.id, 0)),
            *(await drained(desk.examine(request, *values))),
            *(await drained(desk.start(request, *values))),
            *(await drained(desk.ask(request, job.id, 1))),
            *(await desk.uploaded(request, str(upload)))[1:],
        ]
        assert await desk.publish(request, job.id, 1, "face") == ""
        assert await desk.name_it(request, file, "kept") == "kept"
        await desk.keep(request, *values)
        assert job.journal.status() == before and len(desk.view.queue.all()) == 1
        return told

    told = run_on_own_thread(asyncio.run, everything())
    assert all(update == gr.skip() for update in told)
    assert desk.new.draft("somebody") is None and upload.exists()
    notice, body, *rest = run_on_own_thread(asyncio.run, desk.arrive(request))
    assert "admin key" in notice and body.visible is False and all(update == gr.skip() for update in rest)


def test_charts_escape_what_they_are_told_and_say_it_in_words() -> None:
    evil = '<img src=x onerror="1">'
    drawn = [
        line_chart(evil, [Line(evil, "train", [(1, 2.0), (2, 1.5)], dots=True)], spoken=evil, empty=evil, marks=[1]),
        line_chart(evil, [], spoken=evil, empty=evil),
        bar_chart(evil, [(evil, 3, evil)], evil),
        share_bar(evil, [("zh", evil, 3, evil)]),
    ]
    assert all("<img" not in chart for chart in drawn)
    assert 'role="img"' in drawn[0] and "aria-label" in drawn[0]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (6.35, 6.9), (3.2e-3, 3.2e-3), (0, 0), (-2, 5), (1e-6, 2e-6), (0, 63), (7, 123456)]
)
def test_ticks_are_round_even_and_hold_everything(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    steps = {round((b - a) / (ticks[-1] - ticks[0]), 6) for a, b in zip(ticks, ticks[1:], strict=False)}
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12 and 2 <= len(ticks) <= 7 and len(steps) == 1
    assert len({short(tick) for tick in ticks}) == len(ticks)
