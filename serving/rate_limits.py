"""How many requests and tokens a key may use in a minute.

Two token buckets a key: each holds a minute's worth at most and refills evenly, so what was used up comes back
little by little and not at the turn of a minute. A request and its prompt's tokens are taken when it starts, all or
nothing; what it generates is taken as it ends, and may leave the bucket in debt: later requests wait until the debt is
paid back. Running answers are never cut. The figures are this process's and start full."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from adapters.errors import Invalid, RateLimited

MINUTE_S = 60.0


@dataclass
class Bucket:
    """`per_minute` at most, refilled evenly. Not thread-safe."""

    per_minute: int
    filled: float
    at: float  # when `filled` was right, in the clock's seconds

    def level(self, now: float) -> float:
        return min(self.per_minute, self.filled + (now - self.at) * self.per_minute / MINUTE_S)

    def add(self, amount: float, now: float) -> None:
        self.filled, self.at = min(self.per_minute, self.level(now) + amount), now

    def seconds_until(self, amount: float, now: float) -> float:
        """When it will hold `amount`, from now."""
        return max(0.0, amount - self.level(now)) * MINUTE_S / self.per_minute

    def resized(self, per_minute: int, now: float) -> "Bucket":
        """As full or as deep in debt, with another limit."""
        return Bucket(per_minute, min(per_minute, self.level(now) + max(0, per_minute - self.per_minute)), now)


@dataclass(frozen=True)
class Allowance:
    """What is left of one limit: whole units, and seconds until all of it is there again."""

    limit: int
    remaining: int
    reset_s: float


class RateLimiter:
    """Keys are known by name. Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def set_limits(self, key: str, requests: int | None, tokens: int | None) -> None:
        """What a key may use from now on; None for as much as it likes. What it has used remains used."""
        with self._lock:
            now = self._clock()
            for unit, limit in (("requests", requests), ("tokens", tokens)):
                bucket = self._buckets.get((key, unit))
                if limit is None:
                    self._buckets.pop((key, unit), None)
                elif bucket is None:
                    self._buckets[key, unit] = Bucket(limit, limit, now)
                elif bucket.per_minute != limit:
                    self._buckets[key, unit] = bucket.resized(limit, now)

    def check(self, key: str, requests: int) -> None:
        """Raise what `take` would, as far as that is known before the prompt's tokens are."""
        with self._lock:
            self._check(key, requests, 0, self._clock())

    def take(self, key: str, requests: int, tokens: int) -> None:
        """Take both, or neither and raise RateLimited, which says when to try again; Invalid when a minute's worth
        would not be enough."""
        with self._lock:
            now = self._clock()
            self._check(key, requests, tokens, now)
            for unit, amount in (("requests", requests), ("tokens", tokens)):
                if bucket := self._buckets.get((key, unit)):
                    bucket.add(-amount, now)

    def give_back(self, key: str, requests: int, tokens: int) -> None:
        """What `take` took for something that did not start."""
        self._add(key, "requests", requests)
        self._add(key, "tokens", tokens)

    def spend(self, key: str, tokens: int) -> None:
        """Tokens that have been generated; whether they are there or not."""
        self._add(key, "tokens", -tokens)

    def allowances(self, key: str) -> dict[str, Allowance]:
        """By unit, "requests" and "tokens", what is left of the limits the key has."""
        with self._lock:
            now = self._clock()
            return {
                unit: Allowance(
                    bucket.per_minute,
                    max(0, math.floor(bucket.level(now))),
                    bucket.seconds_until(bucket.per_minute, now),
                )
                for unit in ("requests", "tokens")
                if (bucket := self._buckets.get((key, unit)))
            }

    def _check(self, key: str, requests: int, tokens: int, now: float) -> None:
        for unit, amount in (("requests", requests), ("tokens", tokens)):
            bucket = self._buckets.get((key, unit))
            if bucket is None:
                continue
            if amount > bucket.per_minute:
                raise Invalid(
                    f"this asks for {amount} {unit} at once, and the key may use {bucket.per_minute} a minute; "
                    "send less at a time",
                    code="rate_limit_exceeded",
                )
            if bucket.level(now) < amount:
                wait = bucket.seconds_until(amount, now)
                raise RateLimited(
                    f"the key may use {bucket.per_minute} {unit} a minute, and has used them; "
                    f"try again in {math.ceil(wait)} s",
                    retry_after_s=wait,
                )

    def _add(self, key: str, unit: str, amount: int) -> None:
        with self._lock:
            if bucket := self._buckets.get((key, unit)):
                bucket.add(amount, self._clock())
