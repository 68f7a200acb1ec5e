"""One chat turn, for the API and the UI alike: render, lease, submit, stream."""

import asyncio
import json
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from adapters.aliases import AliasStore
from adapters.base_model import BaseModel
from adapters.errors import Conflict, Invalid, naming
from adapters.manifest import AdapterVersion, check_name, split_reference
from adapters.registry import BASE_ALIAS, AdapterRegistry, Lease
from adapters.renderer import ChatRenderer, Message
from serving.answer import Answer, joined_names
from serving.async_engine import AsyncEngine, TokenStream
from serving.effects import AdapterEffects
from serving.engine.sequence import AdapterMix, Request, SamplingParams
from serving.own_thread import on_own_thread
from serving.parsing.answer import AnswerPlan, check_tools, hidden_tokens, plan_answer, resolve_thinking
from serving.parsing.answer_format import AnswerFormat, answer_format
from serving.parsing.tools import Tools
from serving.rate_limits import RateLimiter
from serving.request_record import current_record, note_answers
from serving.usage import Usage, UsageLedger

MAX_SCALE = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """What a caller wants answered, and by whom. `blend` names adapters and strengths and replaces the adapter
    that `model` names; `scale` is the strength of the latter. A `prompt`, text or token ids, is continued as it
    stands, instead of messages: no template, no system prompt. `key` says who asks, for limits, usage and fair
    waiting; `priority` how urgently (lower runs earlier). `choice` counts the n answers to one prompt: only the first
    is a request, and has prompt tokens, to limits and usage. `user` is who the caller asks for: it, or else the key,
    decides what an alias means. `param` is the input that named the adapters, for errors.
    `thinking` None is as the adapter was trained, or else the base is set up. `own_system` False leaves messages that
    have no system prompt without one, instead of giving them the one that the adapter was trained under."""

    model: str
    messages: tuple[Message, ...] = ()
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None  # at most; None: as many as the model's length leaves room for
    scale: float = 1.0
    blend: tuple[tuple[str, float], ...] = ()
    prompt: str | tuple[int, ...] | None = None
    key: str = ""
    priority: int = 0
    choice: int = 0
    user: str = ""
    param: str = "model"
    tools: Tools | None = None
    thinking: bool | None = None
    own_system: bool = True


class ChatService:
    def __init__(self, base: BaseModel, registry: AdapterRegistry, engine: AsyncEngine, renderer: ChatRenderer):
        self.base = base
        self.registry = registry
        self.engine = engine
        self.renderer = renderer
        self.limits = RateLimiter()
        self.usage = UsageLedger()
        self.aliases = AliasStore(registry.store)
        self.effects = AdapterEffects(engine)
        registry.on_drained = self._free

    @cached_property
    def answers(self) -> AnswerFormat:
        """How the base writes thoughts and calls."""
        return answer_format(self.renderer)

    @cached_property
    def _hidden_tokens(self) -> frozenset[int] | None:
        return hidden_tokens(self.answers, self.base.tokenizer)

    async def ask(self, turn: Turn) -> Answer:
        return (await self.ask_together([turn]))[0]

    async def ask_together(self, turns: Sequence[Turn]) -> list[Answer]:
        """Start several turns in the same step: they share batches from the first token to the last.

        Raises NotFound, Invalid, Overloaded (RateLimited for the key's own limits) or Unavailable before anything has
        started."""
        arrived_s = time.perf_counter()
        bank = self.engine.engine.bank
        for key in {turn.key for turn in turns}:  # before any work is done
            self.limits.check(key, sum(turn.choice == 0 for turn in turns if turn.key == key))
        with ExitStack() as undo:  # leases go back if any turn is refused
            prepared = []
            for turn in turns:
                with naming(turn.param):
                    leases = self._lease(turn)
                for lease, _ in leases:
                    bank.hold(lease.version.digest)  # or it might be dropped again before the engine has the request
                    undo.callback(self._end_lease, lease)
                for lease, _ in leases:
                    if bank.status(lease.version.digest) == "cold":
                        await on_own_thread(bank.warm, lease.version)
                bank.require_room([lease.version.digest for lease, _ in leases])
                # In a thread: tokenising a long conversation takes a while, and other answers are streaming.
                request, plan = await asyncio.to_thread(self._request, turn, leases, arrived_s)
                prepared.append((turn, leases, request, plan))
            all_leases = {request.id: [lease for lease, _ in leases] for _, leases, request, _ in prepared}

            def end(request_id: str) -> None:
                for lease in all_leases[request_id]:
                    self.effects.learn_later(lease.version)
                    self._end_lease(lease)

            self._take_from_limits([(turn, request) for turn, _, request, _ in prepared], undo)
            counted = {request.id: (turn, self._label(leases, request)) for turn, leases, request, _ in prepared}
            streams = self.engine.submit(
                [request for _, _, request, _ in prepared],
                end,
                lambda stream: self._count(stream, *counted[stream.request.id]),
            )
            undo.pop_all()
        decode = self.base.tokenizer.decode
        answers = [
            Answer(
                self._model_name(turn),
                self.base.name,
                _taking_part(leases, stream.request),
                stream,
                plan,
                decode,
                shortened=turn.max_tokens not in (None, stream.request.params.max_tokens),
            )
            for (turn, leases, _, plan), stream in zip(prepared, streams, strict=True)
        ]
        note_answers(answers)
        return answers

    async def prompt_ids(self, turn: Turn) -> list[int]:
        """Token ids that an answer to the turn's messages would continue. Raises as `ask`; takes no lease."""
        versions = self._versions(turn)
        return (await asyncio.to_thread(self._conversation, turn, versions))[0]

    async def tokenize(self, turn: Turn, *, head: bool, special: bool) -> list[int]:
        """Token ids of the turn's prompt, however many. `head`: with that of the assistant's turn; `special`: with the
        tokens that the tokenizer puts around any text."""
        versions = self._versions(turn)
        if isinstance(turn.prompt, str):
            text = turn.prompt
        else:
            text = self.renderer.prompt_text(self._messages(turn, versions), head=head)
        # In a thread, as for an answer.
        return await asyncio.to_thread(lambda: list(self.base.tokenizer.encode(text, add_special_tokens=special)))

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Text of the tokens, special ones spelled out. NotFound for a model that is not here."""
        self._versions(Turn(model))
        return str(await asyncio.to_thread(self.base.tokenizer.decode, list(tokens)))

    def default_params(self) -> SamplingParams:
        """Sampling as the base's authors advise (generation_config.json); what they leave open is plain."""
        advised = self.base.model.generation_config
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return SamplingParams(**{name: value for name in names if (value := getattr(advised, name, None)) is not None})

    async def load(self, name: str, directory: Path, *, replace: bool = False) -> AdapterVersion:
        """Offer the PEFT directory under `name`, its weights already in memory. Raises what is wrong with it; then
        nothing has changed."""
        check_name(name, param="lora_name")
        bank = self.engine.engine.bank
        await on_own_thread(bank.check, directory)
        version = self.registry.attach(name, directory, replace=replace)
        await on_own_thread(bank.warm, version)
        await self.effects.measure(version)
        return version

    async def unload(self, name: str, *, force: bool = False) -> int:
        """Stop offering an adapter and free its memory; returns the bytes freed. Conflict when requests are running
        on it, unless `force` ends them."""
        if self.is_base(name):
            raise Invalid("the base model cannot be unloaded; stop the server instead", param="lora_name")
        with naming("lora_name"):
            version = self.registry.resolve(check_name(name, param="lora_name"))
            if not force:
                self.aliases.require_unused(lambda model: split_reference(model)[0] == version.name)
        shared = self.registry.is_offered_elsewhere(version)  # then requests on these weights can go on
        running = 0 if shared else self.registry.leases(version)
        if running and not force:
            raise Conflict(
                f"{version} is answering {running} request{'s' if running > 1 else ''}; wait or send force=true",
                param="lora_name",
            )
        return await self.withdraw(lambda: self.registry.detach(version.name), [version], end_running=force)

    async def withdraw(
        self, take_away: Callable[[], object], versions: Sequence[AdapterVersion], *, end_running: bool
    ) -> int:
        """Run `take_away`, after which the registry offers `versions` no more, on a thread; returns the bytes of memory
        that this has freed. Requests on them go on, unless `end_running`, and so does what another name still means."""
        bank = self.engine.engine.bank
        digests = {version.digest for version in versions}
        before = sum(map(bank.nbytes, digests))
        await asyncio.to_thread(take_away)
        if end_running:
            offered = {version.digest for version in await asyncio.to_thread(self.registry.versions)}
            for digest in digests - offered:
                await self.engine.call(partial(self.engine.abort_using, digest))
        await asyncio.to_thread(self.registry.refresh)
        await self.engine.call(lambda: None)  # the freeing itself is in the engine's inbox before this
        return before - sum(map(bank.nbytes, digests))

    async def warm(self, name: str) -> AdapterVersion:
        """Bring the adapter's weights into memory before somebody asks for it."""
        lease = self.registry.acquire(name)  # so that its memory is freed when the name moves on
        try:
            await on_own_thread(self.engine.engine.bank.warm, lease.version)
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

    def _take_from_limits(self, asked: Sequence[tuple[Turn, Request]], undo: ExitStack) -> None:
        """What the key's limits are charged before an answer starts, and given back if it does not start after all."""
        charged: dict[str, tuple[int, int]] = {}
        for turn, request in asked:
            if turn.choice == 0:
                requests, tokens = charged.get(turn.key, (0, 0))
                charged[turn.key] = requests + 1, tokens + len(request.prompt_ids)
        for key, (requests, tokens) in charged.items():
            self.limits.take(key, requests, tokens)
            undo.callback(self.limits.give_back, key, requests, tokens)

    def _count(self, stream: TokenStream, turn: Turn, model: str) -> None:
        """Book an answer that has ended. Engine's thread."""
        self.limits.spend(turn.key, stream.progress.tokens)
        used = Usage(completion_tokens=stream.progress.tokens)
        if turn.choice == 0:
            used += Usage(1, len(stream.request.prompt_ids), stream.progress.cached_tokens)
        self.usage.add(turn.key, model, used)

    def _label(self, leases: list[tuple[Lease, float]], request: Request) -> str:
        return joined_names(_taking_part(leases, request)) or self.base.name

    def _end_lease(self, lease: Lease) -> None:
        self.engine.engine.bank.release(lease.version.digest)
        lease.release()

    def is_base(self, model: str) -> bool:
        return model in (self.base.name, BASE_ALIAS)

    def target(self, model: str, user: str) -> str:
        """What an alias means for `user`; any other model id as it is."""
        alias = self.aliases.get(model)
        return alias.choose(user) if alias else model

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

    def _versions(self, turn: Turn) -> list[AdapterVersion]:
        return [self.registry.resolve(name) for name, _ in self._wanted(turn)]

    def _wanted(self, turn: Turn) -> list[tuple[str, float]]:
        """Adapters by model id, with strengths; none of them: the base alone."""
        user = turn.user or turn.key
        named = turn.blend or ((turn.model, turn.scale),)
        wanted = [(self.target(name, user), scale) for name, scale in named]
        if turn.blend and not self.is_base(model := self.target(turn.model, user)):
            self.registry.resolve(model)  # a misspelt name is an error here too
        for name, scale in wanted:
            if not -MAX_SCALE <= scale <= MAX_SCALE:
                raise Invalid(f"strength of '{name}' is {scale}; it must be within ±{MAX_SCALE}", param="lora")
        return [(name, scale) for name, scale in wanted if not self.is_base(name)]

    def _request(self, turn: Turn, leases: list[tuple[Lease, float]], arrived_s: float) -> tuple[Request, AnswerPlan]:
        engine = self.engine.engine
        if turn.prompt is None:
            prompt, plan = self._conversation(turn, [lease.version for lease, _ in leases])
            max_tokens = engine.check(len(prompt), turn.max_tokens)
        else:
            prompt, plan = self._raw_ids(turn.prompt), AnswerPlan(grammar=turn.params.grammar)
            max_tokens = engine.check(len(prompt), turn.max_tokens, param="prompt")
        if turn.params.min_tokens > max_tokens:
            raise Invalid(
                f"min_tokens is {turn.params.min_tokens}, but the answer may have only {max_tokens} tokens: that is "
                f"max_tokens, or what a prompt of {len(prompt)} leaves of the model's {engine.max_model_len}",
                param="min_tokens",
            )
        if plan.grammar:
            engine.grammars.matcher(plan.grammar)  # compiled here, where it holds up nobody else, or refused
        params = replace(turn.params, max_tokens=max_tokens, grammar=plan.grammar)
        hidden = None if plan.plain else self._hidden_tokens
        name = "+".join(dict.fromkeys(lease.version.name for lease, _ in leases)) or self.base.name
        request = Request(
            _request_id(),
            tuple(prompt),
            params,
            _mix(leases),
            turn.key,
            turn.priority,
            adapter=name,
            arrived_s=arrived_s,
            hidden_tokens=hidden,
        )
        return request, plan

    def _conversation(self, turn: Turn, versions: list[AdapterVersion]) -> tuple[list[int], AnswerPlan]:
        """The turn's messages as a prompt, and what will answer it."""
        if turn.tools:
            check_tools(self.answers, turn.tools)
        trained = next((v.manifest.thinking for v in versions if v.manifest), self.renderer.thinking)
        thinks = resolve_thinking(self.answers, turn.thinking, trained)
        messages = self._messages(turn, versions)
        offered = turn.tools.functions if turn.tools and turn.tools.choice != "none" else ()
        declared = [function.declaration for function in offered]
        self._check_characters(sum(map(_characters, messages)) + len(json.dumps(declared)), "messages")
        text = self.renderer.prompt_text(messages, tools=declared, thinking=thinks)
        plan = plan_answer(
            self.answers,
            text,
            thinks=thinks,
            tools=turn.tools,
            content=turn.params.grammar,
            spell=self.engine.engine.grammars.spelled,
        )
        return self.renderer.encode(text), plan

    def _raw_ids(self, prompt: str | tuple[int, ...]) -> list[int]:
        """A prompt without template, as the tokenizer reads text by itself: special tokens spelled out in it are
        special, and those it puts before any text are put there."""
        if isinstance(prompt, str):
            self._check_characters(len(prompt), "prompt")
            ids = list(self.base.tokenizer.encode(prompt))
        else:
            ids = list(prompt)
        if not ids:
            raise Invalid("the prompt is empty; send at least one token", param="prompt")
        return ids

    def _check_characters(self, characters: int, param: str) -> None:
        limit = self.engine.engine.max_model_len
        if characters > limit * self.renderer.longest_token:  # cannot fit; spare us finding out how much it is
            raise Invalid(
                f"this model's maximum context length is {limit} tokens; the prompt has {characters} characters, "
                f"certainly more: shorten the {'conversation' if param == 'messages' else param}",
                param=param,
                code="context_length_exceeded",
            )

    def _messages(self, turn: Turn, versions: list[AdapterVersion]) -> list[Message]:
        """The conversation, with the system prompt the adapter was trained under when the caller gives none."""
        if not turn.messages:
            raise Invalid("messages is empty; send at least one", param="messages")
        messages = list(turn.messages)
        if self.answers.calls is None and any(m["role"] == "tool" or "tool_calls" in m for m in messages):
            raise Invalid(
                f"messages has tool calls, which this model cannot read: {self.answers.no_tools}; leave them out",
                param="messages",
                code="unsupported_parameter",
            )
        trained = next((v.manifest.system_prompt for v in versions if v.manifest and v.manifest.system_prompt), None)
        if trained and turn.own_system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": trained})
        return messages

    def _model_name(self, turn: Turn) -> str:
        return self.base.name if turn.model == BASE_ALIAS else turn.model

    def _free(self, version: AdapterVersion) -> None:
        # By then somebody may have asked for the version again, and relies on its weights being in memory.
        def forget() -> None:
            self.registry.unless_leased(version, lambda: self.engine.engine.forget_adapter(version.digest))

        self.engine.post(forget)


def _characters(message: Message) -> int:
    calls = message.get("tool_calls")
    thoughts = message.get("reasoning_content", "")
    return len(message["content"]) + len(thoughts) + (len(json.dumps(calls)) if calls else 0)


def _mix(leases: list[tuple[Lease, float]]) -> AdapterMix:
    """Strengths of the same weights are added; the order is fixed, so equal mixes are equal."""
    strengths: dict[str, float] = {}
    for lease, scale in leases:
        strength = strengths[lease.version.digest] = strengths.get(lease.version.digest, 0.0) + scale
        if not -MAX_SCALE <= strength <= MAX_SCALE:
            raise Invalid(
                f"strengths of {lease.version} add up to {strength:g}; the sum must be within ±{MAX_SCALE}",
                param="lora",
            )
    return tuple(sorted((digest, scale) for digest, scale in strengths.items() if scale))


def _request_id() -> str:
    """Unique, also where callers send the same id twice; begins with the id that the caller knows."""
    record = current_record.get()
    return f"{record.id}/{uuid.uuid4().hex}" if record else uuid.uuid4().hex


def _taking_part(leases: list[tuple[Lease, float]], request: Request) -> list[AdapterVersion]:
    """Versions whose strength is not 0 in all."""
    used = {digest for digest, _ in request.mix}
    return [lease.version for lease, _ in leases if lease.version.digest in used]


def random_seed() -> int:
    return secrets.randbits(31)
