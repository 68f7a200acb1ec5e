"""Where everything is in the Arena tab."""

from dataclasses import dataclass

import gradio as gr

from serving.chat import ChatService
from serving.question_sets import BUNDLED_TITLES
from serving.ui.arena.words import t
from serving.ui.sampling import sampling_drawer
from serving.ui.texts import t as common

VOTES = {"left": "left", "right": "right", "tie": "tie", "bad": "both_bad"}  # a button's name and its choice
ALL_VOTES = "all"
OWN_QUESTIONS = "typed"
MAX_FILE = 1 << 20  # bytes of an uploaded question set


EVERY_VOTE = [(t("all_votes"), ALL_VOTES), (t("own_questions"), OWN_QUESTIONS)]


@dataclass(frozen=True)
class Asking:
    battle: gr.Textbox  # the id of the battle on screen, "" for none yet; never seen
    pool: gr.Dropdown
    question_set: gr.Dropdown
    draw: gr.Button
    question: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    samples: gr.Dataset
    system: gr.Textbox
    seed: gr.Number
    drawer: list[gr.Component]

    @property
    def settings(self) -> list[gr.Component]:
        return [self.pool, self.system, *self.drawer, self.seed]


@dataclass(frozen=True)
class Stage:
    state: gr.HTML
    left: gr.Chatbot
    right: gr.Chatbot
    votes: dict[str, gr.Button]
    vote_row: gr.Row
    reveal: gr.HTML
    next: gr.Button


@dataclass(frozen=True)
class Board:
    filter: gr.Dropdown
    refresh: gr.Button
    chart: gr.HTML
    matrix: gr.HTML
    table: gr.HTML


@dataclass(frozen=True)
class Shelf:
    shown: gr.HTML
    title: gr.Textbox
    text: gr.Textbox
    upload: gr.UploadButton
    save: gr.Button
    delete: gr.Button
    really: gr.Button
    keep: gr.Button


@dataclass(frozen=True)
class Export:
    counts: gr.HTML
    pairs: gr.Button
    votes: gr.Button
    train: gr.Button
    clear: gr.Button
    really: gr.Button
    keep: gr.Button
    note: gr.HTML
    file: gr.Textbox  # a file's name and text as JSON, on their way to the browser; never seen


@dataclass(frozen=True)
class ArenaWidgets:
    asking: Asking
    stage: Stage
    board: Board
    shelf: Shelf
    export: Export

    @property
    def on_stage(self) -> list[gr.blocks.Block]:
        """What a battle changes on the page."""
        asking, stage = self.asking, self.stage
        return [
            *(asking.battle, asking.question, asking.draw, asking.ask, asking.stop),
            *(stage.state, stage.left, stage.right, stage.vote_row, stage.reveal, stage.next),
        ]

    @property
    def on_board(self) -> list[gr.blocks.Block]:
        return [self.board.chart, self.board.matrix, self.board.table, self.export.counts]


def lay_out(chat: ChatService) -> ArenaWidgets:
    with gr.Column(elem_id="arena"):
        asking, stage = _arena(chat)
        board = _board()
        with gr.Accordion(t("shelf"), open=False, elem_id="arena-sets-shelf"):
            shelf = _shelf()
        with gr.Accordion(t("export"), open=False, elem_id="arena-export"):
            export = _export()
    return ArenaWidgets(asking, stage, board, shelf, export)


def _arena(chat: ChatService) -> tuple[Asking, Stage]:
    battle = gr.Textbox("", visible="hidden", label=t("battle"), elem_id="arena-battle-id")
    with gr.Row(equal_height=True):
        pool = gr.Dropdown(
            [],
            multiselect=True,
            allow_custom_value=True,
            label=t("pool"),
            info=t("pool_info"),
            scale=6,
            min_width=300,
            elem_id="arena-pool",
        )
        question_set = gr.Dropdown(
            _bundled(), label=t("question_set"), info=t("set_info"), scale=3, min_width=240, elem_id="arena-set"
        )
    with gr.Row(equal_height=True):
        question = gr.Textbox(
            show_label=False,
            container=False,
            placeholder=t("hint"),
            label=common("question"),
            lines=1,
            max_lines=6,
            scale=8,
            min_width=200,
            elem_id="arena-question",
        )
        ask = gr.Button(t("ask"), variant="primary", scale=1, min_width=90, elem_id="arena-ask")
        stop = gr.Button(
            common("stop_button"), variant="stop", visible=False, scale=1, min_width=90, elem_id="arena-stop"
        )
        draw = gr.Button(t("draw"), scale=1, min_width=90, elem_id="arena-draw")
    samples = gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=[], label=common("examples"), elem_id="arena-samples"
    )
    stage = _stage()
    with gr.Accordion(t("options"), open=False, elem_id="arena-options"):
        system = gr.Textbox(label=t("system"), placeholder=t("system_hint"), lines=1, max_lines=6)
        drawer = sampling_drawer(chat)
        seed = gr.Number(None, label=t("seed"), info=t("seed_info"), precision=0, elem_id="arena-seed")
    return Asking(battle, pool, question_set, draw, question, ask, stop, samples, system, seed, drawer), stage


def _stage() -> Stage:
    state = gr.HTML("", elem_id="arena-state", padding=False)
    with gr.Row(elem_id="arena-sides"):
        left, right = (_side(name) for name in ("left", "right"))
    with gr.Row(visible=False, elem_id="arena-votes") as vote_row:
        votes = {name: gr.Button(t(f"vote_{name}"), min_width=150, elem_id=f"arena-vote-{name}") for name in VOTES}
    reveal = gr.HTML("", visible=False, elem_id="arena-reveal", padding=False)
    next_ = gr.Button(t("next"), variant="primary", visible=False, elem_id="arena-next")
    return Stage(state, left, right, votes, vote_row, reveal, next_)


def _side(name: str) -> gr.Chatbot:
    return gr.Chatbot(
        label=t(name),
        height="36vh",
        min_height=220,
        min_width=300,
        buttons=["copy"],
        layout="bubble",
        placeholder=t("placeholder"),
        elem_id=f"arena-{name}",
        elem_classes=["arena-side"],
    )


def _board() -> Board:
    with gr.Row(equal_height=True, elem_id="arena-board-head"):
        gr.Markdown(t("board"), elem_id="arena-board-title")
        filter_ = gr.Dropdown(
            [*EVERY_VOTE, *_bundled()],
            value=ALL_VOTES,
            label=t("filter"),
            scale=2,
            min_width=220,
            elem_id="arena-filter",
        )
        refresh = gr.Button(t("refresh"), size="sm", scale=0, min_width=90, elem_id="arena-refresh")
    with gr.Row(elem_id="arena-board"):
        with gr.Column(min_width=320):
            chart = gr.HTML("", elem_id="arena-chart", padding=False)
        with gr.Column(min_width=320):
            matrix = gr.HTML("", elem_id="arena-matrix", padding=False)
    table = gr.HTML("", elem_id="arena-table", padding=False)
    return Board(filter_, refresh, chart, matrix, table)


def _shelf() -> Shelf:
    with gr.Row():
        with gr.Column(min_width=300):
            shown = gr.HTML("", elem_id="arena-questions", padding=False)
            with gr.Row():
                delete = gr.Button(t("delete_set"), size="sm", elem_id="arena-delete-set")
                really = gr.Button(t("really"), size="sm", variant="stop", visible=False, elem_id="arena-delete-really")
                keep = gr.Button(t("keep"), size="sm", visible=False)
        with gr.Column(min_width=300):
            title = gr.Textbox(label=t("set_title"), max_lines=1, elem_id="arena-set-title")
            text = gr.Textbox(
                label=t("set_text"), placeholder=t("set_hint"), lines=6, max_lines=12, elem_id="arena-set-text"
            )
            with gr.Row():
                upload = gr.UploadButton(t("upload"), file_types=[".txt", ".md"], size="sm", elem_id="arena-set-upload")
                save = gr.Button(t("save_set"), size="sm", variant="primary", elem_id="arena-set-save")
    return Shelf(shown, title, text, upload, save, delete, really, keep)


def _export() -> Export:
    counts = gr.HTML("", elem_id="arena-counts", padding=False)
    with gr.Row():
        pairs = gr.Button(t("export_pairs"), min_width=200, elem_id="arena-export-pairs")
        votes = gr.Button(t("export_votes"), min_width=200, elem_id="arena-export-votes")
        train = gr.Button(t("train"), min_width=200, variant="primary", elem_id="arena-train")
        clear = gr.Button(t("clear"), min_width=120, elem_id="arena-clear")
        really = gr.Button(
            t("clear_really"), min_width=160, variant="stop", visible=False, elem_id="arena-clear-really"
        )
        keep = gr.Button(t("keep"), min_width=100, visible=False)
    note = gr.HTML("", visible=False, elem_id="arena-note", padding=False)
    file = gr.Textbox("", visible="hidden", label=t("file"), elem_id="arena-file")
    return Export(counts, pairs, votes, train, clear, really, keep, note, file)


def _bundled() -> list[tuple[str, str]]:
    """What every visitor may choose; a page adds the visitor's own."""
    return [(title, set_id) for set_id, title in BUNDLED_TITLES.items()]
