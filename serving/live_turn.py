"""A turn of a comparison that is being answered, by a task of its own: pages come and go, and the answers are kept."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from adapters.errors import BianlianError
from adapters.manifest import AdapterVersion
from serving.compare import Comparison, Lane, LaneProgress
from serving.comparison_store import ComparisonStore, SavedComparison, SavedLane, SavedTurn
from serving.sampling_record import Sampling

UPDATE_S = 0.1  # a browser that draws six lanes more often falls behind
SPEAKS_S = 0.2  # for the first words; a page that is told twice shows them a fifth of a second later

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PinnedLane:
    """A lane, and the version that its model means from here on."""

    slot: int
    lane: Lane
    version: AdapterVersion | None

    @property
    def exact(self) -> Lane:
        return replace(self.lane, model=str(self.version)) if self.version else self.lane


class LiveTurn:
    """A turn that is being answered, by a task of its own. Any number of pages may watch it."""

    def __init__(
        self, before: SavedComparison, question: str, sampling: Sampling, lanes: list[PinnedLane], running: Comparison
    ):
        self.before = before
        self.question = question
        self.sampling = sampling
        self.trouble: BianlianError | None = None  # why the turn could not be kept
        self._lanes = lanes
        self._running = running
        self._prompts = [_sha256(progress.answer.prompt_ids) for progress in running.lanes]
        self._task: asyncio.Task[None] | None = None
        self._speaks = asyncio.Event()  # every lane, or the turn has ended

    @property
    def id(self) -> str:
        return self.before.id

    @property
    def slots(self) -> list[int]:
        return [pinned.slot for pinned in self._lanes]

    def start(self, store: ComparisonStore | None = None, on_end: Callable[[], object] = lambda: None) -> None:
        """Read the answers from now on, and keep them in `store`; then call `on_end`."""
        self._task = asyncio.create_task(self._run(store))
        self._task.add_done_callback(lambda _: on_end())

    def stop(self) -> None:
        """End every lane where it is."""
        self._running.stop()

    def turn(self) -> SavedTurn:
        """As far as it is."""
        lanes = zip(self._lanes, self._running.lanes, self._prompts, strict=True)
        return SavedTurn(question=self.question, sampling=self.sampling, lanes=tuple(_saved(*lane) for lane in lanes))

    def saved(self) -> SavedComparison:
        return self.before.with_turn(self.turn())

    async def watch(self) -> AsyncGenerator[set[int], None]:
        """Slots that have grown since the last time, at most every UPDATE_S, until the turn has ended and is kept. The
        first are all, with their first words if these come soon."""
        assert self._task is not None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._speaks.wait(), SPEAKS_S)
        seen: list[tuple[int, bool] | None] = [None] * len(self._lanes)
        while True:
            done = self._task.done()
            now = [(lane.tokens, lane.finish_reason is not None) for lane in self._running.lanes]
            yield {slot for slot, was, is_now in zip(self.slots, seen, now, strict=True) if was != is_now}
            if done:
                return
            seen = [*now]
            await asyncio.wait([self._task], timeout=UPDATE_S)

    async def _run(self, store: ComparisonStore | None) -> None:
        beginning = asyncio.create_task(self._keep(store))  # so that a reload finds the question at once
        try:
            async with self._running:
                async for _ in self._running:
                    if all(lane.text or lane.reasoning or lane.finish_reason for lane in self._running.lanes):
                        self._speaks.set()
        finally:
            self._speaks.set()
            await beginning
            await self._keep(store)

    async def _keep(self, store: ComparisonStore | None) -> None:
        if store is None:
            return
        try:
            await store.database.call(store.put, self.saved())
        except BianlianError as error:
            self.trouble = error
            log.warning("comparison %s was not kept: %s", self.id, error)


def _saved(pinned: PinnedLane, progress: LaneProgress, prompt_sha256: str) -> SavedLane:
    version, lane = pinned.version, pinned.lane
    return SavedLane(
        slot=pinned.slot,
        model=lane.model,
        version=str(version) if version else None,
        digest=version.digest if version else None,
        scale=lane.scale,
        system=lane.system,
        own_system=version.manifest.system_prompt if version and version.manifest else None,
        prompt_sha256=prompt_sha256,
        text=progress.text,
        reasoning=progress.reasoning,
        token_ids=tuple(progress.token_ids),
        first_token_s=progress.first_token_s,
        tokens_per_s=progress.tokens_per_s,
        finish_reason=progress.finish_reason,
        error=progress.error,
    )


def _sha256(ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()
