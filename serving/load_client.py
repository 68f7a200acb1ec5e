"""A load client for any server that speaks OpenAI's chat completions: streams answers and measures what a caller
would notice. Pure asyncio over httpx; `bianlian bench` and the benchmarks print what it returns.

Client and server share a machine in most uses, and with whatever else runs there: read ratios of one run."""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from adapters.errors import BianlianError, Forbidden, Invalid, NotFound, Unavailable
from adapters.renderer import Message

# Fields beyond OpenAI's first version of the API: a server may refuse them, and the load goes on without.
OPTIONAL_FIELDS = ("ignore_eos", "stream_options", "seed")
CONNECT_S = 10.0
SILENCE_S = 600.0  # a server that sends nothing for this long has failed the request
_WORDS = tuple("time day way man year hand part place case week work fact group point home water room night".split())

Prompt = tuple[Message, ...]


@dataclass(frozen=True)
class Endpoint:
    """Where to send requests: the server's address with or without `/v1`, and the key it wants, if any."""

    url: str
    api_key: str | None = None

    @property
    def root(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True)
class Load:
    """What to send. Request i goes to model i and prompt i, both taken round and round."""

    endpoint: Endpoint
    models: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    requests: int
    concurrency: int = 1  # closed loop: so many clients, each sending its next request when the last has ended
    rate: float | None = None  # open loop: requests a second at random moments (Poisson), whatever still runs
    max_tokens: int = 64
    temperature: float = 0.0
    ignore_eos: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One request. Times in seconds; those of a failed request are None or end with the failure."""

    model: str
    started_s: float  # since the load began
    latency_s: float
    ttft_s: float | None = None  # to the first event that carries a token
    gaps_s: tuple[float, ...] = ()  # between events that carry tokens
    prompt_tokens: int | None = None  # None: the server does not say
    output_tokens: int = 0  # from `usage`; without it, events that carried tokens
    error: str | None = None  # its kind, short enough to count by
    message: str | None = None


@dataclass(frozen=True)
class Percentiles:
    """Of values in seconds."""

    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class LoadReport:
    requests: int
    completed: int
    wall_s: float
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    ttft_s: Percentiles | None  # None: no request came so far
    inter_token_s: Percentiles | None
    latency_s: Percentiles | None
    completed_by_model: dict[str, int]
    errors: dict[str, int]  # kind → requests
    messages: dict[str, str]  # kind → the first message of that kind
    left_out: tuple[str, ...]  # optional fields that the server refused
    samples: tuple[Sample, ...] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Everything but the single samples."""
        return {key: value for key, value in asdict(self).items() if key != "samples"}


async def run_load(load: Load, on_sample: Callable[[Sample], None] = lambda sample: None) -> LoadReport:
    """Send the load and measure it; `on_sample` is called as each request ends. A request that fails is counted
    under its kind of error, and the others go on."""
    client = _Client(load)
    async with _http(load.endpoint, limit=load.requests if load.rate else load.concurrency) as http:
        started = time.perf_counter()
        samples: list[Sample] = []

        async def send(number: int) -> None:
            sample = await client.send(http, number, started)
            samples.append(sample)
            on_sample(sample)

        if load.rate is None:
            await _closed_loop(load.requests, load.concurrency, send)
        else:
            await _open_loop(load.requests, load.rate, load.seed, send)
        wall = time.perf_counter() - started
    return summarise(samples, wall, tuple(sorted(client.left_out)))


def summarise(samples: Sequence[Sample], wall_s: float, left_out: tuple[str, ...] = ()) -> LoadReport:
    """Figures of all requests; times and rates count those that completed."""
    done = [sample for sample in samples if sample.error is None]
    failed = [sample for sample in samples if sample.error is not None]
    tokens = sum(sample.output_tokens for sample in done)
    return LoadReport(
        requests=len(samples),
        completed=len(done),
        wall_s=wall_s,
        prompt_tokens=sum(sample.prompt_tokens or 0 for sample in done),
        output_tokens=tokens,
        requests_per_s=len(done) / wall_s,
        output_tokens_per_s=tokens / wall_s,
        ttft_s=percentiles([sample.ttft_s for sample in done if sample.ttft_s is not None]),
        inter_token_s=percentiles([gap for sample in done for gap in sample.gaps_s]),
        latency_s=percentiles([sample.latency_s for sample in done]),
        completed_by_model=dict(Counter(sample.model for sample in done)),
        errors=dict(Counter(sample.error for sample in failed if sample.error)),
        messages={sample.error: sample.message or "" for sample in reversed(failed) if sample.error},
        left_out=left_out,
        samples=tuple(samples),
    )


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Nearest rank: the smallest value that at least p % do not exceed. None of no values."""
    if not values:
        return None
    ordered = sorted(values)

    def at(percent: int) -> float:
        return ordered[max(-(-len(ordered) * percent // 100), 1) - 1]

    return Percentiles(at(50), at(90), at(99), ordered[-1])


async def list_models(endpoint: Endpoint) -> list[str]:
    """Ids in `/v1/models`. Raises Unavailable when nobody answers there."""
    async with _http(endpoint) as http:
        try:
            reply = await http.get("/v1/models")
        except httpx.HTTPError as error:
            raise _unreachable(endpoint, error) from error
    if reply.status_code != 200:
        raise _refusal(endpoint, reply.status_code, *_explain(reply.status_code, reply.content))
    try:
        return [str(model["id"]) for model in reply.json()["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"{endpoint.root}/v1/models is no list of models; is this an OpenAI-compatible API?") from error


async def prompts_of(endpoint: Endpoint, model: str, tokens: int, count: int, seed: int = 0) -> tuple[Prompt, ...]:
    """`count` different prompts of about `tokens` tokens, chat template included, as that server's tokenizer counts.

    Two short requests tell how many tokens a word is; a server that reports no usage is taken to have one a word.
    Raises Unavailable, NotFound, Forbidden or Invalid when the server does not answer them."""
    dice = random.Random(seed)
    few, many = 8, max(tokens, 16)
    counted = [await _count(endpoint, model, random_prompt(dice, words)) for words in (few, many)]
    words = tokens
    if counted[0] and counted[1] and counted[1] > counted[0]:
        per_word = (counted[1] - counted[0]) / (many - few)
        words = max(1, round(few + (tokens - counted[0]) / per_word))
    return tuple(random_prompt(dice, words) for _ in range(count))


def random_prompt(dice: random.Random, words: int) -> Prompt:
    """Different from the first word on, so that no two share a cached prefix beyond the chat template's head."""
    return ({"role": "user", "content": " ".join(dice.choices(_WORDS, k=words))},)


async def warm_up(endpoint: Endpoint, models: Sequence[str]) -> None:
    """One short request to every model: what is measured next is not its first use. Raises like `prompts_of`."""
    for model in models:
        await _count(endpoint, model, random_prompt(random.Random(model), 8))


async def _count(endpoint: Endpoint, model: str, prompt: Prompt) -> int | None:
    """How many tokens the server counts in a prompt. A server that fails here fails every request, so this raises."""
    load = Load(endpoint, (model,), (prompt,), requests=1, max_tokens=1)
    sample = (await run_load(load)).samples[0]
    if sample.error is not None:
        status, _, _ = sample.error.partition(" ")
        raise _refusal(endpoint, int(status) if status.isdigit() else None, sample.error, sample.message or "")
    return sample.prompt_tokens


class _Client:
    """Sends single requests, and remembers which optional fields this server refuses."""

    def __init__(self, load: Load):
        self.load = load
        self.left_out: set[str] = set()

    async def send(self, http: httpx.AsyncClient, number: int, began: float) -> Sample:
        """One request, measured. Sent again without a field when the server refuses that field; the time of the
        refusals is not counted."""
        body = self._body(number)
        while True:
            started = time.perf_counter()
            watch = _Stopwatch(body["model"], started, began)
            try:
                async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
                    if reply.status_code == 200:
                        return await watch.read(reply)
                    kind, message = _explain(reply.status_code, await reply.aread())
                    status = reply.status_code
            except httpx.HTTPError as error:
                return watch.failed(type(error).__name__, str(error) or "the connection broke")
            refused = [name for name in OPTIONAL_FIELDS if name in body and name in message]
            if status not in (400, 422) or not refused:
                return watch.failed(kind, message)
            for name in refused:
                self.left_out.add(name)
                del body[name]

    def _body(self, number: int) -> dict[str, Any]:
        load = self.load
        body: dict[str, Any] = {
            "model": load.models[number % len(load.models)],
            "messages": list(load.prompts[number % len(load.prompts)]),
            "max_tokens": load.max_tokens,
            "temperature": load.temperature,
            "seed": load.seed + number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if load.ignore_eos:
            body["ignore_eos"] = True
        return {name: value for name, value in body.items() if name not in self.left_out}


class _Stopwatch:
    """Reads one streamed answer and notes when its tokens came."""

    def __init__(self, model: str, started: float, began: float):
        self.model = model
        self.started = started
        self.began = began
        self.moments: list[float] = []  # of events that carried tokens
        self.usage: dict[str, Any] = {}
        self.whole = False

    async def read(self, reply: httpx.Response) -> Sample:
        async for data in _events(reply.aiter_bytes()):
            now = time.perf_counter()
            if data == b"[DONE]":
                self.whole = True
                continue
            try:
                event = json.loads(data)
            except ValueError:
                return self.failed("not JSON", data[:200].decode(errors="replace"))
            if error := event.get("error"):
                details = error if isinstance(error, dict) else {"message": str(error)}
                return self.failed("error event", str(details.get("message")))
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices") or []:
                if _carries_token(choice):
                    self.moments.append(now)
                self.whole = self.whole or choice.get("finish_reason") is not None
        if not self.whole:
            return self.failed("cut off", "the stream ended without finish_reason and [DONE]")
        return self._sample(output_tokens=self.usage.get("completion_tokens", len(self.moments)))

    def failed(self, kind: str, message: str) -> Sample:
        return self._sample(error=kind, message=message)

    def _sample(self, output_tokens: int = 0, error: str | None = None, message: str | None = None) -> Sample:
        return Sample(
            model=self.model,
            started_s=self.started - self.began,
            latency_s=time.perf_counter() - self.started,
            ttft_s=self.moments[0] - self.started if self.moments else None,
            gaps_s=tuple(after - before for before, after in itertools.pairwise(self.moments)),
            prompt_tokens=self.usage.get("prompt_tokens"),
            output_tokens=output_tokens,
            error=error,
            message=message,
        )


def _carries_token(choice: dict[str, Any]) -> bool:
    """Text of any kind, or tokens without text as logprobs or ids show them; at the latest, the end. The opening
    event that only names the role carries none: servers send it before they compute."""
    delta = choice.get("delta") or {}
    spoken = any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
    logprobs = (choice.get("logprobs") or {}).get("content")
    return bool(spoken or logprobs or choice.get("token_ids") or choice.get("finish_reason"))


async def _events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event. Only what completion streams use: one `data:` line an event, comments.

    Splitting bytes ourselves: httpx's line decoder costs as much as the rest of the client."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


async def _closed_loop(requests: int, concurrency: int, send: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    numbers = iter(range(requests))

    async def work() -> None:
        for number in numbers:
            await send(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, requests)):
            group.create_task(work())


async def _open_loop(requests: int, rate: float, seed: int, send: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    dice = random.Random(seed)
    began, due = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        for number in range(requests):
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            group.create_task(send(number))
            due += dice.expovariate(rate)


@asynccontextmanager
async def _http(endpoint: Endpoint, limit: int = 1) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    try:
        http = httpx.AsyncClient(
            base_url=endpoint.root,
            headers=headers,
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit),
            trust_env=False,  # a proxy in between would be measured too
        )
    except httpx.InvalidURL as error:
        raise Invalid(f"'{endpoint.url}' is no URL: {error}", param="url") from error
    async with http:
        yield http


def _explain(status: int, body: bytes) -> tuple[str, str]:
    """A refusal's (kind, message), from OpenAI's error body where there is one."""
    try:
        error = json.loads(body)["error"]
        return f"{status} {error.get('code') or error.get('type') or ''}".strip(), str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return str(status), body[:500].decode(errors="replace")


def _refusal(endpoint: Endpoint, status: int | None, kind: str, message: str) -> BianlianError:
    if status is None:
        return Unavailable(f"{endpoint.root} gives no answer ({kind}: {message.strip()}); is the server running?")
    text = f"{endpoint.root} refuses requests ({kind}): {message.strip()}"
    if status in (401, 403):
        return Forbidden(text)
    if status == 404:
        return NotFound(text)
    return Invalid(text) if status < 500 else Unavailable(text)


def _unreachable(endpoint: Endpoint, error: httpx.HTTPError) -> BianlianError:
    if isinstance(error, httpx.UnsupportedProtocol):
        return Invalid(f"'{endpoint.url}' must begin with http:// or https://", param="url")
    return _refusal(endpoint, None, type(error).__name__, str(error))
