"""Lists by the page, as OpenAI's endpoints give them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from adapters.errors import NotFound

T = TypeVar("T")


def page(found: Sequence[T], id_of: Callable[[T], str], *, after: str | None, limit: int) -> dict[str, Any]:
    """At most `limit` of `found`, those that follow the one with the id `after`; NotFound when there is none."""
    if after is not None:
        ids = [id_of(entry) for entry in found]
        if after not in ids:
            raise NotFound(f"there is no '{after}' to list after", param="after")
        found = found[ids.index(after) + 1 :]
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": id_of(shown[0]) if shown else None,
        "last_id": id_of(shown[-1]) if shown else None,
        "has_more": len(found) > limit,
    }
