"""/v1/fine_tuning/jobs: OpenAI's fine-tuning API over the queue of runs. Who may use it is said where it is mounted."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, TypeVar

import anyio
import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from adapters.errors import Invalid, NotFound
from training.api.objects import (
    CheckpointList,
    EventList,
    JobList,
    JobObject,
    checkpoint_objects,
    event_id,
    event_object,
    job_object,
)
from training.jobs.fine_tuning import FineTuning, FineTuningRequest
from training.jobs.queue import Job
from training.jobs.result_files import result_file_ids

POLL_S = 0.3  # how soon a stream notices a new event
KEEP_ALIVE_S = 15
STOPS_WITHIN_S = 10.0  # a step is over by then, mostly; the answer says what is so
_SCHEMA = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"model": EventList, "content": {"text/event-stream": {"schema": _SCHEMA}}}
}

Limit = Annotated[int, Query(ge=1, le=1000)]
T = TypeVar("T")


def fine_tuning_router(service: FineTuning) -> APIRouter:
    router = APIRouter(prefix="/v1/fine_tuning/jobs")
    queue = service.queue

    def shown(job: Job) -> dict[str, Any]:
        return job_object(job, result_file_ids(job, service.files))

    async def stopped(job_id: str) -> dict[str, Any]:
        """The job once its process has ended, if that is soon."""
        for _ in range(round(STOPS_WITHIN_S / POLL_S)):
            if queue.get(job_id).status.state != "running":
                break
            await asyncio.sleep(POLL_S)
        return await asyncio.to_thread(lambda: shown(queue.get(job_id)))

    @router.post("", response_model=JobObject)
    async def create(body: FineTuningRequest) -> dict[str, Any]:
        """Answers at once; the files are validated next."""
        return shown(await asyncio.to_thread(service.create, body))

    @router.get("", response_model=JobList, openapi_extra={"parameters": [_METADATA]})
    async def list_jobs(request: Request, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
        """Newest first. `metadata[key]=value` keeps those that have it, `metadata=null` those without any."""
        wanted = _wanted_metadata(request)

        def find() -> dict[str, Any]:
            jobs = [job_object(job, []) for job in reversed(queue.all())]
            jobs = [job for job in jobs if _has(job["metadata"], wanted)]
            page, more = _page(jobs, [job["id"] for job in jobs], after, limit)
            for job in page:
                job["result_files"] = result_file_ids(queue.get(job["id"]), service.files)
            return {"object": "list", "data": page, "has_more": more}

        return await asyncio.to_thread(find)

    @router.get("/{job_id}", response_model=JobObject)
    async def get_job(job_id: str) -> dict[str, Any]:
        return await asyncio.to_thread(lambda: shown(queue.get(job_id)))

    @router.post("/{job_id}/cancel", response_model=JobObject)
    async def cancel(job_id: str) -> dict[str, Any]:
        await asyncio.to_thread(queue.cancel, job_id)
        return await stopped(job_id)

    @router.post("/{job_id}/pause", response_model=JobObject)
    async def pause(job_id: str) -> dict[str, Any]:
        """After the step a checkpoint is written and the process ends: its memory is free."""
        await asyncio.to_thread(queue.pause, job_id)
        return await stopped(job_id)

    @router.post("/{job_id}/resume", response_model=JobObject)
    async def resume(job_id: str) -> dict[str, Any]:
        """Back into the queue; also what failed or was cancelled."""
        return shown(await asyncio.to_thread(queue.resume, job_id))

    @router.get("/{job_id}/events", response_model=None, responses=_EVENTS)
    async def list_events(
        job_id: str,
        after: str | None = None,
        limit: Limit = 20,
        stream: bool = False,
        accept: Annotated[str, Header()] = "",
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response | dict[str, Any]:
        """Newest first; as a stream oldest first, from `after` or the header Last-Event-ID on, until the job ends."""
        job = queue.get(job_id)
        if stream or "text/event-stream" in accept.lower():
            events = await asyncio.to_thread(job.journal.events)
            last = last_event_id or after
            known = {event_id(number): number + 1 for number in range(len(events))}
            if last is not None and last not in known:
                raise NotFound(f"job {job_id} has no event '{last[:40]}'", param="after")
            closing = anyio.Event()
            return EventSourceResponse(
                _following(service, job_id, known[last] if last else 0, closing),
                sep="\n",
                ping=KEEP_ALIVE_S,
                ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
                shutdown_event=closing,
                shutdown_grace_period=2 * POLL_S,
            )
        events = await asyncio.to_thread(job.journal.events)
        numbers = list(reversed(range(len(events))))
        page, more = _page(numbers, [event_id(number) for number in numbers], after, limit)
        return {"object": "list", "data": [event_object(n, events[n]) for n in page], "has_more": more}

    @router.get("/{job_id}/checkpoints", response_model=CheckpointList)
    async def list_checkpoints(job_id: str, after: str | None = None, limit: Limit = 10) -> dict[str, Any]:
        """Newest first; each can be asked for as a model."""
        found = await asyncio.to_thread(lambda: checkpoint_objects(queue.get(job_id)))
        page, more = _page(found, [checkpoint["id"] for checkpoint in found], after, limit)
        ids = [checkpoint["id"] for checkpoint in page]
        return {
            "object": "list",
            "data": page,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": more,
        }

    return router


async def _following(
    service: FineTuning, job_id: str, seen: int, closing: anyio.Event
) -> AsyncIterator[ServerSentEvent]:
    """Events from number `seen` on, then `[DONE]` when the job has ended. A paused one may go on: its stream stays,
    until the server is `closing`; without `[DONE]`, the reader comes back to the next one."""
    while not closing.is_set():
        job = service.queue.get(job_id)  # before the events: all that led to its end are there
        for event in await asyncio.to_thread(job.journal.events, seen):
            yield ServerSentEvent(orjson.dumps(event_object(seen, event)).decode(), id=event_id(seen), sep="\n")
            seen += 1
            await asyncio.sleep(0)  # or thousands are written before the loop can notice that the reader has left
        if job.finished:
            yield ServerSentEvent("[DONE]", sep="\n")
            return
        await asyncio.sleep(POLL_S)


_METADATA = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}


def _wanted_metadata(request: Request) -> dict[str, str] | None:
    """None for jobs without metadata, {} for all."""
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == "metadata" and value == "null":
            return None
        if name.startswith("metadata["):
            if not name.endswith("]"):
                raise Invalid(f"write metadata[key]=value, not {name[:80]}", param="metadata")
            wanted[name.removeprefix("metadata[")[:-1]] = value
        elif name not in ("after", "limit"):
            raise Invalid(f"parameter '{name[:80]}' is not supported", param=name[:80], code="unsupported_parameter")
    return wanted


def _has(metadata: dict[str, str] | None, wanted: dict[str, str] | None) -> bool:
    if wanted is None:
        return not metadata
    return all((metadata or {}).get(key) == value for key, value in wanted.items())


def _page(items: Sequence[T], ids: list[str], after: str | None, limit: int) -> tuple[list[T], bool]:
    """(what follows `after`, at most `limit`, whether there is more)."""
    if after is not None and after not in ids:
        raise NotFound("there is nothing with this id to list after", param="after")
    start = ids.index(after) + 1 if after is not None else 0
    return list(items[start : start + limit]), len(items) > start + limit
