"""The last quarter of an hour: samples against what /metrics says, and what is made of them."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.api.request_log import RequestLog
from serving.engine.histogram import Histogram
from serving.metrics import HttpFigures
from serving.recent import KEPT_S, Counted, Recent, Sample, Window
from serving.ui.monitor.charts import Line, highest
from tests.serving.running import RunningServer, running_server, settings_for
from tests.serving.test_metrics import ask, scrape, value

NOTHING = Counted((1.0, 2.0), (0, 0, 0))
QUIET = Sample(
    at_s=0.0,
    running=0,
    waiting=0,
    kv_used=0,
    admitted=0,
    cached=0,
    active=0,
    host_bytes=0,
    device_bytes=0,
    resident_bytes=None,
    gpu_bytes=None,
    prompt={},
    generated={},
    first_token_s=NOTHING,
    between_tokens_s=NOTHING,
)


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    named = [f"{name}={tiny_adapters[name]}" for name in ("r4", "r8")]
    with running_server(settings_for(tiny_base, tmp_path_factory.mktemp("recent"), adapter=named)) as running:
        yield running


def test_figures_are_those_of_metrics(server: RunningServer) -> None:
    recent = Recent(server.services.chat)
    for model in ("r4", "r8", "r8", "tiny"):
        assert ask(server, model=model).status_code == 200
    server.assert_nothing_held()
    sample, found = recent.take(), scrape(server.url)
    for name in ("r4", "r8"):
        assert sample.prompt[name] == value(found, "bianlian_prompt_tokens_total", adapter=name) > 0
        assert sample.generated[name] == value(found, "bianlian_generated_tokens_total", adapter=name) > 0
    assert sample.first_token_s.total == value(found, "bianlian_time_to_first_token_seconds_count") == 4
    assert sample.between_tokens_s.total == value(found, "bianlian_inter_token_latency_seconds_count")
    below = 0
    for bound, count in zip(sample.first_token_s.bounds, sample.first_token_s.counts, strict=False):
        below += count
        assert below == value(found, "bianlian_time_to_first_token_seconds_bucket", le=str(float(bound)))
    assert sample.active == value(found, "bianlian_adapters", tier="device") == 2
    assert sample.host_bytes == value(found, "bianlian_adapter_memory_bytes", tier="host")
    assert (sample.running, sample.waiting, sample.kv_used) == (0, 0, 0)
    assert sample.admitted == value(found, "bianlian_admitted_prompt_tokens_total")
    assert sample.cached == value(found, "bianlian_prefix_cache_hit_tokens_total")
    totals = recent.totals
    assert totals.kv_blocks == value(found, "bianlian_kv_blocks")
    assert totals.slots == value(found, "bianlian_adapter_slots")
    assert totals.answers == sum(n for (name, _), n in found.items() if name == "bianlian_answers_total")
    assert sample.resident_bytes and sample.resident_bytes > 2**20
    by_adapter = {name: generated for name, _, generated in recent.window(60).tokens_by_adapter()}
    assert by_adapter["r8"] == sample.generated["r8"]


def test_the_last_requests_that_failed_are_kept_with_their_ids() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        status = int(scope["query_string"])
        scope.setdefault("state", {})["reason"] = "model_not_found" if status == 404 else ""
        await Response(status_code=status)(scope, receive, send)

    figures = HttpFigures()
    transport = httpx.ASGITransport(RequestLog(answer, figures, {"/v1/models"}))

    async def send() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for number, status in enumerate((200, 404, 499, 429)):
                await client.get(f"/v1/models?{status}", headers={"x-request-id": f"mine-{number}"})
            await client.get("/elsewhere?404")

    asyncio.run(send())
    assert [(each.id, each.status, each.reason) for each in figures.failed] == [
        ("mine-1", 404, "model_not_found"),
        ("mine-3", 429, ""),
    ]
    assert figures.refused == 1


def test_quantiles_are_prometheus() -> None:
    histogram = Histogram((1, 2, 4))
    assert Counted.of(histogram).quantile(0.5) is None
    for seconds, times in ((0.5, 2), (1.5, 4), (3.0, 2)):
        histogram.observe(seconds, times)
    counted = Counted.of(histogram)
    assert counted.quantile(0.25) == 1.0  # the first two fill the first range
    assert counted.quantile(0.5) == 1.5
    assert counted.quantile(0.75) == 2.0
    assert counted.quantile(1.0) == 4.0
    histogram.observe(100)
    assert Counted.of(histogram).quantile(1.0) == 4  # beyond all bounds: the last of them
    assert Counted.of(histogram).since(counted).total == 1


def test_rates_and_traffic_are_differences() -> None:
    samples = [replace(QUIET, at_s=float(at), generated={"a": at * 10, "b": 5}, prompt={"a": at}) for at in range(11)]
    window = Window(samples, 10)
    assert window.rate(lambda sample: sample.generated_tokens) == 10
    assert window.tokens_by_adapter() == [("a", 10, 100)]  # b has done nothing in this time
    assert Window(samples[:1], 10).rate(lambda sample: sample.generated_tokens) == 0


def test_a_chart_has_few_points_that_stay_where_they_are() -> None:
    samples = [replace(QUIET, at_s=100 + at * 1.0, generated={"a": at}) for at in range(KEPT_S + 1)]
    window = Window(samples, KEPT_S)
    steps = window.steps(180)
    assert 180 <= len(steps) <= 182
    assert all(one.last is two.first for one, two in zip(steps, steps[1:], strict=False))
    assert (steps[0].first, steps[-1].last) == (samples[0], samples[-1])
    assert {round(step.rate(lambda sample: sample.generated_tokens), 6) for step in steps} == {1.0}
    later = Window([*samples[1:], replace(QUIET, at_s=samples[-1].at_s + 1, generated={"a": 901})], KEPT_S)
    cuts, cuts_later = ({step.last.at_s for step in found.steps(180)[1:-1]} for found in (window, later))
    assert len(cuts & cuts_later) >= 178


def test_the_top_of_a_chart_is_a_round_number_above_all_values() -> None:
    for most, top in ((0.0, 1.0), (0.3, 1.0), (1.01, 2.0), (7, 10), (23, 50), (100, 100)):
        assert highest([Line("x", [(0.0, most), (1.0, None)], "")], 1) == top
    assert highest([Line("x", [(0.0, 0.003)], "")], 0.001) == pytest.approx(0.005)
