"""The load client against our own server, and against small real servers that behave as others do."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from typer.testing import CliRunner

from adapters.errors import BianlianError, Invalid, NotFound, Unavailable
from adapters.settings import Settings
from app import cli, listen
from serving.load_client import Endpoint, Load, Sample, list_models, percentiles, prompts_of, run_load, summarise
from tests.serving.running import RunningServer, running_server

PROMPTS = tuple(({"role": "user", "content": text},) for text in ("你好，你是谁？", "今天星期几？", "hello"))


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    named = [f"{name}={tiny_adapters[name]}" for name in ("r2", "r8")]
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        base=str(tiny_base),
        device="cpu",
        dtype="float32",
        kv_cache_memory=0.05,
        ui=False,
        adapter=named,
    )
    with running_server(settings) as running:
        yield running


@contextmanager
def peer(answer: Callable[[dict[str, Any]], Response]) -> Iterator[str]:
    """A chat completions endpoint of another make, over real HTTP; yields its address."""

    async def completions(request: Request) -> Response:
        return answer(await request.json())

    app = Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not running.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(timeout=30)


def stream(*events: dict[str, Any] | str) -> Response:
    async def lines() -> AsyncIterator[str]:
        for event in events:
            yield f"data: {event if isinstance(event, str) else json.dumps(event)}\r\n\r\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


def chunk(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def load_of(url: str, *models: str, requests: int = 1, **options: Any) -> Load:
    return Load(Endpoint(url), models or ("any",), PROMPTS, requests=requests, **options)


def test_percentiles_are_nearest_ranks() -> None:
    hundred = percentiles([float(n) for n in range(100, 0, -1)])
    assert hundred and (hundred.p50, hundred.p90, hundred.p99, hundred.max) == (50, 90, 99, 100)
    three = percentiles([3.0, 1.0, 2.0])
    assert three and (three.p50, three.p90, three.p99, three.max) == (2, 3, 3, 3)
    one = percentiles([7.0])
    assert one and (one.p50, one.p99) == (7, 7)
    assert percentiles([]) is None


def test_rates_and_times_count_completed_requests_only() -> None:
    good = Sample("a", 0.0, 2.0, ttft_s=0.5, gaps_s=(0.1, 0.3), prompt_tokens=9, output_tokens=30)
    bad = Sample("b", 0.0, 60.0, ttft_s=50.0, output_tokens=1, error="503", message="busy")
    report = summarise([good, bad, good], wall_s=4.0)
    assert (report.requests, report.completed, report.errors, report.messages) == (3, 2, {"503": 1}, {"503": "busy"})
    assert (report.requests_per_s, report.output_tokens_per_s, report.prompt_tokens) == (0.5, 15.0, 18)
    assert report.ttft_s and report.ttft_s.max == 0.5
    assert report.inter_token_s and (report.inter_token_s.p50, report.inter_token_s.max) == (0.1, 0.3)


def test_counts_are_the_servers_and_models_take_turns(server: RunningServer) -> None:
    seen: list[Sample] = []
    load = load_of(server.url, "tiny", "r2", "r8", requests=7, concurrency=3, max_tokens=12)
    report = asyncio.run(run_load(load, seen.append))
    assert report.completed == report.requests == len(seen) == 7
    assert report.completed_by_model == {"tiny": 3, "r2": 2, "r8": 2}
    assert report.output_tokens == 7 * 12, "end of turn is ignored"
    assert not report.errors and not report.left_out
    assert report.ttft_s and report.latency_s and 0 < report.ttft_s.p50 <= report.latency_s.max
    for sample in seen:
        assert sample.ttft_s and sample.ttft_s + sum(sample.gaps_s) <= sample.latency_s
    server.assert_nothing_held()


def test_the_servers_connections_hold_no_small_write_back() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_open_loop_starts_requests_while_others_run(server: RunningServer) -> None:
    report = asyncio.run(run_load(load_of(server.url, "tiny", requests=6, rate=500.0, max_tokens=40)))
    assert report.completed == 6
    started = sorted(sample.started_s for sample in report.samples)
    assert started[-1] < min(sample.started_s + sample.latency_s for sample in report.samples)


def test_errors_are_counted_by_kind_and_the_rest_goes_on(server: RunningServer) -> None:
    report = asyncio.run(run_load(load_of(server.url, "tiny", "r9", requests=4, max_tokens=2)))
    assert report.completed == 2 and report.errors == {"404 model_not_found": 2}
    assert "r9" in report.messages["404 model_not_found"]


def test_random_prompts_have_the_length_asked_for_and_all_differ(server: RunningServer) -> None:
    prompts = asyncio.run(prompts_of(Endpoint(server.url), "tiny", tokens=100, count=5))
    assert len(set(str(prompt) for prompt in prompts)) == 5
    load = Load(Endpoint(server.url), ("tiny",), prompts, requests=5, max_tokens=1)
    for sample in asyncio.run(run_load(load)).samples:
        assert sample.prompt_tokens == pytest.approx(100, abs=20)


def test_models_are_those_the_server_lists(server: RunningServer) -> None:
    assert set(asyncio.run(list_models(Endpoint(f"{server.url}/v1/")))) == {"tiny", "r2", "r8"}


@pytest.mark.parametrize(
    ("url", "kind"), [("http://127.0.0.1:9", Unavailable), ("nowhere", Invalid), ("http://[::1", Invalid)]
)
def test_an_address_without_a_server_is_one_clear_error(url: str, kind: type[BianlianError]) -> None:
    with pytest.raises(kind):
        asyncio.run(list_models(Endpoint(url)))


def test_a_model_the_server_does_not_know_is_said_before_the_load(server: RunningServer) -> None:
    with pytest.raises(NotFound, match="r9"):
        asyncio.run(prompts_of(Endpoint(server.url), "r9", tokens=10, count=1))


def test_refused_fields_are_left_out_and_said_so() -> None:
    """As OpenAI's own API and older servers do: 400 naming the field."""
    bodies: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> Response:
        bodies.append(body)
        for name in ("ignore_eos", "stream_options"):
            if name in body:
                return JSONResponse({"error": {"message": f"Unrecognized request argument: {name}"}}, 400)
        return stream(chunk(role="assistant", content=""), chunk(content="a"), chunk("stop", content="b"), "[DONE]")

    with peer(answer) as url:
        report = asyncio.run(run_load(load_of(url, requests=3)))
    assert report.completed == 3 and report.left_out == ("ignore_eos", "stream_options")
    assert len(bodies) == 5, "each field is refused once, then never sent again"
    assert report.output_tokens == 6, "without usage, events with tokens are counted"


def test_a_field_that_is_not_optional_is_not_retried() -> None:
    with peer(lambda body: JSONResponse({"error": {"message": "temperature is too high", "code": "bad"}}, 400)) as url:
        report = asyncio.run(run_load(load_of(url)))
    assert report.errors == {"400 bad": 1} and not report.left_out


def test_the_first_token_is_not_the_event_that_names_the_role() -> None:
    """It may have no text; then its logprobs or ids show it."""

    def answer(body: dict[str, Any]) -> Response:
        async def events() -> AsyncIterator[str]:
            yield f": ping\n\ndata: {json.dumps(chunk(role='assistant', content=''))}\n\n"
            await asyncio.sleep(0.1)
            silent = chunk()
            silent["choices"][0]["logprobs"] = {"content": [{"token": "", "logprob": -1.0}]}
            yield f"data: {json.dumps(silent)}\n\n"
            await asyncio.sleep(0.1)
            usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
            yield f"data: {json.dumps(chunk('stop', content='x'))}\n\ndata: {json.dumps(usage)}\n\ndata: [DONE]"

        return StreamingResponse(events(), media_type="text/event-stream")

    with peer(answer) as url:
        sample = asyncio.run(run_load(load_of(url))).samples[0]
    assert sample.error is None and sample.output_tokens == 2 and sample.prompt_tokens == 3
    assert sample.ttft_s and 0.1 <= sample.ttft_s < sample.latency_s - 0.05
    assert len(sample.gaps_s) == 1


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([chunk(content="a"), {"error": {"message": "the engine failed"}}], "error event"),
        ([chunk(content="a")], "cut off"),
        (["{oops"], "not JSON"),
    ],
)
def test_a_stream_that_breaks_is_an_error(events: list[Any], kind: str) -> None:
    with peer(lambda body: stream(*events)) as url:
        assert asyncio.run(run_load(load_of(url))).errors == {kind: 1}


def test_bench_prints_a_table_and_writes_json(server: RunningServer, tmp_path: Path) -> None:
    dataset = tmp_path / "prompts.jsonl"
    dataset.write_text('"hi"\n{"prompt": "你好"}\n{"messages": [{"role": "user", "content": "?"}]}\n', encoding="utf-8")
    out = tmp_path / "new" / "figures.json"
    options = ["--models", "tiny,r8", "--concurrency", "1,2", "--requests", "4", "--max-tokens", "3"]
    result = CliRunner().invoke(
        cli, ["bench", "--url", server.url, *options, "--dataset", str(dataset), "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "2 clients" in result.output and "tokens/s" in result.output
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["format"] == 1 and document["models"] == ["tiny", "r8"]
    assert [run["concurrency"] for run in document["runs"]] == [1, 2]
    for run in document["runs"]:
        assert (run["requests"], run["completed"], run["output_tokens"], run["errors"]) == (4, 4, 12, {})
        assert run["completed_by_model"] == {"tiny": 2, "r8": 2}
        assert set(run["ttft_s"]) == {"p50", "p90", "p99", "max"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--concurrency", "0"], "concurrency"),
        (["--rate", "3", "--concurrency", "2"], "leave out"),
        (["--rate", "-1"], "above 0"),
        (["--dataset", "/nowhere.jsonl"], "cannot be read"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(options: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["bench", "--url", "http://127.0.0.1:9", *options])
    assert isinstance(result.exception, Invalid) and words in result.exception.message


def test_a_bad_row_of_a_dataset_is_named_by_line(tmp_path: Path) -> None:
    dataset = tmp_path / "prompts.jsonl"
    dataset.write_text('"good"\n{"answer": 1}\n', encoding="utf-8")
    result = CliRunner().invoke(cli, ["bench", "--url", "http://127.0.0.1:9", "--dataset", str(dataset)])
    assert isinstance(result.exception, Invalid) and "prompts.jsonl:2" in result.exception.message
