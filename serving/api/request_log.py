"""Around every request: its id, its line in the log, its place in the counts. Also where an unexpected error becomes
an answer, because nothing is further out."""

import logging
import re
import time
import uuid
from collections.abc import Collection
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.errors import failure_event
from serving.engine.sequence import FinishReason
from serving.metrics import FailedRequest, HttpFigures
from serving.request_record import RequestRecord, current_record

log = logging.getLogger(__name__)

ID_HEADER = b"x-request-id"
_SANE_ID = re.compile(rb"[A-Za-z0-9._:=+-]{1,128}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_OTHER = "other"
GONE = 499  # nginx's number for a client that left before its answer began


class RequestLog:
    """Pure ASGI, the outermost. Requests to `endpoints` (our routes' paths) are logged when they have ended; the
    page's own are counted under "other"."""

    def __init__(self, app: ASGIApp, http: HttpFigures, endpoints: Collection[str]):
        self.app = app
        self.http = http
        self.endpoints = frozenset(endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent_id = dict(scope["headers"]).get(ID_HEADER, b"")
        record = RequestRecord(sent_id.decode() if _SANE_ID.fullmatch(sent_id) else uuid.uuid4().hex)
        current_record.set(record)  # for this task, which is the request's own
        started, status = time.perf_counter(), 0

        async def identified(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() != ID_HEADER]
                message = {**message, "headers": [*headers, (ID_HEADER, record.id.encode())]}
            await send(message)

        self.http.in_progress += 1
        try:
            await self.app(scope, receive, identified)
        except Exception:
            if status:  # the connection is cut; the server says why in its log
                raise
            log.exception("unexpected error on %s %s", scope["method"], self._endpoint(scope))
            scope.setdefault("state", {})["reason"] = "internal_error"
            await JSONResponse(failure_event(), 500)(scope, receive, identified)
        finally:
            record.ended = True
            self.http.in_progress -= 1
            self._note(scope, record, status or GONE, time.perf_counter() - started)

    def _endpoint(self, scope: Scope) -> str:
        path = (
            getattr(scope.get("route"), "path", None) or scope["path"]
        )  # refused before it was routed: as it was sent
        return path if path in self.endpoints else _OTHER

    def _note(self, scope: Scope, record: RequestRecord, status: int, duration_s: float) -> None:
        endpoint, state = self._endpoint(scope), scope.get("state", {})
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        reason = state.get("reason") or ""
        self.http.requests[endpoint, method, status, reason] += 1
        if endpoint == _OTHER:
            return
        key = getattr(state.get("caller"), "key", None)
        fields = {
            "method": method,
            "endpoint": endpoint,
            "status": status,
            "duration_s": round(duration_s, 4),
            "error": reason or None,
            "key": key or None,
        }
        answered = _answered(record)
        log.info("request", extra={"fields": fields | answered})
        broke_off = FinishReason.ERROR in str(answered.get("finish_reason", "")).split("+")
        if broke_off or (status >= 400 and status != GONE):
            self.http.failed.append(
                FailedRequest(
                    record.id,
                    time.time(),
                    method,
                    endpoint,
                    status,
                    reason or ("answer_failed" if broke_off else ""),
                    key or "",
                    answered.get("model", ""),
                )
            )


def _answered(record: RequestRecord) -> dict[str, Any]:
    """What the request's answers came to; {} when none was begun. One still running was left by its client."""
    answers = record.answers
    if not answers:
        return {}
    first = [ttft for answer in answers if (ttft := answer.progress.ttft_s) is not None]
    return {
        "model": "+".join(dict.fromkeys(answer.model for answer in answers)),
        "adapter": "+".join(dict.fromkeys(answer.adapter for answer in answers)),
        "answers": len(answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "completion_tokens": sum(answer.progress.tokens for answer in answers),
        "ttft_s": round(min(first), 4) if first else None,
        "finish_reason": "+".join(sorted({answer.progress.finish_reason or "abort" for answer in answers})),
    }
