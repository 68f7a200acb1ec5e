"""A running answer, as its callers read it: content, thoughts and tool calls apart."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from adapters.manifest import AdapterVersion
from serving.async_engine import TokenStream
from serving.engine.sequence import FinishReason, TokenDelta
from serving.figures import Progress
from serving.parsing.answer import AnswerPlan
from serving.parsing.pieces import CallPiece, Pieces, joined
from serving.parsing.reasoning import ThoughtTokens


@dataclass(frozen=True)
class AnswerDelta(TokenDelta):
    """`text` is content only: thoughts are in `reasoning`, tool calls in `calls`. `reasoning_tokens` are the thoughts'
    of all tokens so far."""

    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
    reasoning_tokens: int = 0


class Answer:
    """A running answer. Iterate inside `async with`; leaving it early stops the work."""

    def __init__(
        self,
        model: str,
        base: str,
        versions: list[AdapterVersion],
        stream: TokenStream,
        plan: AnswerPlan,
        decode: Callable[[Sequence[int]], str],
        *,
        shortened: bool = False,
    ):
        self.model = model  # as it was asked for
        self._plan = plan
        self._decode = decode
        self.versions = versions  # empty: the base alone
        self._base = base
        self.prompt_ids = stream.request.prompt_ids
        self.seed = stream.request.params.seed
        self.max_tokens = stream.request.params.max_tokens
        self.shortened = shortened  # the prompt leaves no room for as many tokens as were allowed
        self.progress: Progress = stream.progress
        self._stream = stream

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def adapter(self) -> str:
        """`name@number` of what answers, joined by '+' in a blend; the base's name without adapters."""
        return joined_names(self.versions) or self._base

    @property
    def digest(self) -> str | None:
        return "+".join(dict.fromkeys(version.digest for version in self.versions)) or None

    @property
    def strengths(self) -> str | None:
        """`huanhuan@3;scale=0.5, wukong@1;scale=1` for a blend or a strength that is not 1, else None."""
        scales = dict(self._stream.request.mix)
        if not scales or [*scales.values()] == [1]:
            return None
        named: dict[str, AdapterVersion] = {}
        for version in self.versions:  # of names for the same weights, whose strengths are added up, the first
            named.setdefault(version.digest, version)
        return ", ".join(f"{version};scale={scales[digest]:g}" for digest, version in named.items())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.abort()

    def __aiter__(self) -> AsyncIterator[AnswerDelta]:
        return self._as_it_is() if self._plan.plain else self._as_it_reads()

    async def _as_it_is(self) -> AsyncIterator[AnswerDelta]:
        async for delta in self._stream:
            yield _with_pieces(delta, Pieces(delta.text))

    async def _as_it_reads(self) -> AsyncIterator[AnswerDelta]:
        reader, called = self._plan.reader(), False
        thought = ThoughtTokens(self._plan.marks, self._decode) if self._plan.marks else None
        one_call = self._plan.tools is not None and not self._plan.tools.several
        async for delta in self._stream:
            pieces = reader.feed(delta.text)
            if delta.finish_reason:
                rest = reader.finish()
                calls = joined((*pieces.calls, *rest.calls))
                pieces = Pieces(pieces.content + rest.content, pieces.reasoning + rest.reasoning, calls)
            count = thought.count(delta.token_ids, reader.thoughts) if thought and reader.thoughts else 0
            called = called or bool(pieces.calls)
            if one_call and any(piece.index for piece in pieces.calls):
                # A second one begins, which was not wanted: the answer ends here.
                first = tuple(piece for piece in pieces.calls if not piece.index)
                self._stream.abort()
                delta = replace(delta, finish_reason=FinishReason.TOOL_CALLS)
                yield _with_pieces(delta, replace(pieces, calls=first), count)
                return
            if called and not reader.cut and delta.finish_reason == FinishReason.STOP:
                delta = replace(delta, finish_reason=FinishReason.TOOL_CALLS)
            yield _with_pieces(delta, pieces, count)

    def stop(self) -> None:
        """End the answer where it is; its iteration finishes with FinishReason.ABORT."""
        self._stream.abort()


def joined_names(versions: Sequence[AdapterVersion]) -> str:
    """`name@number` of each, joined by '+'; "" for none."""
    return "+".join(dict.fromkeys(map(str, versions)))


def _with_pieces(delta: TokenDelta, pieces: Pieces, reasoning_tokens: int = 0) -> AnswerDelta:
    return AnswerDelta(
        delta.request_id,
        pieces.content,
        delta.token_ids,
        delta.logprobs,
        delta.prompt_logprobs,
        delta.finish_reason,
        delta.cached_tokens,
        delta.error,
        delta.error_code,
        delta.embedding,
        pieces.reasoning,
        pieces.calls,
        reasoning_tokens,
    )
