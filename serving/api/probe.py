"""/v1/fine_tuning/jobs/{id}/probe: the same prompts answered by the base and each snapshot of a run."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field, StrictInt, StrictStr

from serving.api.auth import Keys, caller_of
from serving.api.schemas import Body
from serving.probe import DEFAULT_TOKENS, MAX_PROMPTS, MAX_TOKENS, Probe, Prober

_Text = Annotated[str, Field(min_length=1)]


class ProbeRequest(Body):
    """Everything may be left out: the run's own prompts, and every snapshot there is."""

    prompts: list[_Text] = Field(default=[], max_length=MAX_PROMPTS)
    max_tokens: StrictInt = Field(default=DEFAULT_TOKENS, ge=1, le=MAX_TOKENS)
    checkpoints: list[Annotated[StrictInt, Field(ge=0, lt=10**9)] | StrictStr] | None = None


def probe_router(prober: Prober, keys: Keys) -> APIRouter:
    router = APIRouter(dependencies=[Depends(keys.require_admin)])

    @router.post("/v1/fine_tuning/jobs/{job_id}/probe")
    async def probe(job_id: str, request: Request, body: ProbeRequest | None = None) -> dict[str, Any]:
        """Answers once the last cell is there; what was answered before is not computed again."""
        asked = body or ProbeRequest()
        return _card(
            await prober.probe(
                job_id,
                asked.prompts,
                max_tokens=asked.max_tokens,
                checkpoints=asked.checkpoints,
                key=caller_of(request).key,
            )
        )

    @router.get("/v1/fine_tuning/jobs/{job_id}/probe")
    async def kept(job_id: str) -> dict[str, Any]:
        """What was answered so far."""
        return _card(await asyncio.to_thread(prober.kept, job_id))

    return router


def _card(probe: Probe) -> dict[str, Any]:
    """One row a prompt, one cell a model; the models in the order of their steps, the base first."""
    cells = {cell.step: cell for row in probe.rows for cell in row.cells}
    return {
        "object": "fine_tuning.job.probe",
        "job_id": probe.job_id,
        "name": probe.name,
        "models": [{"id": cell.model, "step": step} for step, cell in sorted(cells.items())],
        "rows": [row.model_dump(mode="json") for row in probe.rows],
    }
