"""Conversations that go on: questions are asked, and a task of the server's own writes each answer down as it grows.

So an answer belongs to its conversation and not to a page: who reloads, or looks from another device, finds it where it
is, and who leaves finds it whole on coming back."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from adapters.errors import BianlianError, Conflict, Invalid
from adapters.renderer import Message
from serving.answer import Answer
from serving.chat import ChatService, Turn
from serving.compare import LaneProgress
from serving.conversation import AnswerRecord, Conversation, Reader
from serving.engine.sequence import SamplingParams
from serving.history import History, new_conversation_id, storable

KEEP_EVERY_S = 1.0  # what a killed server may lose of a running answer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manner:
    """How an answer is made. `system` is None for the model's own prompt and "" for none."""

    model: str
    params: SamplingParams
    system: str | None = None
    max_tokens: int | None = None
    scale: float = 1.0


@dataclass
class RunningAnswer:
    """An answer that is being given; `progress` is how far it is. `task` ends with it, and never fails."""

    conversation_id: str
    message_id: int
    progress: LaneProgress
    task: asyncio.Task[None] = field(init=False)

    @property
    def record(self) -> AnswerRecord:
        progress, answer = self.progress, self.progress.answer
        return AnswerRecord(
            model=answer.model,
            adapter=answer.adapter,
            digest=answer.digest,
            seed=answer.seed,
            tokens=progress.tokens,
            first_token_s=progress.first_token_s,
            tokens_per_s=progress.tokens_per_s,
            finish_reason=progress.finish_reason.value if progress.finish_reason else None,
            error=progress.error,
        )


class Conversations:
    """Belongs to the event loop. Who asks is a Reader: nobody gets at what `history` would not show them."""

    def __init__(self, chat: ChatService, history: History):
        self.chat = chat
        self.history = history
        self._running: dict[str, RunningAnswer | None] = {}  # by conversation; None while one is being started

    def running(self, conversation_id: str) -> RunningAnswer | None:
        """The answer that is being given in a conversation. Its readers ask `history` first whether they may."""
        return self._running.get(conversation_id)

    async def ask(self, reader: Reader, conversation_id: str, question: str, manner: Manner) -> RunningAnswer:
        """Ask on at the end of the branch on screen, or in a new conversation if the id is "".

        Raises Conflict while another answer is being given there, and what `ChatService.ask` raises; then nothing is
        kept."""
        if not conversation_id:
            return await self._answer(reader, None, new_conversation_id(), None, question, manner)
        conversation = await self._open(reader, conversation_id)
        return await self._answer(reader, conversation, conversation_id, conversation.leaf_id, question, manner)

    async def edit(
        self, reader: Reader, conversation_id: str, message_id: int, question: str, manner: Manner
    ) -> RunningAnswer:
        """Ask a question otherwise; what it was, and what followed, stays as a branch of its own."""
        conversation = await self._open(reader, conversation_id)
        asked = conversation.message(message_id, "user")
        return await self._answer(reader, conversation, conversation_id, asked.parent_id, question, manner)

    async def regenerate(self, reader: Reader, conversation_id: str, message_id: int, manner: Manner) -> RunningAnswer:
        """Another answer to the same question, beside the answer `message_id`."""
        conversation = await self._open(reader, conversation_id)
        told = conversation.message(message_id, "assistant")
        return await self._answer(reader, conversation, conversation_id, told.parent_id, None, manner)

    async def require(self, reader: Reader, conversation_id: str) -> None:
        """NotFound unless the reader may see that conversation; "" is a new one."""
        if conversation_id:
            await self._open(reader, conversation_id)

    async def stop(self, reader: Reader, conversation_id: str) -> None:
        """End the answer where it is, and wait until it is kept."""
        await self._open(reader, conversation_id)
        if running := self._running.get(conversation_id):
            running.progress.answer.stop()
            await asyncio.wait([running.task])

    async def delete(self, reader: Reader, conversation_id: str) -> None:
        await self.stop(reader, conversation_id)
        await self.history.database.call(self.history.delete, reader, conversation_id)

    async def close(self) -> None:
        """End all answers, and wait until they are kept."""
        for running in filter(None, self._running.values()):
            running.progress.answer.stop()
        await asyncio.gather(*(running.task for running in self._running.values() if running))

    async def _open(self, reader: Reader, conversation_id: str) -> Conversation:
        return await self.history.database.call(self.history.open, reader, conversation_id)

    async def _answer(
        self,
        reader: Reader,
        conversation: Conversation | None,
        conversation_id: str,
        parent_id: int | None,
        question: str | None,
        manner: Manner,
    ) -> RunningAnswer:
        """As `History.begin_answer`; the answer is asked for first, so that what is refused is not kept."""
        said = _said(conversation, parent_id, question)
        with self._alone(conversation_id):
            answer = await self.chat.ask(_turn(reader, said, manner))
            running = RunningAnswer(conversation_id, 0, LaneProgress(answer))
            try:
                running.message_id = await self.history.database.call(
                    self.history.begin_answer,
                    reader,
                    conversation_id,
                    parent_id,
                    None if question is None else said[-1]["content"],
                    model=manner.model,
                    system=manner.system,
                    answer=running.record,
                )
            except BaseException:
                answer.stop()
                raise
            running.task = asyncio.create_task(self._write(running, answer))
            self._running[conversation_id] = running
        return running

    @contextmanager
    def _alone(self, conversation_id: str) -> Iterator[None]:
        """One answer at a time in a conversation: two would be branches that nobody asked for."""
        if conversation_id in self._running:
            raise Conflict("this conversation is being answered; stop that answer or wait for it")
        self._running[conversation_id] = None
        try:
            yield
        finally:
            if self._running[conversation_id] is None:  # it did not start
                del self._running[conversation_id]

    async def _write(self, running: RunningAnswer, answer: Answer) -> None:
        kept = time.monotonic()
        try:
            async with answer:
                async for delta in answer:
                    running.progress.take(delta)
                    if time.monotonic() - kept > KEEP_EVERY_S:
                        await self._keep(running)
                        kept = time.monotonic()
        except Exception as error:  # nobody awaits this task; the page and the record say what happened
            log.exception("the answer in %s broke off", running.conversation_id)
            running.progress.error = f"the answer broke off: {error}"
        finally:
            await self._keep(running)
            del self._running[running.conversation_id]

    async def _keep(self, running: RunningAnswer) -> None:
        progress = running.progress
        try:
            await self.history.database.call(
                self.history.keep_answer, running.message_id, progress.text, progress.reasoning, running.record
            )
        except BianlianError as error:
            log.warning("an answer in %s is not kept: %s", running.conversation_id, error)
            progress.error = f"this answer is not kept: {error}"


def _said(conversation: Conversation | None, parent_id: int | None, question: str | None) -> list[Message]:
    """What the model is to answer, the question last."""
    if question is None:
        assert conversation is not None and parent_id is not None
        asked = conversation.message(parent_id, "user")
        return [*conversation.said(asked.parent_id), {"role": "user", "content": asked.content}]
    if not question.strip():
        raise Invalid("the question is empty; write something first", param="question")
    before = conversation.said(parent_id) if conversation else []
    return [*before, {"role": "user", "content": storable(question)}]


def _turn(reader: Reader, said: list[Message], manner: Manner) -> Turn:
    system: list[Message] = [{"role": "system", "content": manner.system}] if manner.system else []
    return Turn(
        model=manner.model,
        messages=(*system, *said),
        params=manner.params,
        max_tokens=manner.max_tokens,
        scale=manner.scale,
        key=reader.key,
        own_system=manner.system is None,
    )
