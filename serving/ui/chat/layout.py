"""Where everything on the Chat tab is: each function lays one region out and returns its widgets."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from serving.chat import MAX_SCALE, ChatService
from serving.conversation_export import EXPORT_FORMATS
from serving.history import MAX_TITLE
from serving.system_prompts import MAX_NAME
from serving.ui.chat.script import BUTTONS, TRANSCRIPT
from serving.ui.chat.words import t
from serving.ui.models import choices, first_adapter
from serving.ui.question import question_row
from serving.ui.sampling import sampling_drawer
from serving.ui.texts import t as t_common

OWN, NONE, CUSTOM = "own", "none", "custom"  # system prompts that are nobody's saved one
SAVED = "saved:"  # before the name of one that is

Choices = list[tuple[Any, str]]


@dataclass(frozen=True)
class Side:
    """The conversations of this person, and what can be done with them as files."""

    toggle: gr.Button
    new: gr.Button
    search: gr.Textbox
    everyone: gr.Checkbox
    list: gr.HTML
    scope: gr.Radio
    format: gr.Radio
    download: gr.Button
    reuse: gr.Button
    note: gr.HTML
    file: gr.Textbox  # what is downloaded, on its way to the browser


@dataclass(frozen=True)
class Head:
    model: gr.Dropdown
    title: gr.Textbox
    delete: gr.Button
    really: gr.Button
    keep: gr.Button


@dataclass(frozen=True)
class Talk:
    """The branch on screen, the answer that grows below it, and the next question."""

    conversation: gr.Textbox  # its id, "" for a new one
    faces: gr.HTML
    log: gr.HTML
    live: gr.HTML
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button


@dataclass(frozen=True)
class Drawer:
    preset: gr.Dropdown
    own_prompt: gr.HTML
    system: gr.Textbox
    prompt_name: gr.Textbox
    save_prompt: gr.Button
    delete_prompt: gr.Button
    strength: gr.Slider
    sampling: list[gr.Component]
    seed: gr.Textbox

    @property
    def settings(self) -> list[gr.Component]:
        """What an answer depends on, beside the model; their values make `Manner`s."""
        return [self.preset, self.system, self.strength, *self.sampling, self.seed]


@dataclass(frozen=True)
class Widgets:
    side: Side
    head: Head
    talk: Talk
    drawer: Drawer


def lay_out(chat: ChatService) -> Widgets:
    with gr.Row():
        with gr.Column(scale=1, min_width=250, elem_id="chat-side"):
            side = _side()
        with gr.Column(scale=4, min_width=300):
            with gr.Row(equal_height=True):
                head = _head(chat)
            talk = _talk()
            with gr.Accordion(t("drawer"), open=False, elem_id="chat-drawer"):
                drawer = _drawer(chat)
    return Widgets(side, head, talk, drawer)


def preset_choices(saved: list[str]) -> Choices:
    return [
        (t("preset_own"), OWN),
        (t("preset_none"), NONE),
        *((name, SAVED + name) for name in saved),
        (t("preset_custom"), CUSTOM),
    ]


def _side() -> Side:
    toggle = gr.Button(t("conversations"), size="sm", elem_id="chat-list-toggle")
    new = gr.Button(t("new"), elem_id="chat-new")
    search = gr.Textbox(
        show_label=False,
        label=t("search"),
        placeholder=t("search_hint"),
        container=False,
        max_lines=1,
        max_length=200,
        elem_id="chat-search",
    )
    everyone = gr.Checkbox(False, label=t("everyone"), visible=False, container=False, elem_id="chat-everyone")
    listed = gr.HTML(elem_id="chat-list", js_on_load=BUTTONS)
    with gr.Accordion(t("export"), open=False, elem_id="chat-export"):
        scope = gr.Radio([(t("scope_this"), "this"), (t("scope_all"), "all")], value="this", label=t("scope"))
        form = gr.Radio([(t(name), name) for name in EXPORT_FORMATS], value=EXPORT_FORMATS[0], label=t("format"))
        download = gr.Button(t("download"), size="sm", elem_id="chat-download")
        reuse = gr.Button(t("reuse"), size="sm", elem_id="chat-reuse")
        note = gr.HTML(elem_id="chat-note", padding=False)
    file = gr.Textbox(visible=False)
    return Side(toggle, new, search, everyone, listed, scope, form, download, reuse, note, file)


def _head(chat: ChatService) -> Head:
    plain: dict[str, Any] = {"container": False, "show_label": False}
    model = gr.Dropdown(
        choices(chat),
        value=first_adapter(chat),
        label=t_common("model"),
        scale=3,
        min_width=200,
        elem_id="chat-model",
        **plain,
    )
    title = gr.Textbox(
        label=t("name"),
        placeholder=t("name_hint"),
        max_lines=1,
        max_length=MAX_TITLE,
        interactive=False,
        scale=4,
        min_width=180,
        elem_id="chat-title",
        **plain,
    )
    delete = gr.Button(t("delete"), scale=0, min_width=90, visible=False, elem_id="chat-delete")
    really = gr.Button(t("really_delete"), scale=0, min_width=110, variant="stop", visible=False, elem_id="chat-really")
    keep = gr.Button(t("keep"), scale=0, min_width=90, visible=False, elem_id="chat-keep")
    return Head(model, title, delete, really, keep)


def _talk() -> Talk:
    conversation = gr.Textbox("", visible=False)
    faces = gr.HTML(elem_id="chat-faces")
    with gr.Column(elem_id="chat-scroll"):
        log = gr.HTML(elem_id="chat-log", js_on_load=TRANSCRIPT)
        live = gr.HTML(elem_id="chat-live", js_on_load=None)
    with gr.Row(equal_height=True):
        question, send, stop = question_row("chat", "question_hint")
    return Talk(conversation, faces, log, live, question, send, stop)


def _drawer(chat: ChatService) -> Drawer:
    with gr.Row():
        preset = gr.Dropdown(preset_choices([]), value=OWN, label=t("preset"), min_width=200, elem_id="chat-preset")
        prompt_name = gr.Textbox(
            label=t("prompt_name"), max_lines=1, max_length=MAX_NAME, visible=False, elem_id="chat-prompt-name"
        )
        save_prompt = gr.Button(t("save_prompt"), size="sm", visible=False, scale=0, elem_id="chat-save-prompt")
        delete_prompt = gr.Button(t("delete_prompt"), size="sm", visible=False, scale=0, elem_id="chat-delete-prompt")
    own_prompt = gr.HTML(visible=False, elem_id="chat-own-prompt")
    system = gr.Textbox(
        label=t("system_text"), placeholder=t("system_hint"), lines=2, max_lines=8, visible=False, elem_id="chat-system"
    )
    strength = gr.Slider(0, MAX_SCALE, 1, step=0.05, label=t("strength"), elem_id="chat-strength")
    sampling = sampling_drawer(chat)
    # Not gr.Number, which shows, and then sends, 0 for none.
    seed = gr.Textbox(
        label=t_common("seed"),
        placeholder=t_common("seed_chat_info"),
        max_lines=1,
        max_length=12,
        elem_id="chat-seed",
    )
    return Drawer(preset, own_prompt, system, prompt_name, save_prompt, delete_prompt, strength, sampling, seed)
