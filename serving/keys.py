"""API keys: made, listed, revoked, and recognised.

A key is 256 random bits, so its SHA-256 can be kept as it is: there is nothing to guess, and a slow or salted hash,
made for passwords that people think up, would protect no better and cost every request its time. The key itself is
shown once and kept nowhere."""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from adapters.errors import Conflict, Invalid, NotFound, nearest
from serving.database.database import Database
from serving.database.tables import api_keys

MAX_NAME = 64
MAX_LIMIT = 2**31 - 1  # what the column holds
MAX_EXPIRY_DAYS = 36_500
DAY_S = 86_400
_KEY = re.compile(r"(bl-[0-9a-f]{12})-[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class ApiKey:
    """Moments are seconds since 1970; limits are per minute, None for no limit."""

    name: str
    prefix: str
    admin: bool
    requests_per_minute: int | None
    tokens_per_minute: int | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= time.time()

    @property
    def live(self) -> bool:
        return self.revoked_at is None and not self.expired


_COLUMNS = [api_keys.c[name] for name in ApiKey.__dataclass_fields__]


class KeyStore:
    """The keys in the database. Its methods block; nothing is cached, so a revoked key is refused from the next
    request on, whichever process revoked it."""

    def __init__(self, database: Database):
        self.database = database
        self._any = False

    def create(
        self,
        name: str,
        *,
        admin: bool = False,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        expires_in_days: float | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which cannot be had again. Conflict when a key of that name is in use; the name of
        a revoked one may be given again, and its usage goes on under it."""
        _check_name(name)
        _check_limit(requests_per_minute, "rpm", "requests")
        _check_limit(tokens_per_minute, "tpm", "tokens")
        if expires_in_days is not None and not 0 < expires_in_days <= MAX_EXPIRY_DAYS:
            raise Invalid(
                f"a key can expire in up to {MAX_EXPIRY_DAYS} days from now, not in {expires_in_days:g}",
                param="expires",
            )
        now = int(time.time())
        prefix = f"bl-{secrets.token_hex(6)}"
        text = f"{prefix}-{secrets.token_urlsafe(32)}"
        expires_at = None if expires_in_days is None else now + int(expires_in_days * DAY_S)
        key = ApiKey(name, prefix, admin, requests_per_minute, tokens_per_minute, now, expires_at, None)
        try:
            with self.database.writing() as connection:
                connection.execute(insert(api_keys).values(sha256=_sha256(text), **key.__dict__))
        except IntegrityError as error:
            raise Conflict(
                f"there is a key '{name}' already; revoke it first, or choose another name", param="name"
            ) from error
        return key, text

    def all(self) -> list[ApiKey]:
        """Every key there ever was, oldest first."""
        with self.database.reading() as connection:
            return [_key(row) for row in connection.execute(select(*_COLUMNS).order_by(api_keys.c.id))]

    def revoke(self, name: str) -> ApiKey:
        """End a key for good. NotFound when no key in use has that name."""
        live = (api_keys.c.name == name) & api_keys.c.revoked_at.is_(None)
        statement = update(api_keys).where(live).values(revoked_at=int(time.time())).returning(*_COLUMNS)
        with self.database.writing() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            known = [key.name for key in self.all() if key.revoked_at is None]
            raise NotFound(f"there is no key '{name}' in use{nearest(name, known)}", param="name")
        return _key(row)

    def find(self, text: str) -> ApiKey | None:
        """The live key that `text` is. It is looked up by its prefix, which is no secret, and the rest compared in
        constant time."""
        if (match := _KEY.fullmatch(text)) is None:
            return None
        statement = select(api_keys.c.sha256, *_COLUMNS).where(api_keys.c.prefix == match[1])
        with self.database.reading() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None or not hmac.compare_digest(row.sha256, _sha256(text)):
            return None
        key = _key(row)
        return key if key.live else None

    def any_exist(self) -> bool:
        """Whether a key was ever made, revoked and expired ones included: to revoke the last one must not open the
        server to everybody."""
        if not self._any:  # once there is one there always will be
            with self.database.reading() as connection:
                self._any = connection.execute(select(api_keys.c.id).limit(1)).first() is not None
        return self._any


def _key(row: Any) -> ApiKey:
    return ApiKey(**{name: getattr(row, name) for name in ApiKey.__dataclass_fields__})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_name(name: str) -> None:
    # A leading "-" is kept for the keys given by flags, which are called after them.
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name.strip() != name or name.startswith("-"):
        raise Invalid(
            f"key name {name!r} must be 1 to {MAX_NAME} printable characters, without '-' before or spaces around them",
            param="name",
        )


def _check_limit(limit: int | None, param: str, unit: str) -> None:
    if limit is not None and not 1 <= limit <= MAX_LIMIT:
        raise Invalid(f"{param} is {limit}; it takes 1 to {MAX_LIMIT} {unit} a minute, or nothing", param=param)
