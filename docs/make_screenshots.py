"""Takes the README's pictures from a running server:

python docs/make_screenshots.py http://127.0.0.1:7860 [--question TEXT] [--dark] [--width 1440] [--out FILE]
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
TIMEOUT_MS = 120_000


def screenshot_compare(url: str, out: Path, question: str, *, dark: bool, width: int, height: int, locale: str) -> None:
    """Ask `question` in the Compare tab, wait for all answers, and write the window as PNG to `out`."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        raise SystemExit("make_screenshots: Chromium is not installed; install your distribution's `chromium` package")
    out.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGS)
        scheme = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": height}, locale=locale, color_scheme=scheme)
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(f"{url}/?tab=compare")
        page.locator("#compare-question textarea").fill(question)
        page.locator("#compare-send").click()
        expect(page.locator(".stats.done")).to_have_count(2, timeout=TIMEOUT_MS)
        page.wait_for_timeout(500)  # smooth scrolling ends
        page.screenshot(path=out)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:7860")
    parser.add_argument("--question", default="你是谁？")
    parser.add_argument("--out", type=Path, default=IMAGES / "compare.png")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--locale", default="zh-CN")
    given = parser.parse_args()
    screenshot_compare(
        given.url,
        given.out,
        given.question,
        dark=given.dark,
        width=given.width,
        height=given.height,
        locale=given.locale,
    )


if __name__ == "__main__":
    main()
