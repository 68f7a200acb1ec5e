"""One chat turn, for the API and the UI alike: render, lease, submit, stream."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from adapters.base_model import BaseModel
from adapters.errors import Conflict, Invalid
from adapters.manifest import AdapterVersion, check_name
from adapters.registry import BASE_ALIAS, AdapterRegistry, Lease
from adapters.renderer import ChatRenderer, Message
from serving.async_engine import AsyncEngine, TokenStream
from serving.engine.sequence import AdapterMix, Request, SamplingParams, TokenDelta

MAX_SCALE = 2.0


@dataclass(frozen=True)
class Turn:
    """What a caller wants answered, and by whom. `blend` names adapters and strengths and replaces the adapter
    that `model` names; `scale` is the strength of the latter."""

    model: str
    messages: tuple[Message, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None  # None: as many as the model's length leaves room for
    scale: float = 1.0
    blend: tuple[tuple[str, float], ...] = ()


class Answer:
    """A running answer. Iterate inside `async with`; leaving it early stops the work."""

    def __init__(self, model: str, versions: list[AdapterVersion], stream: TokenStream):
        self.model = model
        self.versions = versions  # empty: the base alone
        self.prompt_tokens = len(stream.request.prompt_ids)
        self.seed = stream.request.params.seed
        self._stream = stream

    @property
    def adapter(self) -> str:
        """`name@number` of what answers, joined by '+' in a blend; the base's name without adapters."""
        return "+".join(map(str, self.versions)) or self.model

    @property
    def digest(self) -> str | None:
        return "+".join(version.digest for version in self.versions) or None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.abort()

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return aiter(self._stream)

    def stop(self) -> None:
        """End the answer where it is; its iteration finishes with FinishReason.ABORT."""
        self._stream.abort()


class ChatService:
    def __init__(self, base: BaseModel, registry: AdapterRegistry, engine: AsyncEngine, renderer: ChatRenderer):
        self.base = base
        self.registry = registry
        self.engine = engine
        self.renderer = renderer
        registry.on_drained = self._free

    async def ask(self, turn: Turn) -> Answer:
        return (await self.ask_together([turn]))[0]

    async def ask_together(self, turns: Sequence[Turn]) -> list[Answer]:
        """Start several turns in the same step: they share batches from the first token to the last.

        Raises NotFound, Invalid, Overloaded or Unavailable before anything has started."""
        bank = self.engine.engine.bank
        with ExitStack() as undo:  # leases go back if any turn is refused
            prepared = []
            for turn in turns:
                leases = self._lease(turn)
                for lease, _ in leases:
                    bank.hold(lease.version.digest)  # or it might be dropped again before the engine has the request
                    undo.callback(self._end_lease, lease)
                for lease, _ in leases:
                    if bank.status(lease.version.digest) == "cold":
                        await asyncio.to_thread(bank.warm, lease.version)
                bank.require_room([lease.version.digest for lease, _ in leases])
                # In a thread: tokenising a long conversation takes a while, and other answers are streaming.
                request = await asyncio.to_thread(self._request, turn, leases)
                prepared.append((turn, leases, request))
            all_leases = {request.id: [lease for lease, _ in leases] for _, leases, request in prepared}

            def end(request_id: str) -> None:
                for lease in all_leases[request_id]:
                    self._end_lease(lease)

            streams = self.engine.submit([request for _, _, request in prepared], end)
            undo.pop_all()
        return [
            Answer(self._model_name(turn), [lease.version for lease, _ in leases], stream)
            for (turn, leases, _), stream in zip(prepared, streams, strict=True)
        ]

    def default_params(self) -> SamplingParams:
        """Sampling as the base's authors advise (generation_config.json); what they leave open is plain."""
        advised = self.base.model.generation_config
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return SamplingParams(**{name: value for name in names if (value := getattr(advised, name, None)) is not None})

    async def load(self, name: str, directory: Path, *, replace: bool = False) -> AdapterVersion:
        """Offer the PEFT directory under `name`, its weights already in memory. Raises what is wrong with it; then
        nothing has changed."""
        bank = self.engine.engine.bank
        await asyncio.to_thread(bank.check, directory)
        version = self.registry.attach(name, directory, replace=replace)
        await asyncio.to_thread(bank.warm, version)
        return version

    async def unload(self, name: str, *, force: bool = False) -> int:
        """Stop offering an adapter and free its memory; returns the bytes freed. Conflict when requests are running
        on it, unless `force` ends them."""
        if name in (self.base.name, BASE_ALIAS):
            raise Invalid("the base model cannot be unloaded; stop the server instead", param="lora_name")
        version = self.registry.resolve(check_name(name))
        running = self.registry.leases(version)
        if running and not force:
            raise Conflict(
                f"{version} is answering {running} request{'s' if running > 1 else ''}; wait or send force=true"
            )
        bank = self.engine.engine.bank
        freed = bank.nbytes(version.digest)
        self.registry.detach(version.name)
        if running:
            await self.engine.call(lambda: self.engine.abort_using(version.digest))
        await self.engine.call(lambda: None)  # the freeing itself is in the engine's inbox before this
        return freed - bank.nbytes(version.digest)

    async def warm(self, name: str) -> AdapterVersion:
        """Bring the adapter's weights into memory before somebody asks for it."""
        lease = self.registry.acquire(name)  # so that its memory is freed when the name moves on
        try:
            await asyncio.to_thread(self.engine.engine.bank.warm, lease.version)
        finally:
            lease.release()
        return lease.version

    async def pin(self, name: str) -> AdapterVersion:
        """Keep the adapter's weights in memory until it is unpinned, unloaded or replaced."""
        bank, version = self.engine.engine.bank, self.registry.resolve(name)
        bank.pin(version.digest)
        try:
            return await self.warm(str(version))
        except Exception:
            bank.unpin(version.digest)
            raise

    def unpin(self, name: str) -> AdapterVersion:
        version = self.registry.resolve(name)
        self.engine.engine.bank.unpin(version.digest)
        return version

    def _end_lease(self, lease: Lease) -> None:
        self.engine.engine.bank.release(lease.version.digest)
        lease.release()

    def _lease(self, turn: Turn) -> list[tuple[Lease, float]]:
        leases: list[tuple[Lease, float]] = []
        try:
            for name, scale in self._wanted(turn):
                leases.append((self.registry.acquire(name), scale))
        except Exception:
            for lease, _ in leases:
                lease.release()
            raise
        return leases

    def _wanted(self, turn: Turn) -> list[tuple[str, float]]:
        """Adapters by model id, with strengths; none of them: the base alone."""
        if turn.blend:
            wanted = list(turn.blend)
        elif turn.model in (self.base.name, BASE_ALIAS):
            wanted = []
        else:
            wanted = [(turn.model, turn.scale)]
        for name, scale in wanted:
            if not -MAX_SCALE <= scale <= MAX_SCALE:
                raise Invalid(f"strength of '{name}' is {scale}; it must be within ±{MAX_SCALE}", param="lora")
        return wanted

    def _request(self, turn: Turn, leases: list[tuple[Lease, float]]) -> Request:
        messages = self._messages(turn, [lease.version for lease, _ in leases])
        limit = self.engine.engine.max_model_len
        characters = sum(len(message["content"]) for message in messages)
        if characters > limit * self.renderer.longest_token:  # cannot fit; spare us finding out how much it is
            raise Invalid(
                f"the prompt has {characters} characters, certainly more than the {limit} tokens the model takes; "
                "shorten the conversation",
                param="messages",
                code="context_length_exceeded",
            )
        prompt = self.renderer.prompt_ids(messages)
        params = replace(turn.params, max_tokens=self.engine.engine.check(len(prompt), turn.max_tokens))
        return Request(uuid.uuid4().hex, tuple(prompt), params, _mix(leases))

    def _messages(self, turn: Turn, versions: list[AdapterVersion]) -> list[Message]:
        """The conversation, with the system prompt the adapter was trained under when the caller gives none."""
        if not turn.messages:
            raise Invalid("messages is empty; send at least one", param="messages")
        messages = list(turn.messages)
        trained = next((v.manifest.system_prompt for v in versions if v.manifest and v.manifest.system_prompt), None)
        if trained and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": trained})
        return messages

    def _model_name(self, turn: Turn) -> str:
        return self.base.name if turn.model == BASE_ALIAS else turn.model

    def _free(self, version: AdapterVersion) -> None:
        self.engine.post(lambda: self.engine.engine.forget_adapter(version.digest))


def _mix(leases: list[tuple[Lease, float]]) -> AdapterMix:
    """Strengths of the same weights are added; the order is fixed, so equal mixes are equal."""
    strengths: dict[str, float] = {}
    for lease, scale in leases:
        strengths[lease.version.digest] = strengths.get(lease.version.digest, 0.0) + scale
    return tuple(sorted((digest, scale) for digest, scale in strengths.items() if scale))


def random_seed() -> int:
    return secrets.randbits(31)
