"""Comparisons as visitors have them: asked turn by turn, answered by the server whether anybody watches or not, kept,
read again under a permanent link, and run again on the very same versions."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Literal

from adapters.errors import BianlianError, Conflict, Invalid, NotFound
from adapters.manifest import AdapterVersion
from adapters.renderer import Message
from serving.chat import ChatService, Turn
from serving.compare import Lane, compare, with_system
from serving.comparison_store import ComparisonStore, SavedComparison, SavedLane, SavedTurn, new_id
from serving.engine.sequence import FinishReason, SamplingParams
from serving.live_turn import LiveTurn, PinnedLane
from serving.sampling_record import Sampling
from serving.token_view import ScoredLane, TokenScore, token_scores

BasePrompt = Literal["same", "own"]
Verdict = Literal["identical", "differs", "gone", "failed"]


@dataclass(frozen=True)
class LaneVerdict:
    """What came of a lane's answer in a turn when it was run again. `why` is an error's message, or "prompt" where the
    same words are another prompt now."""

    turn: int
    slot: int
    verdict: Verdict
    text: str = ""
    why: str = ""


@dataclass(frozen=True)
class ReplayStep:
    turn: int
    now: SavedTurn  # what the lanes have said again so far; those that are gone are not among them
    grown: frozenset[int]  # slots that have said more since the last step
    verdicts: tuple[LaneVerdict, ...]  # of what has ended


class Comparisons:
    def __init__(self, chat: ChatService, store: ComparisonStore):
        self.chat = chat
        self.store = store
        self._live: dict[str, LiveTurn | None] = {}  # None: about to be

    def live(self, comparison_id: str) -> LiveTurn | None:
        """The turn of a comparison that is being answered now."""
        return self._live.get(comparison_id)

    async def get(self, comparison_id: str) -> SavedComparison:
        """A comparison as it is now. NotFound."""
        live = self.live(comparison_id)
        return live.saved() if live else await self.store.database.call(self.store.get, comparison_id)

    async def ask(
        self,
        comparison_id: str | None,
        question: str,
        lanes: Mapping[int, Lane],
        params: SamplingParams,
        max_tokens: int,
        *,
        key: str = "",
    ) -> LiveTurn:
        """Ask every lane, by slot, in one batch with the same dice; each after what it has seen before. Without an id
        this begins a comparison; a comparison of another key is continued in a copy, under an id of its own.

        Raises Conflict while its last question is being answered, and as `compare`."""
        reserved = comparison_id or new_id()
        if reserved in self._live:
            raise Conflict("this comparison is still answering; wait, or stop it first", param="comparison")
        self._live[reserved] = None
        try:
            before = await self._begun(comparison_id, reserved, key)
            pinned = [PinnedLane(slot, lane, self._version(lane, key)) for slot, lane in sorted(lanes.items())]
            live = await self._start(before, question, Sampling.of(params, max_tokens), pinned, key)
        finally:
            del self._live[reserved]
        self._live[live.id] = live
        live.start(self.store, lambda: self._live.pop(live.id))
        return live

    async def replay(self, comparison_id: str, *, key: str = "") -> AsyncGenerator[ReplayStep, None]:
        """Run a comparison again on the same versions, turn by turn, each after what was said then. Yields how far it
        is, at most every UPDATE_S; the last step has all verdicts. Leaving early stops it.

        Raises NotFound, Invalid for a comparison of another base, and as `compare`."""
        saved = await self.get(comparison_id)
        self._require_base(saved)
        verdicts: list[LaneVerdict] = []
        for number, turn in enumerate(saved.turns):
            before = saved.model_copy(update={"turns": saved.turns[:number]})
            pinned: list[PinnedLane] = []
            for lane in turn.lanes:
                try:
                    pinned.append(self._pinned_again(lane))
                except BianlianError as error:
                    verdicts.append(LaneVerdict(number, lane.slot, "gone", why=error.message))
            if not pinned:
                yield ReplayStep(number, turn.model_copy(update={"lanes": ()}), frozenset(), tuple(verdicts))
                continue
            live = await self._start(before, turn.question, turn.sampling, pinned, key)
            live.start()
            try:
                async with aclosing(live.watch()) as steps:
                    async for grown in steps:
                        yield ReplayStep(number, live.turn(), frozenset(grown), tuple(verdicts))
            finally:
                live.stop()
            now = live.turn()
            verdicts += [_verdict(number, lane, then) for lane in now.lanes if (then := turn.of(lane.slot))]
            yield ReplayStep(number, now, frozenset(), tuple(verdicts))

    async def token_scores(
        self, saved: SavedComparison, turn: int, slot: int, *, base_prompt: BasePrompt = "same", key: str = ""
    ) -> list[TokenScore]:
        """A lane's answer in a turn, token by token, beside the base after the same prompt, or after its own: without
        the system prompt that the adapter was trained under. Raises as `token_view.token_scores`."""
        self._require_base(saved)
        lane = saved.turns[turn].of(slot)
        if lane is None:
            raise Invalid(f"lane {slot} took no part in this turn", param="lane")
        exact = self._pinned_again(lane).exact
        messages = [*saved.conversation(slot, turn), Message(role="user", content=saved.turns[turn].question)]
        prompt = await self._prompt(exact, messages)
        other = prompt
        if base_prompt == "own":
            other = await self._prompt(replace(exact, model=self.chat.base.name, scale=1.0), messages)
        return await token_scores(
            self.chat, ScoredLane(exact.model, exact.scale, prompt, lane.token_ids), other, key=key
        )

    async def _prompt(self, lane: Lane, messages: list[Message]) -> list[int]:
        turn = Turn(lane.model, tuple(with_system(messages, lane.system)), own_system=lane.system != "")
        return await self.chat.prompt_ids(turn)

    async def _begun(self, comparison_id: str | None, fresh_id: str, key: str) -> SavedComparison:
        """The comparison as it stands, of this key; a new one without an id."""
        base = self.chat.base
        if comparison_id is None:
            return SavedComparison(
                id=fresh_id,
                key=key,
                base_name=base.name,
                base_fingerprint=base.fingerprint,
                created_at=int(time.time()),
            )
        saved = await self.get(comparison_id)
        self._require_base(saved)
        return saved if saved.key == key else saved.model_copy(update={"id": new_id(), "key": key})

    async def _start(
        self, before: SavedComparison, question: str, sampling: Sampling, lanes: list[PinnedLane], key: str
    ) -> LiveTurn:
        asked = Message(role="user", content=question)
        running = await compare(
            self.chat,
            [pinned.exact for pinned in lanes],
            [[*before.conversation(pinned.slot), asked] for pinned in lanes],
            sampling.params(),
            max_tokens=sampling.max_tokens,
            key=key,
            repeatable=True,
        )
        return LiveTurn(before, question, sampling, lanes, running)

    def _version(self, lane: Lane, key: str) -> AdapterVersion | None:
        target = self.chat.target(lane.model, key)
        return None if self.chat.is_base(target) else self.chat.registry.resolve(target)

    def _pinned_again(self, lane: SavedLane) -> PinnedLane:
        """The lane on the version that it had. NotFound when that is gone."""
        if lane.version is None or lane.digest is None:
            return PinnedLane(lane.slot, lane.lane(self.chat.base.name), None)
        for reference in (lane.version, f"{lane.version.partition('@')[0]}@{lane.digest}"):
            with suppress(NotFound):
                version = self.chat.registry.resolve(reference)
                if version.digest == lane.digest:
                    return PinnedLane(lane.slot, lane.lane(lane.model), version)
        raise NotFound(f"{lane.version} ({lane.digest[:8]}) is not here any more", param="model")

    def _require_base(self, saved: SavedComparison) -> None:
        base = self.chat.base
        if saved.base_fingerprint != base.fingerprint:
            raise Invalid(
                f"this comparison was made on base '{saved.base_name}' ({saved.base_fingerprint[:12]}); this server "
                f"runs '{base.name}' ({base.fingerprint[:12]}): serve that base, or begin a new comparison",
                param="comparison",
            )


def _verdict(turn: int, now: SavedLane, then: SavedLane) -> LaneVerdict:
    if now.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
        return LaneVerdict(turn, now.slot, "failed", now.text, now.error or "")
    # What was stopped in its middle is the same as far as it went.
    whole = then.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    count = len(then.token_ids)
    if now.token_ids == then.token_ids or (not whole and now.token_ids[:count] == then.token_ids):
        return LaneVerdict(turn, now.slot, "identical", now.text)
    why = "" if now.prompt_sha256 == then.prompt_sha256 else "prompt"
    return LaneVerdict(turn, now.slot, "differs", now.text, why)
