"""A running server and a real browser at its page."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

import app
from adapters.settings import Settings

CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TIMEOUT_MS = 60_000  # a shared machine may be slow; nothing waits this long when it works
LEAVING = "this document goes away"
USER, ADMIN = "key-of-a-user", "key-of-an-admin"  # of the server `guarded`
expect.set_options(timeout=TIMEOUT_MS)


@dataclass
class Server:
    """A running server."""

    url: str
    services: app.Services
    _uvicorn: uvicorn.Server
    _thread: threading.Thread

    def close(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive(), "the server did not stop"


@dataclass
class Visit:
    """A browser page and what it did: every address it asked for, every error on its console."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    pending: set[Request] = field(default_factory=set)
    streams: int = 0  # of events, ended since the page was opened or loaded again
    leaving: bool = False  # one document, until the next has loaded

    def begin(self, request: Request) -> None:
        if request.is_navigation_request():
            self.pending.clear()
            self.streams = 0
        self.pending.add(request)

    def end(self, request: Request) -> None:
        self.pending.discard(request)
        self.streams += "/queue/data" in request.url

    def arrive(self) -> None:
        self.leaving = False

    def note(self, line: ConsoleMessage) -> None:
        if line.text == LEAVING:
            self.leaving = True
        elif line.type == "error":
            self.note_error(line.text)

    def note_error(self, text: str) -> None:
        """A document that goes away cuts its streams, and Gradio says so: that is no error of the page's."""
        if not (self.leaving and any(cut in text for cut in ("Connection errored out", "AbortError"))):
            self.errors.append(text)

    def assert_kept_to(self, url: str) -> None:
        """No other host was asked for anything, and the console has no error."""
        elsewhere = [asked for asked in self.requests if not asked.startswith((url, "data:", "blob:"))]
        assert not elsewhere, elsewhere
        assert not self.errors, self.errors

    def close(self) -> None:
        self.leaving = True
        self.page.context.close()


def start(settings: Settings) -> Server:
    services = app.build_services(settings)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app.build_app(services), log_level="warning", timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    return Server(f"http://127.0.0.1:{listening.getsockname()[1]}", services, server, thread)


def visit(context: BrowserContext, url: str) -> Visit:
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    seen = Visit(page)
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("request", lambda request: seen.begin(request))
    page.on("requestfinished", lambda request: seen.end(request))
    page.on("requestfailed", lambda request: seen.end(request))
    page.on("console", lambda line: seen.note(line))
    page.on("pageerror", lambda error: seen.note_error(str(error)))
    page.on("load", lambda _: seen.arrive())
    page.add_init_script(f"addEventListener('beforeunload', () => console.debug('{LEAVING}'))")
    page.goto(url)
    # A settled page, if it settles soon; some asset of Gradio's is now and then still open after a minute.
    with suppress(PlaywrightTimeout):
        page.wait_for_load_state("networkidle", timeout=5_000)
    return seen


@contextmanager
def logged_in(browser: Browser, server: Server, key: str, path: str) -> Iterator[Page]:
    """The page at `path`, for somebody English with this key."""
    context = browser.new_context(locale="en")
    page = visit(context, server.url).page
    page.locator("#key").fill(key)
    page.get_by_role("button").click()
    page.goto(f"{server.url}/{path}")
    yield page
    context.close()


IDLE = "() => new Promise(done => requestIdleCallback(done, { timeout: 5000 }))"


def settle(seen: Visit, patience_s: float = 20) -> None:
    """Until what the page asks for when it opens has come, and it has been idle for a moment. A page that is left
    earlier logs errors of Gradio's; some asset is now and then open for long, so patience ends."""
    until, quiet = time.monotonic() + patience_s, 0
    while quiet < 6 and time.monotonic() < until:
        seen.page.wait_for_timeout(50)
        seen.page.evaluate(IDLE)
        quiet = 0 if seen.pending or not seen.streams else quiet + 1


def said(page: Page, log: str) -> str:
    """What the model has answered so far in this Chatbot."""
    return " ".join(page.locator(f"#{log} .message.bot").all_inner_texts()).strip()


def assert_nothing_runs(server: Server) -> None:
    deadline = time.monotonic() + 10
    while server.services.engine.engine.has_work:
        assert time.monotonic() < deadline, "the engine still works for nobody"
        time.sleep(0.05)
    versions = server.services.registry.versions()
    assert [server.services.registry.leases(version) for version in versions] == [0] * len(versions)
