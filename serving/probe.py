"""Watching a run learn: the same prompts, answered by the base and by each snapshot of the run, greedily and in one
batch. The answers are kept in the run's `probe.json`: what was answered once is not computed again, and stays there
when its snapshot is deleted.

Every model reads the same tokens: the system prompt that the run trains with goes to the base as well."""

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.errors import BianlianError, Invalid, NotFound, Unavailable, renaming
from adapters.regular import read_regular
from adapters.renderer import Message
from adapters.snapshots import RunSnapshots, Series, Snapshot, SnapshotStore, is_snapshot_id, snapshot_id
from serving.answer import Answer
from serving.chat import ChatService, Turn
from serving.engine.sequence import FinishReason, SamplingParams

MAX_PROMPTS = 16
MAX_TOKENS = 1024
DEFAULT_TOKENS = 64
KEPT_ROWS = 64  # prompts beside the run's own whose answers are kept
KEPT_CELLS = 64  # answers of a row that are kept, whatever has become of their snapshots
BACKGROUND = 50  # priority of probes that nobody waits for
POLL_S = 1.0

_PROBE_FILE = "probe.json"

log = logging.getLogger(__name__)


class Cell(BaseModel):
    """One answer. `step` 0 is the base."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    step: int
    digest: str
    text: str
    completion_tokens: int
    finish_reason: str


class Row(BaseModel):
    """One prompt and its answers, by step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    system: str | None
    max_tokens: int
    cells: tuple[Cell, ...] = ()

    @property
    def question(self) -> tuple[str, str | None, int]:
        return self.prompt, self.system, self.max_tokens


class Probe(BaseModel):
    """Format 1 of `probe.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    job_id: str
    name: str
    rows: tuple[Row, ...] = ()


class Prober:
    def __init__(self, chat: ChatService):
        self.chat = chat
        self.snapshots: SnapshotStore = chat.registry.snapshots
        self._probing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by job

    def kept(self, job_id: str) -> Probe:
        """What was answered so far. NotFound for a run without snapshots. Reads the disk."""
        run = self.snapshots.run(job_id)
        return _read(run) or Probe(job_id=job_id, name=_series(run).name)

    async def probe(
        self,
        job_id: str,
        prompts: Sequence[str] = (),
        *,
        max_tokens: int = DEFAULT_TOKENS,
        checkpoints: Sequence[int | str] | None = None,
        key: str = "",
        priority: int = 0,
    ) -> Probe:
        """The rows of `prompts`, or else of the run's own, with cells of the base and of `checkpoints` (steps or model
        ids; None: every snapshot there is). NotFound for what is not there, Invalid for the run of another base,
        Overloaded or Unavailable as for any answer."""
        run = await asyncio.to_thread(self.snapshots.run, job_id)
        async with self._probing[job_id]:
            series = await asyncio.to_thread(_series, run)
            if series.base_fingerprint != self.chat.base.fingerprint:
                raise Invalid(
                    f"run {job_id} trains another base than '{self.chat.base.name}', which this server runs; start a "
                    "server on that base",
                    param="job_id",
                )
            chosen = await asyncio.to_thread(_choose, run, checkpoints)
            kept = await asyncio.to_thread(self.kept, job_id)
            asked = [
                Row(prompt=prompt, system=series.system_prompt, max_tokens=max_tokens)
                for prompt in dict.fromkeys(prompts or series.prompts)
            ]
            known = {row.question: row for row in kept.rows}
            rows = [known.get(row.question, row) for row in asked]
            rows = await self._answered(rows, chosen, job_id, key, priority)
            known |= {row.question: row for row in rows}
            await asyncio.to_thread(
                _write, run, kept.model_copy(update={"rows": _bounded(known.values(), series, run.steps())})
            )
        shown = {0, *(snapshot.step for snapshot in chosen)}
        rows = [
            row.model_copy(update={"cells": tuple(cell for cell in row.cells if cell.step in shown)}) for row in rows
        ]
        return Probe(job_id=job_id, name=series.name, rows=tuple(rows))

    async def watch(self) -> None:
        """Answer the run's own prompts with each snapshot that appears from now on, when nobody else waits for an
        answer. Never returns."""
        seen: set[tuple[str, int]] | None = None
        while True:
            try:
                present = await asyncio.to_thread(self._present)
            except OSError:
                log.warning("the training runs cannot be read", exc_info=True)
            else:
                if seen is None:
                    seen = present
                if not self.chat.engine.busy:
                    await self._probe_new(present - seen)
                    seen = present
            await asyncio.sleep(POLL_S)

    async def _probe_new(self, snapshots: set[tuple[str, int]]) -> None:
        for job_id in sorted({job_id for job_id, _ in snapshots}):
            steps = sorted(step for job, step in snapshots if job == job_id)
            try:
                await self.probe(job_id, checkpoints=steps, priority=BACKGROUND)
            except (BianlianError, OSError) as error:  # deleted meanwhile, another base, a full queue
                log.info("snapshots of %s are not probed: %s", job_id, error)

    def _present(self) -> set[tuple[str, int]]:
        """Job and step of every snapshot."""
        runs = self.snapshots.runs
        return {(job, step) for job in self.snapshots.job_ids() for step in RunSnapshots(runs / job).steps()}

    async def _answered(
        self, rows: Sequence[Row], snapshots: Sequence[Snapshot], job_id: str, key: str, priority: int
    ) -> list[Row]:
        """The rows with the cells that they lack, answered in one batch."""
        base = self.chat.base
        models = [(base.name, 0, base.fingerprint), *((s.name, s.step, s.digest) for s in snapshots)]
        missing = [
            (number, model)
            for number, row in enumerate(rows)
            for model in models
            if not any((cell.step, cell.digest) == model[1:] for cell in row.cells)
        ]
        if not missing:
            return list(rows)
        thinking = self._thinking(snapshots)
        turns = [self._turn(rows[number], model, thinking, key, priority) for number, (model, _, _) in missing]
        cells = [{cell.step: cell for cell in row.cells} for row in rows]
        with renaming({"messages": "prompts"}):
            answers = await self.chat.ask_together(turns)
        async with AsyncExitStack() as leaving_early:
            for answer in answers:
                await leaving_early.enter_async_context(answer)
            texts = await asyncio.gather(*map(_read_to_end, answers))
        for (number, (model, step, digest)), (text, finish_reason), answer in zip(missing, texts, answers, strict=True):
            tokens = answer.progress.tokens
            cells[number][step] = Cell(
                model=model,
                step=step,
                digest=digest,
                text=text,
                completion_tokens=tokens,
                finish_reason=finish_reason,
            )
        return [
            row.model_copy(update={"cells": tuple(cell for _, cell in sorted(by_step.items()))})
            for row, by_step in zip(rows, cells, strict=True)
        ]

    def _thinking(self, snapshots: Sequence[Snapshot]) -> bool | None:
        """As the run trains; None where the template leaves no choice."""
        if self.chat.answers.reasoning is None or not self.chat.answers.switchable:
            return None
        return any(snapshot.manifest and snapshot.manifest.thinking for snapshot in snapshots)

    def _turn(self, row: Row, model: str, thinking: bool | None, key: str, priority: int) -> Turn:
        system: list[Message] = [{"role": "system", "content": row.system}] if row.system else []
        return Turn(
            model=model,
            messages=(*system, {"role": "user", "content": row.prompt}),
            params=SamplingParams(temperature=0),
            max_tokens=row.max_tokens,
            key=key,
            priority=priority,
            param="checkpoints",
            thinking=thinking,
        )


async def _read_to_end(answer: Answer) -> tuple[str, str]:
    text, reason = "", ""
    async for delta in answer:
        text += delta.reasoning + delta.text
        if delta.finish_reason:
            reason = str(delta.finish_reason)
        if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            raise Unavailable(f"{answer.model} did not answer: {delta.error or 'the server is stopping'}")
    return text, reason


def _choose(run: RunSnapshots, checkpoints: Sequence[int | str] | None) -> list[Snapshot]:
    """By step, each once."""
    if checkpoints is None:
        return run.all()
    chosen = {}
    for step in (_step_of(checkpoint, run.run.name) for checkpoint in checkpoints):
        snapshot = run.get(step) if step > 0 else None
        if snapshot is None:
            known = ", ".join(map(str, run.steps())) or "none yet"
            raise NotFound(
                f"run {run.run.name} has no snapshot of step {step}; there are: {known}", param="checkpoints"
            )
        chosen[step] = snapshot
    return [snapshot for _, snapshot in sorted(chosen.items())]


def _step_of(checkpoint: int | str, job_id: str) -> int:
    if isinstance(checkpoint, int):
        return checkpoint
    job, _, step = checkpoint.rpartition(":step-")
    if job != job_id or not is_snapshot_id(checkpoint):
        raise Invalid(
            f"'{checkpoint}' is no snapshot of {job_id}; send a step, or an id like {snapshot_id(job_id, 40)}",
            param="checkpoints",
        )
    return int(step)


def _series(run: RunSnapshots) -> Series:
    series = run.series()
    if series is None:
        raise NotFound(f"run '{run.run.name}' was deleted", param="job_id")
    return series


def _bounded(rows: Iterable[Row], series: Series, steps: Collection[int]) -> tuple[Row, ...]:
    """The run's own prompts, then the latest of the others. In rows with too many cells, only those of snapshots that
    are still there."""
    rows = list(rows)
    own = [row for row in rows if row.prompt in series.prompts and row.max_tokens == DEFAULT_TOKENS]
    others = [row for row in rows if row not in own]
    return tuple(
        row
        if len(row.cells) <= KEPT_CELLS
        else row.model_copy(update={"cells": tuple(cell for cell in row.cells if cell.step in {0, *steps})})
        for row in [*own, *others[-KEPT_ROWS:]]
    )


def _read(run: RunSnapshots) -> Probe | None:
    path = run.run / _PROBE_FILE
    try:
        return Probe.model_validate_json(read_regular(path))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise Invalid(f"{path} cannot be read: {reason}; delete it to answer anew") from error


def _write(run: RunSnapshots, probe: Probe) -> None:
    partial: Path = run.run / f".{_PROBE_FILE}-{os.getpid()}"
    try:
        partial.write_text(probe.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(run.run / _PROBE_FILE)
    except FileNotFoundError:
        raise NotFound(f"run '{run.run.name}' was deleted", param="job_id") from None
