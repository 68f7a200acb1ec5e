"""What happens when somebody asks, watches, stops or votes. Until the vote no update carries anything of the two sides
but their texts."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from adapters.errors import BianlianError
from adapters.ui.words import Language
from serving.battle_store import Asked, Battle
from serving.battles import LiveBattle, texts
from serving.question_sets import QuestionSet
from serving.ui.arena.drawing import reveal, state_line, where_asked
from serving.ui.arena.layout import VOTES, ArenaWidgets
from serving.ui.arena.scoring import Scoring
from serving.ui.arena.services import ArenaServices, Update, Visitor
from serving.ui.arena.words import say
from serving.ui.sampling import params_from
from serving.ui.turns import Bubble, bubble

HEARTBEAT = 5  # updates without news after which one is sent all the same: Gradio then notices a closed tab

Updates = AsyncGenerator[Update, None]


class Voting:
    """Every public method is one event."""

    def __init__(self, services: ArenaServices, widgets: ArenaWidgets, scoring: Scoring):
        self.services = services
        self.battles = services.battles
        self.widgets = widgets
        self.scoring = scoring

    async def ask(self, request: gr.Request, question: str | list[str], *settings: Any) -> Updates:
        """A question that was typed, or a sample, which arrives as a row of one."""
        text = question if isinstance(question, str) else question[0]
        visitor = await self.services.visitor(request)
        async with aclosing(self._battle(visitor, Asked(text=text.strip()), settings)) as updates:
            async for update in updates:
                yield update

    async def draw(self, request: gr.Request, set_id: str, *settings: Any) -> Updates:
        """The next question of the chosen set."""
        visitor = await self.services.visitor(request)
        try:
            chosen = await self.services.set_of(visitor.viewer, set_id)
            asked = await self.battles.next_question(visitor.viewer.key, chosen)
        except BianlianError as error:
            gr.Warning(error.message)
            yield self.idle()
            return
        async with aclosing(self._battle(visitor, asked, settings)) as updates:
            async for update in updates:
                yield update

    async def next(self, request: gr.Request, battle_id: str, set_id: str, *settings: Any) -> Updates:
        """Another question of the set, where the last was of one; else the stage is cleared for a new one."""
        visitor = await self.services.visitor(request)
        last = await self._found(visitor, battle_id)
        if last and last.asked.question_set:
            async with aclosing(self.draw(request, set_id, *settings)) as updates:
                async for update in updates:
                    yield update
        else:
            yield self.idle() | self._empty(visitor.language)

    async def open(self, request: gr.Request) -> Updates:
        """The battle that the address names, followed while it runs; without one, how to begin."""
        visitor = await self.services.visitor(request)
        battle_id = request.query_params.get("battle", "")
        battle = await self._found(visitor, battle_id) if battle_id else None
        if battle is None:
            yield self.idle() | self._empty(visitor.language)
        elif live := self.battles.live(battle_id):
            async with aclosing(self._follow(visitor, live)) as updates:
                async for update in updates:
                    yield update
        else:
            yield {self.widgets.asking.battle: battle.id} | await self._ended(visitor, battle)

    async def stop(self, request: gr.Request, battle_id: str) -> None:
        viewer = await self.services.viewer_of(request)
        live = self.battles.live(battle_id)
        if live and (live.key == viewer.key or viewer.admin):
            live.stop()

    async def vote(self, request: gr.Request, button: str, battle_id: str, board: str | None) -> Update:
        """Keep the vote, say who was who, and draw the leaderboard anew."""
        visitor = await self.services.visitor(request)
        viewer = visitor.viewer
        try:
            await self.battles.vote(viewer.key, battle_id, VOTES[button], admin=viewer.admin)
        except BianlianError as error:
            gr.Warning(error.message)
        battle = await self._found(visitor, battle_id)
        if battle is None:
            return self.idle() | self._empty(visitor.language)
        return await self._ended(visitor, battle) | await self.scoring.drawn(visitor, board)

    def idle(self) -> Update:
        asking = self.widgets.asking
        return {
            asking.ask: gr.Button(visible=True),
            asking.stop: gr.Button(visible=False),
            asking.draw: gr.Button(interactive=True),
        }

    async def _battle(self, visitor: Visitor, asked: Asked, settings: Sequence[Any]) -> Updates:
        pool, system, *drawer, seed = settings
        try:
            params, max_tokens = params_from(self.services.chat, (*drawer,), seed)
            live = await self.battles.start(
                visitor.viewer.key, asked, pool, params, max_tokens=max_tokens, system=(system or "").strip() or None
            )
        except BianlianError as error:
            gr.Warning(error.message)
            yield self.idle()
            return
        async with aclosing(self._follow(visitor, live)) as updates:
            async for update in updates:
                yield update

    async def _follow(self, visitor: Visitor, live: LiveBattle) -> Updates:
        """The answers as they grow, then the buttons to vote with."""
        asking, stage = self.widgets.asking, self.widgets.stage
        battle = live.now()
        known = await self._known_set(visitor, battle)
        where = where_asked(battle, known, visitor.language)
        yield {
            asking.battle: battle.id,
            asking.question: "",
            asking.ask: gr.Button(visible=False),
            asking.stop: gr.Button(visible=True),
            asking.draw: gr.Button(interactive=False),
            stage.state: state_line(say(visitor.language, "running"), where=where),
            stage.vote_row: gr.Row(visible=False),
            stage.reveal: gr.HTML("", visible=False),
            stage.next: gr.Button(visible=False),
        } | self._sides(battle)
        shown, silent = texts(battle), 0
        async with aclosing(live.watch()) as steps:
            async for battle in steps:
                silent += 1
                if (now := texts(battle)) != shown:
                    shown, silent = now, 0
                    yield self._sides(battle)
                elif silent >= HEARTBEAT:
                    silent = 0
                    yield {stage.state: gr.skip()}
        yield await self._ended(visitor, battle)

    async def _ended(self, visitor: Visitor, battle: Battle) -> Update:
        """A battle that is over: to be voted on, voted on, or void."""
        stage, language = self.widgets.stage, visitor.language
        where = where_asked(battle, await self._known_set(visitor, battle), language)
        choice = await self.battles.choice(visitor.viewer.key, battle)
        if not battle.can_be_voted_on:
            line = state_line(say(language, "void"), where=where, trouble=True)
        else:
            line = state_line("" if choice else say(language, "choose"), where=where)
        votable = battle.can_be_voted_on and choice is None
        return (
            self.idle()
            | self._sides(battle)
            | {
                stage.state: line,
                stage.vote_row: gr.Row(visible=votable),
                stage.reveal: gr.HTML(reveal(battle, choice, language) if choice else "", visible=choice is not None),
                stage.next: gr.Button(visible=not votable),
            }
        )

    def _sides(self, battle: Battle) -> Update:
        stage = self.widgets.stage
        left, right = texts(battle)
        return {stage.left: _said(battle, left), stage.right: _said(battle, right)}

    def _empty(self, language: Language) -> Update:
        asking, stage = self.widgets.asking, self.widgets.stage
        return {
            asking.battle: "",
            stage.state: state_line(say(language, "welcome")),
            stage.left: [],
            stage.right: [],
            stage.vote_row: gr.Row(visible=False),
            stage.reveal: gr.HTML("", visible=False),
            stage.next: gr.Button(visible=False),
        }

    async def _known_set(self, visitor: Visitor, battle: Battle) -> QuestionSet | None:
        if battle.asked.question_set is None:
            return None
        known = await self.services.all_sets(visitor.viewer)
        return next((each for each in known if each.id == battle.asked.question_set), None)

    async def _found(self, visitor: Visitor, battle_id: str) -> Battle | None:
        """The battle; None, and a warning on the page, where there is none or it is somebody else's."""
        try:
            return await self.battles.get(visitor.viewer.key, battle_id, admin=visitor.viewer.admin)
        except BianlianError as error:
            gr.Warning(error.message)
            return None


def _said(battle: Battle, text: str) -> list[Bubble]:
    asked = bubble("user", battle.asked.text)
    return [asked, bubble("assistant", text)] if text else [asked]
