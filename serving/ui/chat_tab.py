"""The Chat tab: one model, one conversation. The page itself holds the conversation; the server keeps nothing."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from adapters.errors import BianlianError
from adapters.renderer import Message
from adapters.ui.words import Language, language_of
from serving.chat import ChatService
from serving.compare import Lane, compare
from serving.ui.models import first_adapter, manifest_of, picker, refreshed
from serving.ui.question import question_row
from serving.ui.sampling import params_from, sampling_drawer
from serving.ui.texts import questions, say, t
from serving.ui.turns import NO_STATS, Bubble, Running, bubbles_of, conversation, followable, stats_line, with_answer

Update = Any  # what a handler gives a component: its value, or gr.update(...)
Updates = AsyncGenerator[list[Update], None]


def chat_tab(chat: ChatService, page: gr.Blocks) -> None:
    running = Running()
    with gr.Row():
        model = picker(chat, first_adapter(chat), "chat-model")
        system = gr.Textbox(
            label=t("system"), placeholder=t("system_default"), lines=1, max_lines=6, scale=5, elem_id="chat-system"
        )
    log = gr.Chatbot(
        show_label=False,
        height="46vh",
        min_height=260,
        buttons=["copy", "copy_all"],
        layout="bubble",
        elem_id="chat-log",
    )
    stats = gr.HTML(NO_STATS, elem_id="chat-stats", padding=False)
    with gr.Row(equal_height=True):
        question, send, stop = question_row("chat", "question_hint")
    with gr.Row():
        again = gr.Button(t("regenerate"), size="sm", min_width=80)
        undo = gr.Button(t("undo_button"), size="sm", min_width=80)
        clear = gr.Button(t("clear_button"), size="sm", min_width=80)
    with gr.Accordion(t("sampling"), open=False):
        drawer = sampling_drawer(chat)
        seed = gr.Number(None, label=t("seed"), info=t("seed_chat_info"), precision=0)

    async def answer(
        messages: list[Message], model: str, system: str, values: list[Any], language: Language, request: gr.Request
    ) -> Updates:
        """Stream the reply to `messages`, whose last is the question: [log, stats, question, *buttons]."""
        *sampling, seed = values
        asked = bubbles_of(messages)
        try:
            params, max_tokens = params_from(chat, (*sampling,), seed)
            lane = Lane(model, system=(system or "").strip() or None)
            comparison = await compare(
                chat, [lane], [messages], params, max_tokens=max_tokens, key=request.username or ""
            )
        except BianlianError as error:
            gr.Warning(error.message)
            yield [bubbles_of(messages[:-1]), NO_STATS, messages[-1]["content"], *_idle()]
            return
        progress = comparison.lanes[0]

        def drawn() -> list[Update]:
            return [with_answer(asked, progress, language), stats_line(progress, language)]

        yield [asked, stats_line(progress, language), "", *_busy()]
        async with aclosing(running.follow(request.session_hash, comparison)) as steps:
            async for grown in steps:
                yield [*(drawn() if grown else [gr.skip()] * 2), *[gr.skip()] * 6]
        yield [*drawn(), gr.skip(), *_idle()]

    async def ask(
        request: gr.Request, question: str, log: list[Bubble], model: str, system: str, *values: Any
    ) -> Updates:
        language = language_of(request)
        if not question.strip():
            gr.Warning(say(language, "nothing"))
            yield [gr.skip()] * 8
            return
        messages = [*followable(conversation(log)), Message(role="user", content=question)]
        async with aclosing(answer(messages, model, system, list(values), language, request)) as updates:
            async for update in updates:
                yield update

    async def ask_sample(
        request: gr.Request, chosen: gr.SelectData, log: list[Bubble], model: str, system: str, *values: Any
    ) -> Updates:
        async with aclosing(ask(request, str(chosen.value["text"]), log, model, system, *values)) as updates:
            async for update in updates:
                yield update

    async def ask_again(request: gr.Request, log: list[Bubble], model: str, system: str, *values: Any) -> Updates:
        messages = conversation(log)
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        language = language_of(request)
        if not messages:
            gr.Warning(say(language, "nothing"))
            yield [gr.skip()] * 8
            return
        async with aclosing(answer(messages, model, system, list(values), language, request)) as updates:
            async for update in updates:
                yield update

    def take_back(log: list[Bubble]) -> list[Update]:
        """Without the last question and its reply; the question returns to its box."""
        messages = conversation(log)
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        last = messages.pop()["content"] if messages else ""
        return [bubbles_of(messages), NO_STATS, last]

    def meet(request: gr.Request, model: str) -> list[Update]:
        """The chosen persona's own prompt as a hint, its greeting and its sample questions."""
        language = language_of(request)
        manifest = manifest_of(chat, model)
        card = manifest.card if manifest else None
        greeting = (card and card.greeting) or say(language, "greeting", name=(card and card.title) or model)
        samples = (card and card.samples) or questions(language)
        hint = (manifest and manifest.system_prompt) or t("system_default")
        return [
            gr.Chatbot(placeholder=f"### {greeting}", examples=[{"text": text} for text in samples[:4]]),
            gr.Textbox(placeholder=hint),
        ]

    def refresh(request: gr.Request, model: str) -> gr.Dropdown:
        return refreshed(chat, model, language_of(request))

    def halt(request: gr.Request) -> None:
        running.stop(request.session_hash)

    outputs = [log, stats, question, send, stop, again, undo, clear]
    settings = [model, system, *drawer, seed]
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    for asked in (
        gr.on([send.click, question.submit], ask, [question, log, *settings], outputs, **quiet),
        log.example_select(ask_sample, [log, *settings], outputs, **quiet),
        again.click(ask_again, [log, *settings], outputs, **quiet),
    ):
        asked.failure(_idle, None, [send, stop, again, undo, clear], **quiet)
    stop.click(halt, None, None, queue=False, **quiet)
    undo.click(take_back, log, [log, stats, question], queue=False, **quiet)
    clear.click(lambda: ([], NO_STATS), None, [log, stats], queue=False, **quiet)
    model.change(meet, model, [log, system], queue=False, **quiet)
    gr.on([page.load, model.focus], refresh, model, model, **quiet)
    page.load(meet, model, [log, system], queue=False, **quiet)


def _busy() -> list[Update]:
    """[send, stop, regenerate, undo, clear] while an answer runs."""
    waits = [gr.Button(interactive=False) for _ in range(3)]
    return [gr.Button(visible=False), gr.Button(visible=True), *waits]


def _idle() -> list[Update]:
    ready = [gr.Button(interactive=True) for _ in range(3)]
    return [gr.Button(visible=True), gr.Button(visible=False), *ready]
