"""What a scrape says, against what was done; and the dashboard against what a scrape has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.engine.histogram import Histogram
from serving.engine.sequence import FinishReason, Request, SamplingParams, TokenDelta
from serving.figures import MAX_NAMES, OTHER, AnswerFigures
from tests.serving.running import GREEDY, QUESTION, RunningServer, running_server, settings_for

DOCS = Path(__file__).parents[2] / "docs"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(url: str, **options: object) -> Samples:
    """When no request but this one is in progress: a request counts a moment after its client has read the answer."""
    while True:
        reply = httpx.get(f"{url}/metrics", **options)
        if "\nbianlian_http_requests_in_progress 1.0\n" in reply.text or reply.status_code != 200:
            break
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(reply.text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def ask(server: RunningServer, **body: object) -> httpx.Response:
    sent = {"model": "tiny", "messages": QUESTION, **GREEDY, **body}
    return httpx.post(f"{server.url}/v1/chat/completions", json=sent, timeout=60)


@pytest.fixture
def server(tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path) -> Iterator[RunningServer]:
    named = [f"{name}={tiny_adapters[name]}" for name in ("r4", "r8")]
    with running_server(settings_for(tiny_base, tmp_path, adapter=named, adapter_slots=1, max_waiting=8)) as running:
        yield running


def test_a_scrape_counts_what_was_done(server: RunningServer) -> None:
    usage = [ask(server, model=name).json()["usage"] for name in ("r8", "r4", "r8")]
    assert ask(server, model="r9").status_code == 404
    assert ask(server, n=9).status_code == 429
    found = scrape(server.url)
    chat = {"endpoint": "/v1/chat/completions", "method": "POST"}
    assert value(found, "bianlian_http_requests_total", status="200", reason="", **chat) == 3
    assert value(found, "bianlian_http_requests_total", status="404", reason="model_not_found", **chat) == 1
    assert value(found, "bianlian_refusals_total", reason="overloaded") == 1
    assert value(found, "bianlian_prompt_tokens_total", adapter="r8") == sum(u["prompt_tokens"] for u in usage[::2])
    generated = sum(u["completion_tokens"] for u in usage)
    assert value(found, "bianlian_generated_tokens_total", adapter="r4") == usage[1]["completion_tokens"]
    assert value(found, "bianlian_time_to_first_token_seconds_count") == 3
    assert value(found, "bianlian_queue_time_seconds_count") == 3
    assert value(found, "bianlian_inter_token_latency_seconds_count") == generated - 3
    assert value(found, "bianlian_answers_total", finish_reason="length") == 3
    assert value(found, "bianlian_engine_step_sequences_sum") >= generated
    assert value(found, "bianlian_adapter_activations_total") == 3  # one slot: each came in anew
    assert value(found, "bianlian_adapter_evictions_total", tier="device") == 2
    assert value(found, "bianlian_adapter_disk_reads_total") == 2
    assert value(found, "bianlian_prefix_cache_hit_tokens_total") == usage[2]["prompt_tokens_details"]["cached_tokens"]
    for name in ("requests_running", "requests_waiting", "kv_blocks_used", "leases"):
        assert value(found, f"bianlian_{name}") == 0
    assert value(found, "process_open_fds") > 3 and value(found, "bianlian_asyncio_tasks") >= 1


def test_two_servers_in_one_process_count_for_themselves(
    server: RunningServer, tiny_base: Path, tmp_path: Path
) -> None:
    with running_server(settings_for(tiny_base, tmp_path / "other")) as other:
        ask(server)
        assert value(scrape(server.url), "bianlian_answers_total", finish_reason="length") == 1
        assert value(scrape(other.url), "bianlian_answers_total", finish_reason="length") == 0


def test_with_keys_a_scrape_and_the_schema_want_one(tiny_base: Path, tmp_path: Path) -> None:
    with running_server(settings_for(tiny_base, tmp_path, api_key=["sk-user"], admin_key="sk-admin")) as running:
        for path in ("/metrics", "/openapi.json"):
            assert httpx.get(f"{running.url}{path}").status_code == 401
            for key in ("sk-user", "sk-admin"):
                assert httpx.get(f"{running.url}{path}", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_a_prompt_that_gives_way_is_counted(tiny_base: Path, tmp_path: Path) -> None:
    """More answers than the blocks hold: some step back, all end."""
    settings = settings_for(tiny_base, tmp_path, max_model_len=256).model_copy(update={"kv_cache_memory": 0.0005})
    with running_server(settings) as running:
        ask(running, n=8, max_tokens=60, ignore_eos=True)
        found = scrape(running.url)
    assert value(found, "bianlian_preemptions_total") > 0
    assert value(found, "bianlian_answers_total", finish_reason="length") == 8


def test_names_beyond_the_limit_share_one_line() -> None:
    figures = AnswerFigures()
    for number in range(MAX_NAMES + 5):
        progress = figures.follow(Request(str(number), (1, 2), SamplingParams(), adapter=f"adapter-{number}"))
        figures.note_step([(progress, TokenDelta(str(number), "", (7,), finish_reason=FinishReason.STOP))])
    assert len(figures.tokens) == MAX_NAMES + 1
    assert figures.tokens[OTHER].prompt == 10 and figures.tokens["adapter-0"].generated == 1


def test_a_value_on_a_bound_belongs_below_it() -> None:
    histogram = Histogram((1, 2))
    for value_, times in ((1, 1), (1.5, 2), (2, 1), (9, 1)):
        histogram.observe(value_, times)
    assert histogram.counts == [1, 3, 1] and histogram.sum == 15


def expressions(node: object) -> Iterator[str]:
    """Every PromQL expression of a dashboard."""
    if isinstance(node, dict):
        yield from (
            text for key, text in node.items() if key in ("expr", "query") and isinstance(text, str) and "(" in text
        )
        for child in node.values():
            yield from expressions(child)
    elif isinstance(node, list):
        for child in node:
            yield from expressions(child)


def test_the_dashboard_and_the_alerts_use_metrics_that_exist(server: RunningServer) -> None:
    assert ask(server, model="r8").status_code == 200 and ask(server, n=9).status_code == 429
    labels_of: dict[str, set[str]] = {}
    for name, labels in scrape(server.url):
        labels_of.setdefault(name, set()).update(label for label, _ in labels)
    dashboard = json.loads((DOCS / "grafana" / "bianlian.json").read_text(encoding="utf-8"))
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    used = [*expressions(dashboard), *re.findall(r"expr: (.+)", page)]
    assert len(dashboard["panels"]) >= 10 and len(used) > 15
    for expression in used:
        names = re.findall(r"\b(?:bianlian|process)_\w+", expression)
        assert names or expression.startswith("up{"), expression
        assert set(names) <= labels_of.keys(), expression
        known = set().union(*(labels_of[name] for name in names)) | {"le", "instance", "job"}
        asked = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expression))
        for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", expression):
            asked |= {label.strip() for label in group.split(",")}
        assert asked <= known, expression
