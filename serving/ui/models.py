"""The model pickers: what may be chosen, how it is called on screen, and what a persona's card says."""

import gradio as gr

from adapters.errors import BianlianError
from adapters.manifest import AdapterManifest, AdapterVersion
from adapters.ui.words import Language
from serving.chat import ChatService
from serving.ui.texts import say, t

Choices = list[tuple[str, str]]


def choices(chat: ChatService, language: Language = "zh") -> Choices:
    """(label, model id) of the base, the current version of every adapter, and every alias that means something now."""
    base = (f"{chat.base.name} · {say(language, 'base')}", chat.base.name)
    adapters = [(_label(version), version.name) for version in chat.registry.versions()]
    aliases = [alias.name for alias in chat.aliases.all() if _is_offered(chat, alias.heaviest)]
    return [base, *adapters, *((f"{name} · {say(language, 'alias')}", name) for name in aliases)]


def first_adapter(chat: ChatService) -> str:
    """What a visitor should meet first; the base when there is no adapter."""
    return next((version.name for version in chat.registry.versions()), chat.base.name)


def picker(chat: ChatService, value: str, elem_id: str) -> gr.Dropdown:
    return gr.Dropdown(choices(chat), value=value, label=t("model"), elem_id=elem_id, min_width=150, scale=3)


def refreshed(chat: ChatService, value: str | None, language: Language) -> gr.Dropdown:
    """The picker with today's choices; what is chosen stays chosen while it can answer."""
    offered, kept = offer(chat, value, language)
    return gr.Dropdown(choices=offered, value=kept)


def offer(chat: ChatService, value: str | None, language: Language) -> tuple[Choices, str]:
    """Today's choices, and which of them is chosen: `value` while it can answer, which an older version or a snapshot
    does that no list has; else the base."""
    offered = choices(chat, language)
    if value and value not in [model for _, model in offered] and _is_offered(chat, value):
        offered.append((value, value))
    return offered, value if value and value in [model for _, model in offered] else chat.base.name


def manifest_of(chat: ChatService, model: str | None) -> AdapterManifest | None:
    """What the model says of itself, of an alias what most users get; None for the base, plain PEFT adapters and names
    no longer offered."""
    if not model:
        return None
    try:
        alias = chat.aliases.get(model)
        meant = alias.heaviest if alias else model
        return None if chat.is_base(meant) else chat.registry.resolve(meant).manifest
    except BianlianError:
        return None


def _is_offered(chat: ChatService, model: str) -> bool:
    try:
        return chat.is_base(model) or bool(chat.registry.resolve(model))
    except BianlianError:
        return False


def _label(version: AdapterVersion) -> str:
    title = version.manifest.card.title if version.manifest else ""
    return f"{title} · {version}" if title and title != version.name else str(version)
