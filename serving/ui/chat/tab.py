"""The Chat tab, put together: which widget calls what."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from adapters.ui.words import language_of
from serving.ui.chat.desk import Desk
from serving.ui.chat.drawing import ChatServices
from serving.ui.chat.handlers import Handlers
from serving.ui.chat.layout import Widgets, lay_out
from serving.ui.chat.script import FOCUS_QUESTION, TOGGLE_LIST
from serving.ui.models import refreshed
from serving.ui.scripts import DOWNLOAD

Event = dict[str, Any]


def chat_tab(services: ChatServices, page: gr.Blocks) -> None:
    widgets = lay_out(services.chat)
    handlers = Handlers(services, widgets)
    _wire_talk(widgets, handlers, page)
    _wire_desk(widgets, Desk(services, widgets))

    def refresh(request: gr.Request, model: str) -> gr.Dropdown:
        return refreshed(services.chat, model, language_of(request))

    widgets.head.model.focus(refresh, widgets.head.model, widgets.head.model, **_event(refresh))


def _wire_talk(widgets: Widgets, handlers: Handlers, page: gr.Blocks) -> None:
    side, head, talk, drawer = widgets.side, widgets.head, widgets.talk, widgets.drawer
    everything = _everything(widgets)
    here = [talk.conversation, side.search, side.everyone]
    manner = [head.model, *drawer.settings]
    # A click while an answer is shown turns to something else, so it must not wait for that event to end.
    several: Event = {"trigger_mode": "multiple"}
    page.load(handlers.load, None, everything, **_event(handlers.load))
    gr.on(
        [talk.send.click, talk.question.submit],
        handlers.ask,
        [talk.question, *here, *manner],
        everything,
        **_event(handlers.ask),
    )
    for pressed in (talk.log.select, side.list.select):
        pressed(handlers.act, [*here, *manner], everything, **_event(handlers.act), **several)
    talk.stop.click(handlers.stop, talk.conversation, None, queue=False, **_event(handlers.stop))
    side.new.click(
        handlers.new,
        [side.search, side.everyone, head.model],
        everything,
        queue=False,
        js=FOCUS_QUESTION,
        **_event(handlers.new),
    )
    head.model.input(handlers.meet, [talk.conversation, head.model], everything, queue=False, **_event(handlers.meet))


def _wire_desk(widgets: Widgets, desk: Desk) -> None:
    side, head, talk, drawer = widgets.side, widgets.head, widgets.talk, widgets.drawer
    everything = _everything(widgets)
    here = [talk.conversation, side.search, side.everyone]
    side.toggle.click(None, None, None, js=TOGGLE_LIST)
    gr.on(
        [side.search.change, side.everyone.change],
        desk.search,
        here,
        side.list,
        queue=False,
        trigger_mode="always_last",
        **_event(desk.search),
    )
    gr.on(
        [head.title.submit, head.title.blur],
        desk.rename,
        [head.title, *here],
        side.list,
        queue=False,
        **_event(desk.rename),
    )
    asked = [head.delete, head.really, head.keep]
    head.delete.click(desk.doubt, None, asked, queue=False, **_event(desk.doubt))
    head.keep.click(desk.keep, None, asked, queue=False, **_event(desk.keep))
    head.really.click(desk.delete, [*here, head.model], everything, queue=False, **_event(desk.delete))
    side.download.click(
        desk.download, [talk.conversation, side.scope, side.format], side.file, queue=False, **_event(desk.download)
    ).then(None, side.file, None, js=DOWNLOAD)
    side.reuse.click(desk.reuse, [talk.conversation, side.scope], side.note, queue=False, **_event(desk.reuse))
    prompt = [drawer.preset, drawer.system, drawer.prompt_name, drawer.save_prompt, drawer.delete_prompt]
    for does, on, reads in (
        (desk.choose_prompt, drawer.preset.input, drawer.preset),
        (desk.save_prompt, drawer.save_prompt.click, [drawer.prompt_name, drawer.system]),
        (desk.delete_prompt, drawer.delete_prompt.click, drawer.preset),
    ):
        on(does, reads, prompt, queue=False, **_event(does))


def _everything(widgets: Widgets) -> list[gr.Component]:
    """What `Drawing.everything` may draw."""
    side, head, talk, drawer = widgets.side, widgets.head, widgets.talk, widgets.drawer
    return [
        *(side.list, side.everyone, side.reuse),
        *(head.model, head.title, head.delete, head.really, head.keep),
        *(talk.conversation, talk.faces, talk.log, talk.live, talk.question, talk.send, talk.stop),
        *(drawer.preset, drawer.own_prompt, drawer.system),
        *(drawer.prompt_name, drawer.save_prompt, drawer.delete_prompt),
    ]


def _event(does: Callable[..., Any]) -> Event:
    return {"api_name": f"chat_{does.__name__}", "api_visibility": "private", "show_progress": "hidden"}
