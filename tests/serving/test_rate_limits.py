"""Limits a minute: what is taken when, what comes back, and what many callers at once get."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from adapters.errors import Invalid, RateLimited
from serving.keys import KeyStore
from serving.rate_limits import RateLimiter
from tests.serving.running import GREEDY, QUESTION, RunningServer, running_server, settings_for


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> RateLimiter:
    limiter = RateLimiter(clock)
    limiter.set_limits("a", 6, 600)
    return limiter


def test_a_minutes_worth_at_once_and_then_as_it_comes_back(limiter: RateLimiter, clock: Clock) -> None:
    for _ in range(6):
        limiter.take("a", 1, 1)
    with pytest.raises(RateLimited) as refused:
        limiter.take("a", 1, 1)
    assert refused.value.retry_after_s == pytest.approx(10) and refused.value.code == "rate_limit_exceeded"
    clock.now += 10
    limiter.take("a", 1, 1)
    with pytest.raises(RateLimited):
        limiter.take("a", 1, 1)
    clock.now += 3600  # no more than a minute's worth is saved up
    assert limiter.allowances("a")["requests"].remaining == 6


def test_what_is_refused_takes_nothing(limiter: RateLimiter) -> None:
    limiter.take("a", 1, 500)
    for _ in range(20):
        with pytest.raises(RateLimited, match="600 tokens a minute"):
            limiter.take("a", 1, 101)
    left = limiter.allowances("a")
    assert (left["requests"].remaining, left["tokens"].remaining) == (5, 100)


def test_generated_tokens_may_leave_a_debt_that_is_waited_for(limiter: RateLimiter, clock: Clock) -> None:
    limiter.take("a", 1, 600)
    limiter.spend("a", 300)
    left = limiter.allowances("a")["tokens"]
    assert (left.remaining, left.reset_s) == (0, pytest.approx(90))
    with pytest.raises(RateLimited) as refused:
        limiter.check("a", 1)
    assert refused.value.retry_after_s == pytest.approx(30)
    clock.now += 31
    limiter.take("a", 1, 10)


def test_more_than_a_minutes_worth_is_never_granted_and_says_so(limiter: RateLimiter) -> None:
    with pytest.raises(Invalid, match="601 tokens at once.*600 a minute"):
        limiter.take("a", 1, 601)
    with pytest.raises(Invalid, match="7 requests at once"):
        limiter.check("a", 7)


def test_changed_limits_hold_at_once_and_forget_no_use(limiter: RateLimiter) -> None:
    limiter.take("a", 4, 0)
    limiter.set_limits("a", 10, 600)
    assert limiter.allowances("a")["requests"].remaining == 6
    limiter.set_limits("a", 3, 600)
    assert limiter.allowances("a")["requests"].remaining == 3
    limiter.set_limits("a", None, None)
    limiter.take("a", 1000, 10**9)
    assert limiter.allowances("a") == {}


def test_many_threads_get_exactly_what_there_is(limiter: RateLimiter) -> None:
    limiter.set_limits("a", 100, None)
    start = threading.Barrier(8)

    def take_many(_: int) -> int:
        start.wait()
        granted = 0
        for _ in range(50):
            try:
                limiter.take("a", 1, 0)
                granted += 1
            except RateLimited:
                pass
        return granted

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(take_many, range(8))) == 100


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    with running_server(settings_for(tiny_base, home, adapter=[f"r8={tiny_adapters['r8']}"])) as running:
        running.services.chat.limits._clock = Clock()  # nothing comes back while a test runs
        yield running
        running.assert_nothing_held()


def with_limits(server: RunningServer, name: str, **limits: int) -> openai.OpenAI:
    """A client with a new key."""
    _, key = KeyStore(server.services.database).create(name, **limits)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def left(server: RunningServer, name: str) -> dict[str, int]:
    server.assert_nothing_held()  # what is generated is taken as the answer ends
    return {unit: allowance.remaining for unit, allowance in server.services.chat.limits.allowances(name).items()}


def test_of_many_requests_at_once_as_many_as_allowed_are_answered(server: RunningServer) -> None:
    client = with_limits(server, "burst", requests_per_minute=3)

    def ask(_: int) -> str:
        try:
            client.chat.completions.create(model="tiny", messages=QUESTION, **GREEDY)
        except openai.RateLimitError as error:
            assert error.body["code"] == "rate_limit_exceeded" and error.body["type"] == "rate_limit_error"
            assert int(error.response.headers["retry-after"]) == 20
            assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
            return "refused"
        return "answered"

    with ThreadPoolExecutor(12) as threads:
        assert sorted(threads.map(ask, range(12))) == ["answered"] * 3 + ["refused"] * 9


def test_answers_carry_what_is_left_in_openais_headers(server: RunningServer) -> None:
    client = with_limits(server, "headers", requests_per_minute=60, tokens_per_minute=6000)
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=QUESTION, **GREEDY)
    usage = raw.parse().usage
    headers = {name: value for name, value in raw.headers.items() if name.startswith("x-ratelimit")}
    assert headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.000s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": str(6000 - usage.total_tokens),
        "x-ratelimit-reset-tokens": f"{usage.total_tokens / 100:.3f}s",
    }
    assert not [name for name in httpx.get(f"{server.url}/health").headers if "ratelimit" in name]


def test_choices_share_one_request_and_prompt_and_lanes_and_prompts_do_not(server: RunningServer) -> None:
    client = with_limits(server, "counting", requests_per_minute=100, tokens_per_minute=100_000)
    usage = client.chat.completions.create(model="tiny", messages=QUESTION, n=3, **GREEDY).usage
    spent = usage.total_tokens
    assert left(server, "counting") == {"requests": 99, "tokens": 100_000 - spent}
    spent += client.completions.create(model="tiny", prompt=["one", "one", "two"], n=2, **GREEDY).usage.total_tokens
    assert left(server, "counting") == {"requests": 96, "tokens": 100_000 - spent}
    lanes = [{"model": "tiny"}, {"model": "r8"}]
    body = {"messages": QUESTION, "lanes": lanes, **GREEDY}
    headers = {"authorization": f"Bearer {client.api_key}"}
    ends = [
        event for event in compare_events(server, body, headers) if event["type"] == "end"
    ]  # fmt: skip
    spent += sum(end["prompt_tokens"] + end["completion_tokens"] for end in ends)
    assert left(server, "counting") == {"requests": 94, "tokens": 100_000 - spent}


def compare_events(server: RunningServer, body: dict, headers: dict[str, str]) -> list[dict]:
    import json

    reply = httpx.post(f"{server.url}/v1/compare", json=body, headers=headers, timeout=30)
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_stream_takes_its_prompt_first_and_what_it_generated_when_the_client_leaves(server: RunningServer) -> None:
    client = with_limits(server, "leaving", tokens_per_minute=1000)
    prompt = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=1).usage.prompt_tokens
    used = 1000 - left(server, "leaving")["tokens"]
    gate = threading.Event()
    started = threading.Event()
    engine = server.services.engine
    step = engine.engine.step

    def paused() -> list:
        deltas = step()
        if deltas and not started.is_set():
            started.set()
            gate.wait()
        return deltas

    engine.engine.step = paused
    try:
        with httpx.stream(
            "POST",
            f"{server.url}/v1/chat/completions",
            json={"model": "tiny", "messages": QUESTION, "ignore_eos": True, "max_tokens": 400, "stream": True},
            headers={"authorization": f"Bearer {client.api_key}"},
        ) as reply:
            assert reply.headers["x-ratelimit-remaining-tokens"] == str(1000 - used - prompt)
            assert started.wait(10)
            gate.set()
            next(reply.iter_lines())
    finally:
        gate.set()
        engine.engine.step = step
    rest = 1000 - used - prompt - left(server, "leaving")["tokens"]
    assert 1 <= rest <= 400


def test_a_debt_refuses_the_next_request_and_not_the_running_answer(server: RunningServer) -> None:
    client = with_limits(server, "debtor", tokens_per_minute=100)
    ask = {"model": "tiny", "messages": QUESTION, "max_tokens": 200, "extra_body": {"ignore_eos": True}}
    assert client.chat.completions.create(**ask).usage.completion_tokens == 200
    with pytest.raises(openai.RateLimitError, match="100 tokens a minute"):
        client.chat.completions.create(**ask)


def test_what_can_never_be_granted_is_a_400_and_what_did_not_start_costs_nothing(server: RunningServer) -> None:
    client = with_limits(server, "refused", requests_per_minute=3, tokens_per_minute=200)
    for body, error in (
        ({"model": "tiny", "messages": [{"role": "user", "content": "x " * 300}]}, openai.BadRequestError),
        ({"model": "nobody", "messages": QUESTION}, openai.NotFoundError),
        ({"model": "tiny", "messages": QUESTION, "max_tokens": -1}, openai.BadRequestError),
    ):
        with pytest.raises(error):
            client.chat.completions.create(**body)
    lanes = [{"model": "tiny"}] * 4
    headers = {"authorization": f"Bearer {client.api_key}"}
    reply = httpx.post(f"{server.url}/v1/compare", json={"messages": QUESTION, "lanes": lanes}, headers=headers)
    assert reply.status_code == 400 and "4 requests at once" in reply.json()["error"]["message"]
    assert left(server, "refused") == {"requests": 3, "tokens": 200}
