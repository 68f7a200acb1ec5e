"""Who may call: user keys for answers, admin keys for everything. Without any key, in the settings or the database,
anyone who reaches the port (which then is on this machine only)."""

import hmac
from dataclasses import dataclass

from fastapi import Request

from adapters.errors import Forbidden, Unauthorized
from adapters.settings import Settings
from serving.keys import KeyStore
from serving.rate_limits import RateLimiter


@dataclass(frozen=True)
class Caller:
    """Who sent a request. `key` is the API key's name and gives nothing of it away; "" without keys. Keys of the
    settings are called "--api-key 1", "--api-key 2", ... and "--admin-key". A name can be given again after its key was
    revoked; `id` is one key's alone."""

    key: str
    admin: bool
    id: str = ""

    def priority(self, asked: int) -> int:
        """`asked`, if the caller may have it: anyone may step back behind others, only the admin may go ahead of them.
        Forbidden otherwise."""
        if asked < 0 and not self.admin:
            raise Forbidden(
                f"priority {asked} runs ahead of others and needs the admin key; send 0 or more", code="admin_required"
            )
        return asked


class Keys:
    """The keys of the settings and of the database. `limits` learns what each key of the latter may use."""

    def __init__(self, settings: Settings, store: KeyStore, limits: RateLimiter):
        self._user = [(f"--api-key {number}", key) for number, key in enumerate(settings.api_key, 1)]
        self._admin = [("--admin-key", settings.admin_key)] if settings.admin_key else []
        self._store = store
        self._limits = limits

    def configured_now(self) -> bool:
        """Whether callers need a key. Blocks."""
        return bool(self._user or self._admin) or self._store.any_exist()

    async def configured(self) -> bool:
        return bool(self._user or self._admin) or await self._store.database.call(self._store.any_exist)

    async def require_user(self, request: Request) -> None:
        """Also notes the Caller, for `caller_of`."""
        caller = await self.caller(_bearer(request))
        if caller is None:
            if await self.configured():
                raise Unauthorized("missing or wrong API key; send it as 'Authorization: Bearer KEY'")
            caller = Caller("", admin=True)
        request.state.caller = caller

    async def require_admin(self, request: Request) -> None:
        await self.require_user(request)
        if not caller_of(request).admin:
            raise Forbidden("this needs an admin key", code="admin_required")

    async def caller(self, key: str) -> Caller | None:
        """Whose key that is; None for nobody's."""
        if not key:
            return None
        if name := _name_of(key, self._admin):
            return Caller(name, admin=True, id=name)
        if name := _name_of(key, self._user):
            return Caller(name, admin=False, id=name)
        found = await self._store.database.call(self._store.find, key)
        if found is None:
            return None
        self._limits.set_limits(found.name, found.requests_per_minute, found.tokens_per_minute)
        return Caller(found.name, found.admin, found.prefix)


def caller_of(request: Request) -> Caller:
    """Who sent a request that `require_user` let through."""
    caller: Caller = request.state.caller
    return caller


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _name_of(key: str, keys: list[tuple[str, str]]) -> str | None:
    """Compares with every key, in constant time, so that timing tells nothing."""
    matches = [name for name, known in keys if hmac.compare_digest(key.encode(), known.encode())]
    return matches[0] if matches else None
