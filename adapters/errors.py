"""The kinds of error a user may see. Services raise them; the faces turn a kind into a status or exit code.

A message says what was wrong, the value and the limit, and the way out. Nothing else is promised."""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager


class BianlianError(Exception):
    """Base of every error meant for a user. `param` names the offending input, `code` is machine-readable."""

    code = "error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code

    def __str__(self) -> str:
        return self.message


class Invalid(BianlianError):
    """The input is wrong; sending it again will fail again."""

    code = "invalid_value"


class NotFound(BianlianError):
    code = "not_found"


class Conflict(BianlianError):
    """The input is fine, but not in the present state (in use, already there)."""

    code = "conflict"


class Unauthorized(BianlianError):
    """Who asks is not known."""

    code = "invalid_api_key"


class Forbidden(BianlianError):
    code = "forbidden"


class Overloaded(BianlianError):
    """A queue or limit is full; the same request may succeed after `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, param: str | None = None):
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """A key has used up what it may use in a minute."""

    code = "rate_limit_exceeded"


class Unavailable(BianlianError):
    """Not ready yet, or shutting down; another process may answer after `retry_after_s` seconds."""

    code = "unavailable"
    retry_after_s = 5.0


class InsufficientStorage(BianlianError):
    """The disk, a quota or a limit has no room for what is to be kept."""

    code = "insufficient_storage"


@contextmanager
def needing_room() -> Iterator[None]:
    """InsufficientStorage for what the system says inside when it cannot write any more."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InsufficientStorage(
            f"the server's disk has no room for this ({error.strerror}); delete adapters or files nobody needs, or set "
            "BIANLIAN_HOME to a larger disk"
        ) from error


def input_path(loc: Sequence[int | str], given: object) -> str:
    """Where in `given` a complaint of pydantic's is, as "checkpoints.0": `loc` also has the names of types that were
    tried there, which nobody sent."""
    parts: list[str] = []
    for part in loc:
        is_listed = isinstance(given, (list, tuple)) and isinstance(part, int) and part < len(given)
        if is_listed or (isinstance(given, Mapping) and part in given):
            given = given[part]  # type: ignore[index]
        elif isinstance(part, str) and (part in _TYPE_NAMES or not re.fullmatch(r"[a-z_][a-z0-9_]*", part)):
            continue
        parts.append(str(part))
    return ".".join(parts)


_TYPE_NAMES = ("str", "int", "float", "bool", "none", "list", "tuple", "dict", "is_instance")


@contextmanager
def renaming(names: Mapping[str | None, str]) -> Iterator[None]:
    """Errors raised inside name the input as the caller sent it: `names` has its name by the one used in here."""
    try:
        yield
    except BianlianError as error:
        error.param = names.get(error.param, error.param)
        raise


def naming(param: str) -> AbstractContextManager[None]:
    """As `renaming`, for errors about a model or adapter."""
    return renaming(dict.fromkeys((None, "model", "lora_path"), param))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for error messages: `"; did you mean 'x'?"`, or the known names when none is close."""
    known = sorted(known)
    # Of short words half a match is a slip of the finger, of longer ones it is chance.
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5 if len(word) <= 3 else 0.65)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known[:8])}" if known else ""
