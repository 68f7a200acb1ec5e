"""The soak in short: many streaming clients, some leave, one dawdles; nothing stays behind."""

import asyncio
from pathlib import Path

import httpx
import pytest

from benchmarks.soak import soak, soaked_server


@pytest.mark.slow
def test_after_a_short_soak_everything_is_back_where_it_was(tmp_path: Path) -> None:
    with soaked_server(tmp_path) as server:
        models = [card["id"] for card in httpx.get(f"{server.url}/v1/models").json()["data"]]
        figures = asyncio.run(soak(server, models, clients=30, seconds=10, warm_up_s=5))
    assert figures["errors"] == {} and figures["stayed"] == {}, figures
    assert figures["completed"] > 30 and figures["left"] > 5 and figures["bytes_dawdled"] > 5
