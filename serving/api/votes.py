"""POST /v1/votes and GET /v1/arena: which answer was better, and which model."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BeforeValidator

from serving.api.auth import caller_of
from serving.api.schemas import Body
from serving.arena import Standing
from serving.own_thread import on_own_thread
from serving.votes import VoteStore


def _number_or_word(value: Any) -> Any:
    if type(value) not in (int, str):
        raise ValueError("choice takes a lane's number or model, 'tie' or 'both_bad'")
    return value


class VoteRequest(Body):
    comparison_id: str
    choice: Annotated[int | str, BeforeValidator(_number_or_word)]


def votes_router(store: VoteStore) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/votes")
    async def post_vote(body: VoteRequest, request: Request) -> dict[str, Any]:
        """One vote a key and comparison: voting again changes it."""
        voter = caller_of(request).key
        vote = await store.database.call(store.vote, body.comparison_id, voter, body.choice)
        return {"object": "vote"} | asdict(vote)

    @router.get("/v1/arena")
    async def get_arena() -> dict[str, Any]:
        """Bradley–Terry scores of all that was voted on, best first."""
        arena = await on_own_thread(store.arena)  # linear algebra, which leaves threads behind
        return {
            "object": "list",
            "votes": arena.votes,
            "connected": arena.connected,
            "data": [_row(standing) for standing in arena.standings],
        }

    return router


def _row(standing: Standing) -> dict[str, Any]:
    return {
        "object": "arena.standing",
        "model": standing.contestant,
        "score": round(standing.score, 1),
        "confidence_interval": [round(standing.low, 1), round(standing.high, 1)],
        "comparisons": standing.comparisons,
        "wins": standing.wins,
        "ties": standing.ties,
    }
