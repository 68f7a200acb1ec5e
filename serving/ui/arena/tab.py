"""The Arena tab: lays the widgets out and says which event runs which handler."""

from collections.abc import Awaitable, Callable

import gradio as gr

from serving.ui.arena.choosing import Choosing
from serving.ui.arena.layout import ArenaWidgets, lay_out
from serving.ui.arena.scoring import Scoring
from serving.ui.arena.scripts import ADDRESS, FOCUS_NEXT, KEYS, STOP_TYPING
from serving.ui.arena.services import ArenaServices, Update
from serving.ui.arena.taking import Taking
from serving.ui.arena.voting import Voting
from serving.ui.scripts import DOWNLOAD

_QUIET = {"api_visibility": "private", "show_progress": "hidden"}


def arena_tab(services: ArenaServices, page: gr.Blocks) -> None:
    widgets = lay_out(services.chat)
    scoring = Scoring(services, widgets)
    _wire_battles(widgets, Voting(services, widgets, scoring), page)
    _wire_choices(widgets, Choosing(services, widgets), page)
    _wire_board(widgets, scoring, Taking(services, widgets, scoring), page)


def _wire_battles(widgets: ArenaWidgets, voting: Voting, page: gr.Blocks) -> None:
    asking, stage, out = widgets.asking, widgets.stage, widgets.on_stage
    idle = [asking.ask, asking.stop, asking.draw]
    chosen = [asking.question_set, *asking.settings]
    for asked in (
        gr.on(
            [asking.ask.click, asking.question.submit], voting.ask, [asking.question, *asking.settings], out, **_QUIET
        ),
        asking.samples.click(voting.ask, [asking.samples, *asking.settings], out, **_QUIET),
        asking.draw.click(voting.draw, chosen, out, **_QUIET),
        stage.next.click(voting.next, [asking.battle, *chosen], out, **_QUIET),
        page.load(voting.open, None, out, **_QUIET),
    ):
        asked.failure(voting.idle, None, idle, **_QUIET)
    asking.question.submit(None, None, None, js=STOP_TYPING, queue=False, **_QUIET)
    asking.stop.click(voting.stop, asking.battle, None, queue=False, **_QUIET)
    for name, button in stage.votes.items():
        voted = button.click(
            _voter(voting, name),
            [asking.battle, widgets.board.filter],
            [*out, *widgets.on_board],
            trigger_mode="once",
            **_QUIET,
        )
        voted.then(None, None, None, js=FOCUS_NEXT, **_QUIET)
    asking.battle.change(None, asking.battle, None, js=ADDRESS, queue=False, **_QUIET)
    page.load(None, None, None, js=KEYS, queue=False, **_QUIET)


def _voter(voting: Voting, button: str) -> Callable[[gr.Request, str, str | None], Awaitable[Update]]:
    """What a vote button does. Gradio finds the request by its annotation, which a `partial` would hide."""

    async def vote(request: gr.Request, battle_id: str, board: str | None) -> Update:
        return await voting.vote(request, button, battle_id, board)

    return vote


def _wire_choices(widgets: ArenaWidgets, choosing: Choosing, page: gr.Blocks) -> None:
    asking, shelf = widgets.asking, widgets.shelf
    sets = [asking.question_set, widgets.board.filter, shelf.shown, shelf.delete]
    confirm = [shelf.delete, shelf.really, shelf.keep]
    page.load(choosing.begin, None, [asking.pool, asking.samples, *sets], **_QUIET)
    asking.pool.focus(choosing.offer, asking.pool, asking.pool, queue=False, **_QUIET)
    asking.pool.input(choosing.suggest, asking.pool, asking.samples, **_QUIET)
    asking.question_set.input(choosing.show_set, asking.question_set, [shelf.shown, shelf.delete], **_QUIET)
    shelf.upload.upload(choosing.read_file, shelf.upload, [shelf.text, shelf.title], **_QUIET)
    shelf.save.click(choosing.save_set, [shelf.title, shelf.text], [shelf.title, shelf.text, *sets], **_QUIET)
    shelf.delete.click(choosing.doubt, None, confirm, queue=False, **_QUIET)
    shelf.keep.click(choosing.keep, None, confirm, queue=False, **_QUIET)
    shelf.really.click(choosing.delete_set, asking.question_set, [*confirm, *sets[:-1]], **_QUIET)


def _wire_board(widgets: ArenaWidgets, scoring: Scoring, taking: Taking, page: gr.Blocks) -> None:
    board, export, out = widgets.board, widgets.export, widgets.on_board
    confirm = [export.clear, export.really, export.keep]
    gr.on([page.load, board.refresh.click, board.filter.input], scoring.show, board.filter, out, **_QUIET)
    for button, make in ((export.pairs, taking.pairs), (export.votes, taking.votes)):
        made = button.click(make, None, export.file, **_QUIET)
        made.then(None, export.file, None, js=DOWNLOAD, queue=False, **_QUIET)
    export.train.click(taking.train, None, export.note, **_QUIET)
    export.clear.click(taking.doubt, None, confirm, queue=False, **_QUIET)
    export.keep.click(taking.keep, None, confirm, queue=False, **_QUIET)
    export.really.click(taking.clear, board.filter, [*confirm, *out], **_QUIET)
