"""GET /v1/usage: requests and tokens by key, model and day; and what is left of a key's limits, on every answer."""

from collections.abc import Awaitable, Callable
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.auth import Caller, caller_of
from serving.api.schemas import Body
from serving.rate_limits import RateLimiter
from serving.usage import GROUPINGS, UsageBook, groupings, period


class UsageQuery(Body):
    from_: date | None = Field(default=None, alias="from", description="First day, UTC; default: 29 days before `to`.")
    to: date | None = Field(default=None, description="Last day, UTC; default: today.")
    group_by: str = Field(default=",".join(GROUPINGS), description="Of key, model and day, separated by commas.")


def usage_router(book: UsageBook) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/usage")
    async def get_usage(query: Annotated[UsageQuery, Query()], request: Request) -> dict[str, Any]:
        """An admin sees every key's, a user the own key's."""
        start, end = period(query.from_, query.to)
        groups = groupings(query.group_by)
        caller = caller_of(request)
        key = None if caller.admin else caller.key
        rows = await book.database.call(book.report, start, end, groups, key)
        return {
            "object": "list",
            "from": start.isoformat(),
            "to": end.isoformat(),
            "group_by": groups,
            "data": [row | ({"day": row["day"].isoformat()} if "day" in row else {}) for row in rows],
        }

    return router


class RateLimitHeaders:
    """OpenAI's `x-ratelimit-*` on answers to keys that have limits. Pure ASGI: streams pass through untouched."""

    def __init__(self, app: ASGIApp, limits: RateLimiter):
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        await self.app(scope, receive, _with_limits(send, state, self.limits))


def _with_limits(send: Send, state: dict[str, Any], limits: RateLimiter) -> Callable[[Message], Awaitable[None]]:
    async def noted(message: Message) -> None:
        caller: Caller | None = state.get("caller")
        if message["type"] == "http.response.start" and caller is not None:
            headers = MutableHeaders(scope=message)
            for unit, left in limits.allowances(caller.key).items():
                headers[f"x-ratelimit-limit-{unit}"] = str(left.limit)
                headers[f"x-ratelimit-remaining-{unit}"] = str(left.remaining)
                headers[f"x-ratelimit-reset-{unit}"] = f"{left.reset_s:.3f}s"
        await send(message)

    return noted
