"""Who may call: user keys for answers, the admin key for everything. Without any key configured, anyone who
reaches the port (which then is on this machine only)."""

import hashlib
import hmac
from dataclasses import dataclass

from fastapi import Request
from starlette.exceptions import HTTPException

from adapters.errors import Forbidden
from adapters.settings import Settings


@dataclass(frozen=True)
class Caller:
    """Who sent a request. `key` stands for the API key and does not give it away; "" without keys."""

    key: str
    admin: bool

    def priority(self, asked: int) -> int:
        """`asked`, if the caller may have it: anyone may step back behind others, only the admin may go ahead of them.
        Forbidden otherwise."""
        if asked < 0 and not self.admin:
            raise Forbidden(
                f"priority {asked} runs ahead of others and needs the admin key; send 0 or more", code="admin_required"
            )
        return asked


class Keys:
    def __init__(self, settings: Settings):
        self._user = settings.api_key
        self._admin = [settings.admin_key] if settings.admin_key else []

    @property
    def configured(self) -> bool:
        return bool(self._user or self._admin)

    async def require_user(self, request: Request) -> None:
        """Also notes the Caller, for `caller_of`."""
        key = _bearer(request) if self.configured else ""
        if self.configured and not _known(key, [*self._user, *self._admin]):
            raise HTTPException(401, "missing or wrong API key; send it as 'Authorization: Bearer KEY'")
        name = hashlib.sha256(key.encode()).hexdigest()[:16] if key else ""
        request.state.caller = Caller(name, admin=not self.configured or _known(key, self._admin))

    async def require_admin(self, request: Request) -> None:
        await self.require_user(request)
        if self.configured and not _known(_bearer(request), self._admin):
            raise Forbidden("this needs the admin key", code="admin_required")

    def accepts(self, key: str) -> bool:
        return _known(key, [*self._user, *self._admin])


def caller_of(request: Request) -> Caller:
    """Who sent a request that `require_user` let through."""
    caller: Caller = request.state.caller
    return caller


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _known(key: str, keys: list[str]) -> bool:
    """Compares with every key, in constant time, so that timing tells nothing."""
    matches = [hmac.compare_digest(key.encode(), known.encode()) for known in keys]
    return any(matches)
