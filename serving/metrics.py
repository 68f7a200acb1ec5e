"""Prometheus' view of the server. Each server has a registry of its own, and everything is read when it is scraped,
from counts that are kept anyway: between two scrapes this file costs nothing but a count a request."""

import asyncio
import platform
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.chat import ChatService
from serving.engine.histogram import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REFUSED = 429
MAX_FAILED = 50


@dataclass(frozen=True)
class FailedRequest:
    """A request that got an error instead of an answer, or an answer that broke off."""

    id: str  # as in x-request-id and in the log
    at: float  # seconds since 1970
    method: str
    endpoint: str
    status: int  # 200 when the answer had begun
    reason: str  # the error body's code
    key: str  # name of who asked; "" without keys
    model: str  # "" when no answer was begun


class HttpFigures:
    """Requests by (endpoint, method, status, reason): the code of the error body, "" without one. Endpoints are our
    own routes, so there is a bounded number of each. Of the last ones that failed, which."""

    def __init__(self) -> None:
        self.requests = Counter[tuple[str, str, int, str]]()
        self.in_progress = 0
        self.failed: deque[FailedRequest] = deque(maxlen=MAX_FAILED)

    @property
    def refused(self) -> int:
        """Requests answered with 429."""
        return sum(number for (_, _, status, _), number in dict(self.requests).items() if status == REFUSED)


class Metrics:
    """`others` are counted elsewhere, and handed in."""

    def __init__(self, chat: ChatService, others: Iterable[Collector] = ()):
        self.http = HttpFigures()
        self._registry = CollectorRegistry()
        self._registry.register(_Serving(chat, self.http))
        for other in others:
            self._registry.register(other)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """In Prometheus' text format, CONTENT_TYPE. On the event loop whose tasks are to be counted."""
        return generate_latest(self._registry)


class _Serving(Collector):
    def __init__(self, chat: ChatService, http: HttpFigures):
        self._chat = chat
        self._http = http

    def describe(self) -> Iterable[Metric]:
        return ()  # registering need not collect

    def collect(self) -> Iterator[Metric]:
        yield from self._build()
        yield from self._requests()
        yield from self._answers()
        yield from self._engine()
        yield from self._adapters()
        yield from self._process()

    def _build(self) -> Iterator[Metric]:
        base = self._chat.base
        labels = {
            "version": version("bianlian"),
            "base": base.name,
            "device": base.device.type,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        yield _labelled(
            GaugeMetricFamily, "build_info", "What runs here.", labels.keys(), [(tuple(labels.values()), 1)]
        )

    def _requests(self) -> Iterator[Metric]:
        # A copy, which is made at once: a request that ends meanwhile is counted next time.
        counts = {(e, m, str(s), r): n for (e, m, s, r), n in dict(self._http.requests).items()}
        labels = ("endpoint", "method", "status", "reason")
        yield _labelled(CounterMetricFamily, "http_requests", "HTTP requests that have ended.", labels, counts.items())
        refused = Counter[tuple[str, ...]]()
        for (_, _, status, reason), number in counts.items():
            if status == str(REFUSED):
                refused[(reason,)] += number
        yield _labelled(
            CounterMetricFamily,
            "refusals",
            "Requests refused with 429: a rate limit or a full queue.",
            ("reason",),
            refused.items(),
        )
        yield _gauge("http_requests_in_progress", "HTTP requests being handled.", self._http.in_progress)

    def _answers(self) -> Iterator[Metric]:
        figures, engine = self._chat.engine.figures, self._chat.engine
        yield _gauge("requests_running", "Requests that the engine computes.", engine.engine.num_running)
        yield _gauge("requests_waiting", "Requests that wait for their first step.", engine.num_waiting)
        yield _gauge("leases", "Holds of running requests on adapter versions.", self._chat.registry.total_leases)
        ended = {(str(reason),): number for reason, number in dict(figures.ended).items()}
        yield _labelled(CounterMetricFamily, "answers", "Answers by how they ended.", ("finish_reason",), ended.items())
        tokens = dict(figures.tokens)
        for name, help_text, counts in (
            ("prompt_tokens", "Prompt tokens of answers that have begun.", {k: t.prompt for k, t in tokens.items()}),
            ("generated_tokens", "Tokens generated.", {k: t.generated for k, t in tokens.items()}),
        ):
            by_adapter = {(adapter,): number for adapter, number in counts.items()}
            yield _labelled(CounterMetricFamily, name, help_text, ("adapter",), by_adapter.items())
        yield _histogram("time_to_first_token_seconds", "From arrival to the first token.", figures.first_token_s)
        yield _histogram("inter_token_latency_seconds", "Between a request's tokens.", figures.between_tokens_s)
        yield _histogram("answer_duration_seconds", "From arrival to the end of the answer.", figures.answer_s)

    def _engine(self) -> Iterator[Metric]:
        engine = self._chat.engine.engine
        scheduler, pool = engine.scheduler, engine.pool
        yield _histogram("queue_time_seconds", "From arrival to admission.", scheduler.queue_s)
        yield _histogram("engine_step_duration_seconds", "Steps of the engine.", engine.step_s)
        yield _histogram("engine_step_sequences", "Sequences computed in one step.", engine.step_sequences)
        yield _counter("engine_failed_steps", "Steps that failed, with all their requests.", engine.failed_steps)
        yield _gauge("kv_blocks", "Blocks of keys and values there are.", pool.num_blocks)
        yield _gauge("kv_blocks_used", "Blocks that running requests hold.", pool.num_used)
        yield _counter("preemptions", "Requests sent back to the queue for want of blocks.", scheduler.preemptions)
        yield _counter("admitted_prompt_tokens", "Prompt tokens of admitted requests.", scheduler.prompt_tokens)
        yield _counter("prefix_cache_hit_tokens", "Those of them in the prefix cache.", scheduler.cached_tokens)

    def _adapters(self) -> Iterator[Metric]:
        bank = self._chat.engine.engine.bank
        figures = bank.figures()
        tier = ("tier",)
        held = {("device",): figures.active, ("host",): figures.host}
        yield _labelled(GaugeMetricFamily, "adapters", "Adapters in memory.", tier, held.items())
        size = {("device",): figures.device_bytes, ("host",): figures.host_bytes}
        yield _labelled(GaugeMetricFamily, "adapter_memory_bytes", "Memory of adapters.", tier, size.items())
        limit = {("host",): figures.host_budget}
        if figures.device_budget is not None:
            limit[("device",)] = figures.device_budget
        yield _labelled(
            GaugeMetricFamily, "adapter_memory_limit_bytes", "Memory adapters may have.", tier, limit.items()
        )
        yield _gauge("adapter_slots", "Adapters the device may hold.", bank.num_slots)
        yield _gauge("adapters_pinned", "Adapters kept in memory until unpinned.", figures.pinned)
        yield _gauge("adapters_held", "Adapters kept in memory for requests.", figures.held)
        yield _counter("adapter_activations", "Adapters brought into a slot.", figures.activations)
        gone = {("device",): figures.evictions, ("host",): figures.host_evictions}
        yield _labelled(
            CounterMetricFamily, "adapter_evictions", "Adapters that made room for others.", tier, gone.items()
        )
        yield _counter("adapter_disk_reads", "Adapters read from disk.", figures.disk_reads)

    def _process(self) -> Iterator[Metric]:
        yield _gauge("asyncio_tasks", "Tasks of the server's event loop.", len(asyncio.all_tasks()))
        yield _gauge("threads", "Python's threads.", threading.active_count())


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"bianlian_{name}", help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"bianlian_{name}", help_text, value=value)  # "_total" is appended to it


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    help_text: str,
    labels: Iterable[str],
    values: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:
    family = kind(f"bianlian_{name}", help_text, labels=list(labels))
    for label_values, value in values:
        family.add_metric(list(label_values), value)
    return family


def _histogram(name: str, help_text: str, histogram: Histogram) -> Metric:
    buckets, total = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), list(histogram.counts), strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
    return HistogramMetricFamily(f"bianlian_{name}", help_text, buckets=buckets, sum_value=histogram.sum)
