"""A server for tests that bring none of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.running import RunningServer, running_server, settings_for


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """On the tiny base, with two adapters; nothing is held when its file is through."""
    home = tmp_path_factory.mktemp("home")
    named = [f"{name}={tiny_adapters[name]}" for name in ("r2", "r8")]
    with running_server(settings_for(tiny_base, home, adapter=named)) as running:
        yield running
        running.assert_nothing_held()
