"""POST /v1/completions: text continued as it stands, and scored (`echo` with `logprobs`), streamed and not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from adapters.errors import Invalid
from serving.answer import Answer, AnswerDelta
from serving.api.auth import Caller, caller_of
from serving.api.declared import TextCompletion, answers
from serving.api.dialects import Blend, chosen
from serving.api.reply import Reply
from serving.api.text_schemas import DEFAULT_TEXT_TOKENS, TextCompletionRequest, check_token_ids
from serving.chat import ChatService, Turn
from serving.engine.detokenizer import Detokenizer
from serving.engine.sequence import TokenLogprob

_UNFINISHED = "\ufffd"


def text_completions_router(chat: ChatService) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", response_model=None, responses=answers(TextCompletion))
    async def completions(body: TextCompletionRequest, request: Request) -> Response:
        answers = await chat.ask_together(_turns(body, chat, caller_of(request), chosen(body, request, chat)))
        reply = _TextReply(answers, chat.base.tokenizer, body)
        return await reply.respond(request, stream=body.stream, options=body.stream_options)

    return router


def _turns(body: TextCompletionRequest, chat: ChatService, caller: Caller, named: tuple[Blend, str]) -> list[Turn]:
    """n turns a prompt. Choice k of every prompt rolls the dice of seed + k, as it would if it were sent alone."""
    vocab_size = chat.base.model.config.get_text_config().vocab_size
    check_token_ids("prompt", body.prompt, vocab_size)
    try:
        params = body.params(chat.default_params(), vocab_size, logprobs=body.logprobs)
    except ValueError as error:
        raise Invalid(str(error)) from error
    if body.echo:
        params = replace(params, prompt_logprobs=body.logprobs)
    return [
        Turn(
            model=body.model,
            prompt=prompt,
            params=replace(params, seed=params.seed + number),
            max_tokens=DEFAULT_TEXT_TOKENS if body.max_tokens is None else body.max_tokens,
            blend=named[0],
            param=named[1],
            user=body.user or "",
            key=caller.key,
            priority=caller.priority(body.priority),
            choice=number,
        )
        for prompt in body.prompt
        for number in range(body.n)
    ]


class _TextReply(Reply):
    id_prefix = "cmpl"
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, answers: list[Answer], tokenizer: Any, body: TextCompletionRequest):
        super().__init__(answers, tokenizer, body.n)
        prompts = [prompt for prompt in body.prompt for _ in range(body.n)]
        self.echoes = [self._prompt_text(prompt) if body.echo else "" for prompt in prompts]
        self.logs = [
            _LogprobLog(tokenizer, answer.prompt_ids, echo) if body.logprobs is not None else None
            for answer, echo in zip(answers, self.echoes, strict=True)
        ]

    def whole_choice(self, index: int) -> dict[str, Any]:
        choice, log = self.choices[index], self.logs[index]
        return {
            "text": self.echoes[index] + choice.text,
            "logprobs": log.take(choice.prompt_logprobs, choice.logprobs) if log else None,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        # With logprobs the echo comes in one chunk with them, when the prompt has been computed.
        if not self.echoes[index] or self.logs[index]:
            return None
        return {"text": self.echoes[index], "logprobs": None}

    def part(self, index: int, delta: AnswerDelta) -> dict[str, Any] | None:
        log = self.logs[index]
        text = (self.echoes[index] if delta.prompt_logprobs else "") + delta.text
        if not (text or delta.logprobs or delta.finish_reason):
            return None
        logged = log.take(delta.prompt_logprobs, delta.logprobs) if log and (text or delta.logprobs) else None
        return {"text": text, "logprobs": logged}

    def _prompt_text(self, prompt: str | tuple[int, ...]) -> str:
        return prompt if isinstance(prompt, str) else str(self.tokenizer.decode(list(prompt)))


class _LogprobLog:
    """One choice's log-probabilities in the endpoint's shape, four lists with an entry a token. Offsets count
    characters from the beginning of the choice's text; a token inside a character begins where that does."""

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], echo: str):
        self.tokenizer = tokenizer
        self.prompt_ids = prompt_ids
        self.echo = echo
        self._text = Detokenizer(tokenizer, (), show_special=True)
        self._offset = 0

    def take(self, prompt: Sequence[TokenLogprob | None], output: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets = []
        if prompt:
            # The tokenizer may have put a token before the text that was sent.
            before = max(0, str(self.tokenizer.decode(list(self.prompt_ids))).find(self.echo))
            offsets += [max(0, self._next(token) - before) for token in self.prompt_ids]
            self._text, self._offset = Detokenizer(self.tokenizer, (), show_special=True), len(self.echo)
        entries = [*prompt, *output]
        offsets += [self._next(entry.token_id) for entry in output]
        ids = [*(self.prompt_ids if prompt else ()), *(entry.token_id for entry in output)]
        return {
            "tokens": [self._spelled(token) for token in ids],
            "token_logprobs": [entry and max(entry.logprob, -9999.0) for entry in entries],
            "top_logprobs": [entry and self._top(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _next(self, token_id: int) -> int:
        offset = self._offset
        self._offset += len(self._text.push(token_id))
        return offset

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The most likely tokens and the chosen one, which may be one more."""
        likely = {self._spelled(token): max(logprob, -9999.0) for token, logprob in entry.top}
        return likely | {self._spelled(entry.token_id): max(entry.logprob, -9999.0)}

    def _spelled(self, token_id: int) -> str:
        """A token as text. Part of a character has none of its own and is spelled as in the vocabulary, so that
        different tokens stay different."""
        text = str(self.tokenizer.decode([token_id]))
        return str(self.tokenizer.convert_ids_to_tokens(token_id)) if _UNFINISHED in text else text
