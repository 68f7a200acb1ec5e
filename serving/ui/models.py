"""The model pickers: what may be chosen, how it is called on screen, and what a persona's card says."""

import gradio as gr

from adapters.errors import BianlianError
from adapters.manifest import AdapterManifest, AdapterVersion
from serving.chat import ChatService
from serving.ui.texts import Language, say, t

Choices = list[tuple[str, str]]


def choices(chat: ChatService, language: Language = "zh") -> Choices:
    """(label, model id) of the base and the current version of every adapter."""
    base = (f"{chat.base.name} · {say(language, 'base')}", chat.base.name)
    return [base, *((_label(version), version.name) for version in chat.registry.versions())]


def first_adapter(chat: ChatService) -> str:
    """What a visitor should meet first; the base when there is no adapter."""
    return next((version.name for version in chat.registry.versions()), chat.base.name)


def picker(chat: ChatService, value: str, elem_id: str) -> gr.Dropdown:
    return gr.Dropdown(choices(chat), value=value, label=t("model"), elem_id=elem_id, min_width=150, scale=3)


def refreshed(chat: ChatService, value: str | None, language: Language) -> gr.Dropdown:
    """The picker with today's choices; what is chosen stays chosen while it is still offered."""
    offered = choices(chat, language)
    kept = value if value in [model for _, model in offered] else chat.base.name
    return gr.Dropdown(choices=offered, value=kept)


def manifest_of(chat: ChatService, model: str | None) -> AdapterManifest | None:
    """What the model says of itself; None for the base, plain PEFT adapters and names no longer offered."""
    if not model or model == chat.base.name:
        return None
    try:
        return chat.registry.resolve(model).manifest
    except BianlianError:
        return None


def _label(version: AdapterVersion) -> str:
    title = version.manifest.card.title if version.manifest else ""
    return f"{title} · {version}" if title and title != version.name else str(version)
