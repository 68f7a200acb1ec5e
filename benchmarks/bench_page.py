"""How soon the page answers: from the click on "Send" to the first words in each lane, as the browser shows them.

A real server, Chromium, the bundled base and a persona. Reported: the time until `bianlian serve` is ready with its
page, and of some rounds the time from the click to the first lane's first words, and from there to the last lane's. The
targets: ready within 8 s, lanes within 500 ms of the click and within 50 ms of each other."""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright
from rich.console import Console
from rich.table import Table

from benchmarks.results import write_results
from benchmarks.server import Server
from benchmarks.shapes import BUNDLED_BASE

TIMEOUT_MS = 60_000
QUESTION = "你是谁？"
TARGETS = {"ready_s": 8.0, "first_ms": 500.0, "apart_ms": 50.0}

# Of the browser's own clock: when Send was clicked, and when each lane first showed a word.
WATCH = """(lanes) => {
  const times = window.benchTimes = { lanes: {} };
  const logs = lanes.map(lane => document.querySelector(`#lane-${lane}-log`));
  const earlier = logs.map(log => log.querySelectorAll('.message.bot').length);
  const look = () => logs.forEach((log, at) => {
    const said = log.querySelectorAll('.message.bot')[earlier[at]];
    if (said && said.innerText.trim() && !(at in times.lanes)) times.lanes[at] = performance.now();
  });
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
  document.querySelector('#compare-send').addEventListener(
    'click', () => { times.clicked = performance.now(); }, { once: true, capture: true });
}"""


def main() -> None:
    options = arguments()
    console = Console()
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        raise SystemExit("bench_page: Chromium is not installed; install your distribution's `chromium` package")
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        with Server(BUNDLED_BASE, Path(scratch) / "home", ui=True) as server, sync_playwright() as playwright:
            ready_s = time.monotonic() - started
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(TIMEOUT_MS)
            page.goto(f"{server.url}/?tab=compare")
            expect(page.locator("#compare-send")).to_be_visible(timeout=TIMEOUT_MS)
            page.wait_for_load_state("networkidle")
            rounds = [asked(page) for _ in range(options.rounds + 1)][1:]  # the first warms up
            browser.close()
    report(console, ready_s, rounds, options.output)


def asked(page: Page) -> tuple[float, float]:
    """(ms from the click to the first lane's words, ms from there to the other's)."""
    page.locator("#compare-clear").click()
    expect(page.locator("#lane-0-log .message")).to_have_count(0, timeout=TIMEOUT_MS)
    page.locator("#compare-question textarea").fill(QUESTION)
    page.evaluate(WATCH, [0, 1])
    page.locator("#compare-send").click()
    expect(page.locator(".stats.done")).to_have_count(2, timeout=TIMEOUT_MS)
    expect(page.locator("#compare-send")).to_be_visible(timeout=TIMEOUT_MS)
    times = page.evaluate("window.benchTimes")
    begun = sorted(times["lanes"].values())
    assert len(begun) == 2, "a lane said nothing"
    return begun[0] - times["clicked"], begun[1] - begun[0]


def report(console: Console, ready_s: float, rounds: list[tuple[float, float]], output: Path | None) -> None:
    first, apart = ([each[at] for each in rounds] for at in (0, 1))
    measured = {"ready_s": [ready_s], "first_ms": first, "apart_ms": apart}
    named = {
        "ready_s": "serve, with the page, is ready: s",
        "first_ms": "click to first words: ms",
        "apart_ms": "first lane to last lane: ms",
    }
    table = Table("", "median", "most", "target", title=f"{BUNDLED_BASE.name}, two lanes, {len(rounds)} questions")
    for name, values in measured.items():
        table.add_row(named[name], f"{statistics.median(values):.1f}", f"{max(values):.1f}", f"{TARGETS[name]:g}")
    console.print(table)
    console.print(f"written to {write_results('page', measured, output)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/page.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
