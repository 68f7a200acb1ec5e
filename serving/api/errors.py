"""Every error leaves as OpenAI's body: {"error": {"message", "type", "param", "code"}}."""

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from adapters.errors import BianlianError, Conflict, Forbidden, Invalid, NotFound, Overloaded, Unavailable
from serving.api.streaming import ClientGone

log = logging.getLogger(__name__)

_STATUS: dict[type[BianlianError], int] = {
    Invalid: 400,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    Overloaded: 429,
    Unavailable: 503,
}
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {405: "invalid_request_error", 409: "conflict_error", 413: "invalid_request_error", 429: "rate_limit_error"}


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_of(error: BianlianError) -> int:
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def install_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(BianlianError)
    async def known(request: Request, error: BianlianError) -> JSONResponse:
        status = status_of(error)
        headers = {"Retry-After": str(max(1, round(error.retry_after_s)))} if isinstance(error, Overloaded) else None
        return JSONResponse(error_body(error.message, status, param=error.param, code=error.code), status, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        message, param, code = _explain(error.errors()[0])
        return JSONResponse(error_body(message, 400, param=param, code=code), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code, error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nginx's number for it; nobody reads it, but access logs do

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("unexpected error on %s %s", request.method, request.url.path)
        return JSONResponse(error_body("the server failed on this request; its log says why", 500), 500)


def _explain(problem: dict[str, Any]) -> tuple[str, str | None, str]:
    """pydantic's first complaint → message, field, code."""
    kind = problem["type"]
    if kind == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']}", None, "invalid_json"
    if isinstance(problem.get("input"), (str, bytes)) and len(problem["loc"]) == 1:
        return "the body was not read as JSON; send the header Content-Type: application/json", None, "invalid_json"
    param = ".".join(str(part) for part in problem["loc"][1:]) or None
    if kind == "missing":
        return f"{param or 'the body'} is required", param, "missing_required_parameter"
    if kind == "extra_forbidden":
        return f"parameter '{param}' is not supported", param, "unsupported_parameter"
    if kind == "value_error":
        error = problem["ctx"]["error"]
        return str(error), getattr(error, "param", param), "invalid_value"
    return f"{param or 'the body'}: {problem['msg']}", param, "invalid_value"
