"""The studio as a visitor meets it: the real server, the bundled base and personas, and Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from playwright.sync_api import Browser, sync_playwright

from adapters.settings import Settings
from tests import tiny
from tests.ui.browser import ADMIN, CHROMIUM_ARGS, USER, Server, Visit, start, visit


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert executable, "the UI tests need Chromium: install your distribution's `chromium` package"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own for each test file, on the bundled base."""
    running = start(Settings(home=tmp_path_factory.mktemp("studio"), device="cpu", kv_cache_memory=0.1))
    yield running
    running.close()


class OpenPage(Protocol):
    def __call__(
        self, path: str = "", *, width: int = 1440, height: int = 900, locale: str = "zh-CN", dark: bool = False
    ) -> Visit: ...


@pytest.fixture
def open_page(browser: Browser, studio: Server) -> Iterator[OpenPage]:
    """Opens pages of the studio. None of them may ask another host for anything or leave an error on its console."""
    visits: list[Visit] = []

    def open_one(
        path: str = "", *, width: int = 1440, height: int = 900, locale: str = "zh-CN", dark: bool = False
    ) -> Visit:
        context = browser.new_context(
            locale=locale, viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        visits.append(visit(context, f"{studio.url}/{path}"))
        return visits[-1]

    yield open_one
    for seen in visits:
        seen.close()
    for seen in visits:
        seen.assert_kept_to(studio.url)


# The whole suite with every tab takes half an hour on two cores. These are in `make test`, the others in `make studio`.
IN_THE_SUITE = {"test_page.py", "test_compare.py"}
IN_A_BROWSER = {"open_page", "browser", "studio"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        of_a_tab = item.path.parent == Path(__file__).parent and item.path.name not in IN_THE_SUITE
        if of_a_tab and isinstance(item, pytest.Function) and IN_A_BROWSER & set(item.fixturenames):
            item.add_marker("studio")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    """A server that wants a key, `USER` or `ADMIN`, with one adapter."""
    base = tiny.save_base(tmp_path / "tiny")
    settings = Settings(
        home=tmp_path / "home",
        base=str(base),
        device="cpu",
        dtype="float32",
        kv_cache_memory=0.05,
        api_key=[USER],
        admin_key=ADMIN,
        adapter=[f"persona={tiny.save_adapter(tmp_path / 'persona', base, rank=2, seed=1)}"],
    )
    running = start(settings)
    yield running
    running.close()
