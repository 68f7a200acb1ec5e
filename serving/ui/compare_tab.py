"""The Compare tab: one question, two to four models, answers that grow side by side.

All lanes come from one generator: Gradio runs listeners of one click one after another, so a listener a lane would
show the second answer after the first."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from adapters.errors import BianlianError
from adapters.renderer import Message
from adapters.ui.words import language_of
from serving.chat import MAX_SCALE, ChatService, random_seed
from serving.compare import Lane, compare
from serving.ui.models import first_adapter, manifest_of, picker, refreshed
from serving.ui.question import question_row
from serving.ui.sampling import params_from, sampling_drawer
from serving.ui.texts import questions, say, t
from serving.ui.turns import NO_STATS, Running, bubbles_of, conversation, followable, stats_line, with_answer

LANE_NAMES = ("lane_a", "lane_b", "lane_c", "lane_d")
MAX_SAMPLES = 6

Update = Any  # what a handler gives a component: its value, or gr.update(...)


@dataclass(frozen=True)
class LaneWidgets:
    column: gr.Column
    model: gr.Dropdown
    strength: gr.Slider
    system: gr.Textbox
    log: gr.Chatbot
    stats: gr.HTML


def compare_tab(chat: ChatService, page: gr.Blocks) -> None:
    running = Running()
    with gr.Row():
        lanes = [_lane_column(chat, number) for number in range(len(LANE_NAMES))]
    with gr.Row(equal_height=True):
        question, send, stop = question_row("compare", "compare_hint")
        clear = gr.Button(t("clear_button"), scale=1, min_width=90, elem_id="compare-clear")
    with gr.Row():
        samples = gr.Dataset(
            components=[gr.Textbox(visible=False)],
            samples=[],
            label=t("examples"),
            elem_id="compare-samples",
            scale=5,
            min_width=300,
        )
        seed = gr.Number(random_seed, label=t("seed_shared"), precision=0, scale=2, min_width=180, elem_id="seed")
        dice = gr.Button(t("dice"), scale=1, min_width=90, elem_id="dice")
    with gr.Accordion(t("sampling"), open=False):
        lane_count = gr.Radio([2, 3, 4], value=2, label=t("lane_count"), elem_id="lane-count")
        drawer = sampling_drawer(chat)

    logs = [lane.log for lane in lanes]
    inputs = [*(widget for lane in lanes for widget in (lane.model, lane.strength, lane.system, lane.log))]
    per_lane = 4

    async def ask(
        request: gr.Request, question: str | list[str], count: int, seed: float, *values: Any
    ) -> AsyncIterator[list[Update]]:
        """One question (a sample arrives as a row of one) to every lane on screen: [question, send, stop, clear, *logs,
        *stats]."""
        question = question if isinstance(question, str) else question[0]
        language, session = language_of(request), request.session_hash
        drawn, rest = values[:4], values[4:]
        if not question.strip():
            gr.Warning(say(language, "nothing"))
            yield [gr.skip()] * (4 + 2 * len(lanes))
            return
        asked_lanes, conversations = [], []
        for number in range(count):
            model, strength, system, log = rest[number * per_lane : (number + 1) * per_lane]
            asked_lanes.append(Lane(model, float(strength), (system or "").strip() or None))
            conversations.append([*followable(conversation(log)), Message(role="user", content=question)])
        try:
            params, max_tokens = params_from(chat, drawn, seed)
            comparison = await compare(
                chat, asked_lanes, conversations, params, max_tokens=max_tokens, key=request.username or ""
            )
        except BianlianError as error:
            gr.Warning(error.message)
            yield [gr.skip()] * (4 + 2 * len(lanes))
            return
        asked = [bubbles_of(messages) for messages in conversations]

        def draw(numbers: set[int]) -> list[Update]:
            """Logs and stats of these lanes; the others stay as they are."""
            progress = dict(enumerate(comparison.lanes))
            shown = range(len(lanes))
            return [
                *(with_answer(asked[n], progress[n], language) if n in numbers else gr.skip() for n in shown),
                *(stats_line(progress[n], language) if n in numbers else gr.skip() for n in shown),
            ]

        everyone = set(range(count))
        yield ["", *_busy(), *draw(everyone)]
        async with aclosing(running.follow(session, comparison)) as steps:
            async for grown in steps:
                yield [*[gr.skip()] * 4, *draw(grown)]
        yield [gr.skip(), *_idle(), *draw(everyone)]

    def halt(request: gr.Request) -> None:
        running.stop(request.session_hash)

    def refresh(request: gr.Request, *models: str) -> list[Update]:
        return [refreshed(chat, model, language_of(request)) for model in models]

    def suggest(request: gr.Request, *models: str) -> gr.Dataset:
        """Sample questions of the personas on screen, or general ones."""
        cards = [manifest.card for model in models if (manifest := manifest_of(chat, model))]
        found = [text for card in cards for text in card.samples] or questions(language_of(request))
        return gr.Dataset(samples=[[text] for text in dict.fromkeys(found)][:MAX_SAMPLES])

    def show_lanes(count: int) -> list[Update]:
        return [gr.Column(visible=number < count) for number in range(len(lanes))]

    models = [lane.model for lane in lanes]
    stats = [lane.stats for lane in lanes]
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    settings = [lane_count, seed, *drawer, *inputs]
    outputs = [question, send, stop, clear, *logs, *stats]
    for asked in (
        gr.on([send.click, question.submit], ask, [question, *settings], outputs, **quiet),
        samples.click(ask, [samples, *settings], outputs, **quiet),
    ):
        asked.failure(_idle, None, [send, stop, clear], **quiet)
    stop.click(halt, None, None, queue=False, **quiet)
    clear.click(lambda: [*[[] for _ in logs], *[NO_STATS for _ in stats]], None, [*logs, *stats], queue=False, **quiet)
    dice.click(random_seed, None, seed, queue=False, **quiet)
    lane_count.change(show_lanes, lane_count, [lane.column for lane in lanes], queue=False, **quiet)
    gr.on([page.load, *(model.focus for model in models)], refresh, models, models, **quiet)
    gr.on([page.load, *(model.change for model in models)], suggest, models[:2], samples, **quiet)


def _lane_column(chat: ChatService, number: int) -> LaneWidgets:
    """Lane A starts with the base, the others with the first adapter; two are on screen at first."""
    model = chat.base.name if number == 0 else first_adapter(chat)
    name = f"lane-{number}"
    with gr.Column(visible=number < 2, min_width=300, elem_id=name, elem_classes=["lane", name]) as column:
        with gr.Row():
            picked = picker(chat, model, f"{name}-model")
            strength = gr.Slider(
                0, MAX_SCALE, 1, step=0.05, label=t("strength"), min_width=150, scale=2, elem_id=f"{name}-strength"
            )
        with gr.Accordion(t("system"), open=False):
            system = gr.Textbox(
                show_label=False,
                label=t("system"),
                placeholder=t("system_default"),
                lines=2,
                max_lines=6,
                container=False,
            )
        log = gr.Chatbot(
            label=t(LANE_NAMES[number]),
            height="42vh",
            min_height=240,
            buttons=["copy", "copy_all"],
            layout="bubble",
            elem_id=f"{name}-log",
        )
        stats = gr.HTML(NO_STATS, elem_id=f"{name}-stats", padding=False)
    return LaneWidgets(column, picked, strength, system, log, stats)


def _busy() -> list[Update]:
    """[send, stop, clear] while lanes run."""
    return [gr.Button(visible=False), gr.Button(visible=True), gr.Button(interactive=False)]


def _idle() -> list[Update]:
    return [gr.Button(visible=True), gr.Button(visible=False), gr.Button(interactive=True)]
