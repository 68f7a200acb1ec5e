"""Every error leaves as OpenAI's body: {"error": {"message", "type", "param", "code"}}."""

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from adapters.errors import (
    BianlianError,
    Conflict,
    Forbidden,
    InsufficientStorage,
    Invalid,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
    input_path,
)
from serving.api.streaming import ClientGone
from serving.engine.sequence import ErrorCode

_STATUS: dict[type[BianlianError], int] = {
    Invalid: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    Overloaded: 429,
    Unavailable: 503,
    InsufficientStorage: 507,
}
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {405: "invalid_request_error", 409: "conflict_error", 413: "invalid_request_error", 429: "rate_limit_error"}


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_of(error: BianlianError) -> int:
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def failure_event() -> dict[str, Any]:
    """What a stream ends with when the server fails on it."""
    return error_body("the server failed on this request; its log says why", 500, code="internal_error")


def ended_body(message: str, code: ErrorCode | None) -> dict[str, Any]:
    """What an answer ends with that could not be finished: somebody ended it (`code`), or the server failed on it."""
    return error_body(message, 503 if code else 500, code=code)


def ended_reply(request: Request, message: str, code: ErrorCode | None) -> JSONResponse:
    """As `ended_body`, for an answer of which nothing has been sent. 503, not 409: nothing is wrong with the request,
    and another server may well answer it."""
    request.state.reason = code or "answer_failed"
    headers = {"Retry-After": str(math.ceil(Unavailable.retry_after_s))} if code else {}
    return JSONResponse(ended_body(message, code), 503 if code else 500, headers)


def install_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(BianlianError)
    async def known(request: Request, error: BianlianError) -> JSONResponse:
        status = status_of(error)
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}
        if isinstance(error, (Overloaded, Unavailable)):
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        return _reply(request, error.message, status, param=error.param, code=error.code, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        message, param, code = _explain(error.errors()[0], error.body)
        return _reply(request, message, 400, param=param, code=code)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return _reply(request, str(error.detail), error.status_code, headers=error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nginx's number for it; nobody reads it, but access logs do


def _reply(
    request: Request,
    message: str,
    status: int,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer; its code is noted for the log and the counts."""
    body = error_body(message, status, param=param, code=code)
    request.state.reason = code or body["error"]["type"]
    return JSONResponse(body, status, headers)


def _explain(problem: dict[str, Any], body: object) -> tuple[str, str | None, str]:
    """pydantic's first complaint about `body` → message, field, code."""
    kind = problem["type"]
    if kind == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']}", None, "invalid_json"
    if isinstance(problem.get("input"), (str, bytes)) and len(problem["loc"]) == 1:
        return "the body was not read as JSON; send the header Content-Type: application/json", None, "invalid_json"
    param = input_path(problem["loc"][1:], body) or None
    if kind == "missing":
        return f"{param or 'the body'} is required", param, "missing_required_parameter"
    if kind == "extra_forbidden":
        return f"parameter '{param}' is not supported", param, "unsupported_parameter"
    if kind == "value_error":
        error = problem["ctx"]["error"]
        return str(error), getattr(error, "param", param), "invalid_value"
    return f"{param or 'the body'}: {problem['msg']}", param, "invalid_value"
