"""AsyncEngine: the engine on a thread of its own, seen from asyncio.

`submit` gives a TokenStream; leaving the stream's `async with` aborts whatever still runs, so a client that
goes away frees its blocks within one step. The engine itself is touched by its thread alone: everything else
reaches it as a call in its inbox, taken between two steps."""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from adapters.errors import Overloaded, Unavailable
from serving.engine.engine import Engine
from serving.engine.sequence import ErrorCode, FinishReason, Request, TokenDelta, merge
from serving.figures import AnswerFigures, Progress

log = logging.getLogger(__name__)
T = TypeVar("T")

IDLE_S = 0.2  # nothing has run for so long: time for what is not urgent
LATEST_S = 10.0  # an engine that is never idle does what is not urgent this often, so that it happens at all

MAX_UNREAD = 64  # deltas that wait for a slow reader before they become one


class TokenStream:
    """One request's deltas, in order; those that came while nobody read are one delta. Iterate inside `async with`."""

    def __init__(
        self,
        engine: "AsyncEngine",
        progress: Progress,
        on_end: Callable[[str], None],
        on_counted: Callable[["TokenStream"], None],
    ):
        self.request = progress.request
        self.progress = progress
        self._engine = engine
        self._on_end = on_end
        self._on_counted = on_counted
        self.loop = asyncio.get_running_loop()
        self._unread: list[TokenDelta] = []
        self._arrival: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self._until_end()

    async def _until_end(self) -> AsyncIterator[TokenDelta]:
        while True:
            while not self._unread:
                self._arrival = self.loop.create_future()
                await self._arrival
            unread, self._unread = self._unread, []
            delta = merge(unread)
            yield delta
            if delta.finish_reason:
                return

    def abort(self) -> None:
        """Stop the request if it still runs. The stream then ends with FinishReason.ABORT."""
        if self.progress.finish_reason is None:
            self._engine.abort(self.request.id)

    def _put(self, delta: TokenDelta) -> None:
        """On the event loop."""
        self._unread.append(delta)
        if len(self._unread) == MAX_UNREAD:
            self._unread = [merge(self._unread)]
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # Called on the engine's thread.

    def _ended(self) -> None:
        self._on_end(self.request.id)

    def _counted(self) -> None:
        try:
            self._on_counted(self)
        except Exception:  # as in `_on_finished`
            log.exception("the tokens of request %s were not counted", self.request.id)


class AsyncEngine:
    def __init__(self, engine: Engine, *, max_waiting: int):
        self.engine = engine
        self.max_waiting = max_waiting
        self.draining = False
        self.figures = AnswerFigures()
        self.on_awaited: Callable[[int], None] = lambda answers: None  # the engine's thread, when their number changes
        self._told = 0
        self._streams: dict[str, TokenStream] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._postponed: deque[Callable[[], object]] = deque()  # the engine's thread alone
        self._postpone_until_s = 0.0  # time.monotonic
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._closed = False
        engine.on_finished = self._on_finished

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; requests still running end with an error. Blocks until it has stopped."""
        self._closed = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def drain(self, seconds: float) -> None:
        """Refuse new requests from now on, and end those that still run after `seconds` with an error. Returns at
        once; any thread."""
        self.draining = True
        timer = threading.Timer(seconds, self._inbox.put, [self._end_all])
        timer.daemon = True
        timer.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited."""
        return bool(self._streams)

    @property
    def num_waiting(self) -> int:
        """Requests that do not run yet, those on their way to the engine included."""
        return max(0, len(self._streams) - self.engine.num_running)

    def submit(
        self,
        requests: list[Request],
        on_end: Callable[[str], None] = lambda _: None,
        on_counted: Callable[[TokenStream], None] = lambda _: None,
    ) -> list[TokenStream]:
        """Start requests together, in one step if they fit. `on_end` gets each one's id when it has ended, and
        `on_counted` its stream when its tokens are counted, however it ended and whether anybody reads them; both on
        the engine's thread. Overloaded when too many wait, Unavailable when the engine has stopped."""
        if not self.alive or self.draining:
            raise Unavailable("the server is shutting down; try again in a moment")
        if self.num_waiting + len(requests) > self.max_waiting:
            raise Overloaded(f"{self.max_waiting} requests are waiting already; try again later", retry_after_s=2)
        streams = [TokenStream(self, self.figures.follow(request), on_end, on_counted) for request in requests]

        # Known before they are queued: they count as waiting at once, and none is forgotten when the engine ends.
        for stream in streams:
            self._streams[stream.request.id] = stream

        def add() -> None:
            for stream in streams:
                try:
                    self.engine.add(stream.request)
                except Exception as error:
                    log.exception("request %s was not queued", stream.request.id)
                    self._on_finished(stream.request.id)
                    self._abort(stream.request.id, FinishReason.ERROR, f"the request was not queued: {error}")

        self._inbox.put(add)
        return streams

    def abort(self, request_id: str) -> None:
        self._inbox.put(lambda: self._abort(request_id))

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the engine's thread, between two steps, and return what it returns."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                loop.call_soon_threadsafe(_settle, future, result, None)

        self._inbox.put(run)
        return await future

    def post(self, function: Callable[[], object]) -> None:
        """Run `function` on the engine's thread before its next step, without waiting for it."""
        self._inbox.put(lambda: (function(), None)[1])

    def post_when_idle(self, function: Callable[[], object]) -> None:
        """Run `function` on the engine's thread when nothing has run for a moment, one such function after another;
        on an engine that is never idle one every LATEST_S seconds."""

        def postpone() -> None:
            if not self._postponed:
                self._postpone_until_s = time.monotonic() + LATEST_S
            self._postponed.append(function)

        self._inbox.put(postpone)

    # The engine's thread.

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:
            log.critical("the engine's thread has ended; the server must be restarted", exc_info=True)
            raise
        finally:
            self._closed = True
            self._end_all()

    def _serve(self) -> None:
        while self._read_inbox():
            arrived = []
            self._tell_awaited()
            for delta in self.engine.step():
                stream = self._streams.get(delta.request_id)
                if stream is not None:
                    arrived.append((stream, delta))
                    if delta.finish_reason:
                        del self._streams[delta.request_id]
            self.figures.note_step((stream.progress, delta) for stream, delta in arrived)
            for stream, delta in arrived:
                if delta.finish_reason:
                    stream._counted()
            _deliver(arrived)

    def _end_all(self) -> None:
        for request_id in list(self._streams):
            self._abort(request_id, FinishReason.ERROR, "the server is shutting down", "shutting_down")

    def _read_inbox(self) -> bool:
        """Take every call that waits; sleep while there is nothing to compute. False when asked to stop."""
        while True:
            self._tell_awaited()
            busy = self.engine.has_work
            if busy and self._postponed and time.monotonic() >= self._postpone_until_s:
                self._run_postponed()
            try:
                call = self._inbox.get(block=not busy, timeout=IDLE_S if self._postponed else None)
            except queue.Empty:
                if busy:
                    return True
                self._run_postponed()
                continue
            if call is None:
                return False
            self._run_call(call)
            if self.engine.has_work and self._inbox.empty():
                return True

    def _tell_awaited(self) -> None:
        if (answers := len(self._streams)) != self._told:
            self._told = answers
            self.on_awaited(answers)

    def _run_postponed(self) -> None:
        self._run_call(self._postponed.popleft())
        self._postpone_until_s = time.monotonic() + LATEST_S

    def _run_call(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            log.exception("a call on the engine's thread failed")

    def abort_using(self, digest: str) -> None:
        """End every request on an adapter with an error that says why. Engine's thread."""
        for request_id in self.engine.requests_using(digest):
            why = "the adapter was unloaded by force while answering; ask again, another server may have it"
            self._abort(request_id, FinishReason.ERROR, why, "adapter_unloaded")

    def _abort(
        self,
        request_id: str,
        reason: FinishReason = FinishReason.ABORT,
        error: str | None = None,
        code: ErrorCode | None = None,
    ) -> None:
        self.engine.abort(request_id)
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            self.figures.note_end(stream.progress, reason)
            stream._counted()
            _deliver([(stream, TokenDelta(request_id, "", finish_reason=reason, error=error, error_code=code))])

    def _on_finished(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            try:
                stream._ended()
            except Exception:  # a caller's clean-up; the other requests do not depend on it
                log.exception("clean-up after request %s failed", request_id)


def _deliver(arrived: list[tuple[TokenStream, TokenDelta]]) -> None:
    """Hand deltas to their streams, waking each event loop once: a wake-up costs as much as a token."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream, TokenDelta]]] = {}
    for stream, delta in arrived:
        by_loop.setdefault(stream.loop, []).append((stream, delta))

    def put(pairs: list[tuple[TokenStream, TokenDelta]]) -> None:
        for stream, delta in pairs:
            stream._put(delta)

    for loop, pairs in by_loop.items():
        with suppress(RuntimeError):  # the event loop has closed: nobody is left to read
            loop.call_soon_threadsafe(put, pairs)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():  # the caller was cancelled
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
