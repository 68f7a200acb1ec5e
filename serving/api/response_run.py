"""One response of /v1/responses: its events as they come, and itself as far as it is."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from itertools import count
from typing import Any

from serving.answer import Answer
from serving.api.errors import failure_event
from serving.api.reply import Choice
from serving.api.response_input import Status
from serving.api.response_items import Output
from serving.api.response_schemas import NamedFunction, ResponseRequest
from serving.engine.sequence import FinishReason, SamplingParams


class ResponseRun:
    """One response from its first event to its last."""

    def __init__(self, body: ResponseRequest, answer: Answer, params: SamplingParams, tokenizer: Any):
        self.id = f"resp_{uuid.uuid4().hex}"
        self.answered = Choice()
        self.output = Output(tokenizer, logprobs=bool(body.include))
        self._answer = answer
        self._head = {"id": self.id, "object": "response", "created_at": int(time.time())}
        self._echo = _echo(body, answer, params)
        self._completed_at: int | None = None
        self._numbers = count()

    async def events(self, keep: Callable[[], None]) -> AsyncGenerator[dict[str, Any], None]:
        """Every event, with its type and number; `keep` is called before the one that ends a good answer."""

        def event(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
            return {"type": f"response.{kind}", "sequence_number": next(self._numbers)} | fields

        async with self._answer as answer:
            yield event("created", {"response": self.response()})
            yield event("in_progress", {"response": self.response()})
            async for delta in answer:
                self.answered.take(delta)
                for kind, fields in self.output.take(delta):
                    yield event(kind, fields)
        self._completed_at = int(time.time())
        if not self.answered.error:
            for kind, fields in self.output.end(self._item_status):
                yield event(kind, fields)
            keep()
        yield event(self._status, {"response": self.response()})

    def failure(self) -> dict[str, Any]:
        """The event that ends a stream on which the server failed."""
        error = failure_event()["error"]
        sent = {name: error[name] for name in ("code", "message", "param")}
        return {"type": "error", "sequence_number": next(self._numbers)} | sent

    def response(self) -> dict[str, Any]:
        """As far as it is."""
        status = self._status
        failed = {"code": "server_error", "message": self.answered.error} if self.answered.error else None
        return {
            **self._head,
            "status": status,
            "completed_at": self._completed_at if status == "completed" else None,
            "error": failed,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [] if status == "in_progress" else self.output.items(self._item_status),
            **({} if status == "in_progress" else {"usage": self._usage()}),
            **self._echo,
        }

    @property
    def _status(self) -> str:
        match self.answered.finish_reason:
            case None:
                return "in_progress"
            case FinishReason.STOP | FinishReason.TOOL_CALLS:
                return "completed"
            case FinishReason.ERROR:
                return "failed"
            case _:
                return "incomplete"

    @property
    def _item_status(self) -> Status:
        return "completed" if self._status == "completed" else "incomplete"

    def _usage(self) -> dict[str, Any]:
        prompt, said = self._answer.prompt_tokens, self.answered.tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.answered.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": self.answered.reasoning_tokens},
            "total_tokens": prompt + said,
        }


def _echo(body: ResponseRequest, answer: Answer, params: SamplingParams) -> dict[str, Any]:
    """What was asked, as a response repeats it; temperature and top_p as they were used."""
    choice = (
        body.tool_choice.model_dump() if isinstance(body.tool_choice, NamedFunction) else body.tool_choice or "auto"
    )
    named = {"user": body.user, "safety_identifier": body.safety_identifier, "prompt_cache_key": body.prompt_cache_key}
    return {
        "model": answer.model,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "max_output_tokens": body.max_output_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": body.text.format.model_dump(by_alias=True, exclude_none=True), "verbosity": "medium"},
        "reasoning": {"effort": "none" if body.asks_for_no_effort else None, "summary": None},
        "tools": [tool.declared for tool in body.tools or []],
        "tool_choice": choice.model_dump() if isinstance(choice, NamedFunction) else choice,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "truncation": "disabled",
        "background": False,
        "service_tier": "default",
        "store": body.store is not False,
        "metadata": body.metadata or {},
        **{name: value for name, value in named.items() if value is not None},
    }
