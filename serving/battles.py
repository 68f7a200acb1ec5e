"""The arena: two contestants drawn from a pool answer one question side by side, and who votes does not know which is
which.

The dice are this server's: they draw the two and their sides. A battle runs in a task of its own, so pages may come and
go. Until the vote, whoever shows a battle may show `texts` and nothing else of its sides."""

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from adapters.errors import BianlianError, Conflict, Forbidden, Invalid
from adapters.manifest import AdapterVersion
from adapters.renderer import Message
from serving.battle_store import Asked, Battle, BattleSide, BattleStore
from serving.chat import MAX_SCALE, ChatService
from serving.compare import Comparison, Lane, LaneProgress, compare
from serving.engine.sequence import SamplingParams
from serving.question_sets import MAX_QUESTION, QuestionSet
from serving.sampling_record import Sampling
from serving.votes import voted_lanes

UPDATE_S = 0.1  # a browser that draws more often falls behind
MAX_POOL = 32
CHOICES = ("left", "right", "tie", "both_bad")

_STRENGTH = re.compile(r"(?P<model>.+?)\s+[×xX*]\s*(?P<scale>[+-]?\d+(\.\d+)?)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contestant:
    """A model of the pool: the base (no version), or an adapter's version with its strength."""

    lane: Lane
    version: AdapterVersion | None


class Battles:
    def __init__(self, chat: ChatService, store: BattleStore, dice: random.Random | None = None):
        self.chat = chat
        self.store = store
        self._dice = dice or random.SystemRandom()
        self._live: dict[str, LiveBattle] = {}

    def contestants(self, pool: Sequence[str]) -> list[Contestant]:
        """Who is in the pool, each once: `wukong`, `wukong@2`, `wukong ×0.5`. Invalid when they are not 2 to MAX_POOL,
        NotFound for one that is not here."""
        if len(pool) > MAX_POOL:
            raise Invalid(f"a pool has at most {MAX_POOL} contestants, not {len(pool)}", param="pool")
        found = {contestant.lane: contestant for text in pool for contestant in [self._contestant(text)]}
        if len(found) < 2:
            raise Invalid("choose at least two different contestants: models, versions or strengths", param="pool")
        return list(found.values())

    async def start(
        self,
        key: str,
        asked: Asked,
        pool: Sequence[str],
        params: SamplingParams,
        *,
        max_tokens: int,
        system: str | None = None,
    ) -> "LiveBattle":
        """Draw two of the pool and let them answer. Raises what `contestants` and the chat service refuse, before
        anything has started."""
        if not asked.text.strip():
            raise Invalid("ask something first", param="question")
        if len(asked.text) > MAX_QUESTION:
            raise Invalid(f"the question has {len(asked.text)} characters, more than {MAX_QUESTION}", param="question")
        left, right = self._dice.sample(await asyncio.to_thread(self.contestants, pool), 2)
        lanes = [replace(contestant.lane, system=system) for contestant in (left, right)]
        messages = [Message(role="user", content=asked.text)]
        running = await compare(self.chat, lanes, [messages] * 2, params, max_tokens=max_tokens, key=key)
        battle = Battle(
            id=running.id,
            key=key,
            created_at=int(time.time()),
            base_name=self.chat.base.name,
            base_fingerprint=self.chat.base.fingerprint,
            asked=asked,
            system=system,
            sampling=Sampling.of(params, max_tokens),
            sides=(_side(left, running.lanes[0]), _side(right, running.lanes[1])),
        )
        try:
            await self.store.database.call(self.store.begin, battle, voted_lanes(lanes, running))
        except BaseException:
            running.stop()
            raise
        live = LiveBattle(battle, (left, right), running, self.store)
        self._live[live.id] = live
        live.start(lambda: self._live.pop(live.id, None))
        return live

    def live(self, battle_id: str) -> "LiveBattle | None":
        """The battle while it is being answered."""
        return self._live.get(battle_id)

    async def get(self, key: str, battle_id: str, *, admin: bool) -> Battle:
        """NotFound for a battle that is not there, Forbidden for somebody else's."""
        live = self._live.get(battle_id)
        battle = live.now() if live else await self.store.database.call(self.store.get, battle_id)
        if battle.key != key and not admin:
            raise Forbidden("this battle is somebody else's; ask a question of your own", code="not_yours")
        return battle

    async def choice(self, key: str, battle: Battle) -> str | None:
        """How `key` voted: one of CHOICES; None before the vote."""
        stored = await self.store.database.call(self.store.choice, battle.id, key)
        return {"0": "left", "1": "right"}.get(stored, stored) if stored else None

    async def vote(self, key: str, battle_id: str, choice: str, *, admin: bool) -> Battle:
        """Keep what `key` chose of CHOICES, and return the battle, whose sides may now be shown. Conflict while it is
        being answered, and for who has voted: he knows the names."""
        battle = await self.get(key, battle_id, admin=admin)
        if choice not in CHOICES:
            raise Invalid(f"choice takes one of {', '.join(CHOICES)}", param="choice")
        if battle_id in self._live:
            raise Conflict("both answers must have ended before the vote; wait, or stop them", param="choice")
        if not battle.can_be_voted_on:
            raise Conflict("an answer of this battle did not come, so there is nothing to choose", param="choice")
        if await self.choice(key, battle) is not None:
            raise Conflict("you have voted on this battle, and know the names; ask the next question", param="choice")
        lane: int | str = CHOICES.index(choice) if choice in ("left", "right") else choice
        await self.store.database.call(self.store.votes.vote, battle_id, key, lane)
        return battle

    async def next_question(self, key: str, questions: QuestionSet) -> Asked:
        """The first of the questions that this key has asked the fewest times."""
        asked = await self.store.database.call(self.store.times_asked, key, questions.id)
        number = min(range(len(questions.questions)), key=lambda place: (asked[place], place))
        return Asked(
            text=questions.questions[number], question_set=questions.id, set_title=questions.title, number=number
        )

    def _contestant(self, text: str) -> Contestant:
        written = _STRENGTH.fullmatch(text.strip())
        model, scale = (written["model"], float(written["scale"])) if written else (text.strip(), 1.0)
        if self.chat.is_base(model):
            if scale != 1:
                raise Invalid(f"'{text}': the base has no strength; choose an adapter", param="pool")
            return Contestant(Lane(self.chat.base.name), None)
        if not -MAX_SCALE <= scale <= MAX_SCALE:
            raise Invalid(f"'{text}': a strength must be within ±{MAX_SCALE:g}", param="pool")
        version = self.chat.registry.resolve(model)
        return Contestant(Lane(str(version), scale), version)


class LiveBattle:
    """A battle that is being answered."""

    def __init__(
        self, battle: Battle, contestants: tuple[Contestant, Contestant], running: Comparison, store: BattleStore
    ):
        self.id = battle.id
        self.key = battle.key
        self._battle = battle
        self._contestants = contestants
        self._running = running
        self._store = store
        self._task: asyncio.Task[None] | None = None

    def start(self, on_end: Callable[[], object]) -> None:
        """Read the answers from now on, and keep them at the end."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: on_end())

    def stop(self) -> None:
        """End both sides where they are."""
        self._running.stop()

    def now(self) -> Battle:
        """As far as it is."""
        left, right = map(_side, self._contestants, self._running.lanes)
        return self._battle.model_copy(update={"sides": (left, right)})

    async def watch(self) -> AsyncGenerator[Battle, None]:
        """The battle at once and then as it grows, at most every UPDATE_S, until it has ended and is kept."""
        assert self._task is not None
        while True:
            done = self._task.done()
            yield self.now()
            if done:
                return
            await asyncio.wait([self._task], timeout=UPDATE_S)

    async def _run(self) -> None:
        try:
            async with self._running:
                async for _ in self._running:
                    pass
        finally:
            try:
                await self._store.database.call(self._store.keep, self.now())
            except BianlianError as error:
                log.warning("battle %s was not kept: %s", self.id, error)


def texts(battle: Battle) -> tuple[str, str]:
    """What left and right say, once both have begun: which of them is faster would tell who it is."""
    left, right = battle.sides
    return (left.text, right.text) if battle.begun else ("", "")


def _side(contestant: Contestant, progress: LaneProgress) -> BattleSide:
    answer, version = progress.answer, contestant.version
    return BattleSide(
        model=contestant.lane.model,
        adapter=answer.adapter,
        digest=answer.digest,
        scale=contestant.lane.scale,
        own_system=version.manifest.system_prompt if version and version.manifest else None,
        text=progress.text,
        reasoning=progress.reasoning,
        tokens=progress.tokens,
        first_token_s=progress.first_token_s,
        tokens_per_s=progress.tokens_per_s,
        finish_reason=progress.finish_reason,
        error=progress.error,
    )
