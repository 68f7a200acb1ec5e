"""Walks the tour of docs/tour.md with a browser and takes its pictures, in Chinese and in English:

python docs/make_tour.py [DATA.json] [--url http://127.0.0.1:7860] [--name niangniang] [--images DIR]

DATA is a small Alpaca file; without it, every twelfth row of the shipped persona 娘娘. What a visitor does is done in
the Chinese page; the English one then opens the same address, as a second visitor would. Prints how long each step
took; the time that the pictures take is left out."""

import argparse
import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images" / "tour"
ROWS = ROOT / "adapters" / "bundled" / "data" / "niangniang.jsonl"
EVERY = 12  # of them
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
VIEW = {"width": 1440, "height": 900}
TIMEOUT_MS = 120_000
TRAINING_MS = 900_000
SETTLE_MS = 700  # charts are drawn, smooth scrolling ends


class Tour:
    """Two pages, and the pictures taken of them."""

    def __init__(self, chinese: Page, english: Page, url: str, images: Path):
        self.chinese, self.english, self.url, self.images = chinese, english, url, images
        self.walked_s = 0.0
        self.last = time.monotonic()

    def shoot(self, name: str, in_sight: str) -> None:
        """The Chinese page as it is, and the English one at the same address, each with `in_sight` on screen."""
        step_s = time.monotonic() - self.last
        self.walked_s += step_s
        print(f"{name}: {step_s:.0f} s, {self.walked_s:.0f} s in all", flush=True)
        self._picture(self.chinese, "zh", name, in_sight)
        query = dict(parse_qsl(urlsplit(self.chinese.url).query)) | {"lang": "en"}
        self.english.goto(f"{self.url}/?{urlencode(query)}")
        self._picture(self.english, "en", name, in_sight)
        self.last = time.monotonic()

    def _picture(self, page: Page, language: str, name: str, in_sight: str) -> None:
        spot = page.locator(in_sight).first
        expect(spot).to_be_visible(timeout=TIMEOUT_MS)
        spot.scroll_into_view_if_needed()
        page.wait_for_timeout(SETTLE_MS)
        out = self.images / language / f"{name}.png"
        out.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=out, animations="disabled")


def walk(tour: Tour, data: Path, name: str, question: str) -> None:
    page = tour.chinese
    page.goto(tour.url)
    tour.shoot("1-home", "#home-train")

    page.locator("#home-train").click()
    page.locator("#train-file input[type=file]").set_input_files(data)
    expect(page.locator("#train-start")).to_be_enabled(timeout=TIMEOUT_MS)
    tour.shoot("2-data", "#train-report")

    page.locator("#train-name textarea, #train-name input").first.fill(name)
    page.locator("#train-name textarea, #train-name input").first.blur()
    expect(page.locator("#train-start")).to_be_enabled(timeout=TIMEOUT_MS)
    tour.shoot("3-settings", "#train-start")

    page.locator("#train-start").click()
    expect(page.locator("#train-snapshot")).to_be_visible(timeout=TRAINING_MS)
    tour.shoot("4-learning", "#train-charts")

    compare = page.locator("#train-head a[href*='tab=compare']")
    expect(compare).to_be_visible(timeout=TRAINING_MS)
    expect(page.locator("#train-answers")).not_to_contain_text("还没有作答", timeout=TIMEOUT_MS)
    tour.shoot("5-learned", "#train-answers")

    compare.click()
    page.locator("#compare-question textarea").fill(question)
    page.locator("#compare-send").click()
    expect(page.locator(".stats.done")).to_have_count(2, timeout=TIMEOUT_MS)
    tour.shoot("6-compare", "#lane-1-stats")

    link = page.locator("#compare-link textarea, #compare-link input").first
    expect(link).to_have_value(re.compile("comparison="))
    page.goto(urljoin(page.url, link.input_value()))
    expect(page.locator(".stats.done")).to_have_count(2, timeout=TIMEOUT_MS)
    tour.shoot("7-link", "#compare-replay")


def shipped_rows(file: Path) -> Path:
    """An Alpaca file as people have them."""
    conversations = [json.loads(line)["messages"] for line in ROWS.read_text(encoding="utf-8").splitlines()[::EVERY]]
    rows = [{"instruction": asked["content"], "output": said["content"]} for asked, said, *_ in conversations]
    file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--name", default="niangniang")
    parser.add_argument("--question", default="你是谁？")
    parser.add_argument("--images", type=Path, default=IMAGES)
    given = parser.parse_args()
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        raise SystemExit("make_tour: Chromium is not installed; install your distribution's `chromium` package")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGS)
        pages = [browser.new_context(locale=locale, viewport=VIEW).new_page() for locale in ("zh-CN", "en-US")]
        for page in pages:
            page.set_default_timeout(TIMEOUT_MS)
        data = given.data or shipped_rows(Path(scratch) / "niangniang.json")
        walk(Tour(*pages, given.url.rstrip("/"), given.images), data, given.name, given.question)
        browser.close()


if __name__ == "__main__":
    main()
