"""The leaderboard: scores, who met whom, and how many votes there are to take away."""

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr

from serving.arena import Arena, Duel, duels, rank
from serving.own_thread import on_own_thread
from serving.ui.arena.charts import chart, matrix, table
from serving.ui.arena.drawing import counts_line
from serving.ui.arena.layout import ALL_VOTES, OWN_QUESTIONS, ArenaWidgets
from serving.ui.arena.services import ArenaServices, Update, Visitor
from serving.vote_export import pairs
from serving.votes import NO_SET, VoteStore


@dataclass(frozen=True)
class Scores:
    arena: Arena
    met: Mapping[tuple[str, str], Duel]


class Scoring:
    def __init__(self, services: ArenaServices, widgets: ArenaWidgets):
        self.services = services
        self.widgets = widgets

    async def show(self, request: gr.Request, wanted: str | None) -> Update:
        """The leaderboard of all votes, or of those on the chosen questions."""
        return await self.drawn(await self.services.visitor(request), wanted)

    async def drawn(self, visitor: Visitor, wanted: str | None) -> Update:
        board, language = self.widgets.board, visitor.language
        question_set = {ALL_VOTES: None, None: None, OWN_QUESTIONS: NO_SET}.get(wanted, wanted)
        # Linear algebra leaves threads behind.
        scores = await on_own_thread(_scores, self.services.votes, question_set)
        return {
            board.chart: chart(scores.arena, language, filtered=question_set is not None),
            board.matrix: matrix(scores.arena, scores.met, language),
            board.table: table(scores.arena, language),
            self.widgets.export.counts: await self._counts(visitor),
        }

    async def _counts(self, visitor: Visitor) -> str:
        viewer, store = visitor.viewer, self.services.battles.store
        cast = await store.database.call(store.cast, None if viewer.admin else viewer.key)
        return counts_line(len(cast), len(pairs(cast)), visitor.language, everybody=viewer.admin)


def _scores(votes: VoteStore, question_set: str | None) -> Scores:
    outcomes = votes.outcomes(question_set)
    return Scores(rank(outcomes), duels(outcomes))
