"""The faces one can talk to: portrait, title, greeting and sample questions of each model."""

import hashlib
from dataclasses import dataclass
from html import escape

from adapters.errors import BianlianError
from adapters.manifest import AdapterVersion
from adapters.portrait import BASE_PORTRAIT, initial_uri, portrait_uri
from adapters.ui.words import Language
from serving.chat import ChatService
from serving.ui.chat.words import say
from serving.ui.portraits import portrait_of
from serving.ui.texts import questions

MAX_CARDS = 12
MAX_SAMPLES = 4


@dataclass(frozen=True)
class Face:
    model: str
    title: str
    greeting: str
    samples: tuple[str, ...]
    portrait: str  # a data URI
    own_prompt: str | None = None  # the system prompt it was trained under


def face_of(chat: ChatService, model: str, language: Language) -> Face:
    """How `model` introduces itself. One that is not offered any more has its name."""
    try:
        alias = chat.aliases.get(model)
        meant = alias.heaviest if alias else model
        if chat.is_base(meant):
            return _base(chat, language)
        return _of_version(chat.registry.resolve(meant), model, language)
    except BianlianError:
        return Face(model, model, "", (), initial_uri(model))


def faces(chat: ChatService, language: Language) -> list[Face]:
    """The base and the first adapters; the model picker has the others."""
    versions = chat.registry.versions()[: MAX_CARDS - 1]
    return [*(_of_version(version, version.name, language) for version in versions), _base(chat, language)]


def welcome(chosen: Face, others: list[Face], language: Language) -> str:
    """What an empty conversation shows: the chosen face with its sample questions, and the others to choose from."""
    chips = "".join(
        f'<button type="button" class="chip" data-do="sample" data-text="{escape(text)}">{escape(text)}</button>'
        for text in chosen.samples
    )
    cards = "".join(_card(face, chosen.model) for face in others)
    return (
        f'<section class="welcome"><img class="portrait" src="{chosen.portrait}" alt="">'
        f"<h2>{escape(chosen.title)}</h2><p>{escape(chosen.greeting)}</p>"
        f'<div class="chips">{chips}</div>'
        + (f'<h3>{say(language, "faces")}</h3><div class="cards">{cards}</div>' if len(others) > 1 else "")
        + "</section>"
    )


def avatar_class(model: str) -> str:
    """The CSS class that shows a model's portrait: the picture is sent once, however often it speaks."""
    return "face-" + hashlib.sha256(model.encode()).hexdigest()[:12]


def avatar_styles(faces: list[Face]) -> str:
    rules = "".join(f".{avatar_class(face.model)}{{background-image:url({face.portrait})}}" for face in faces)
    return f"<style>{rules}</style>"


def _card(face: Face, chosen: str) -> str:
    pressed = "true" if face.model == chosen else "false"
    return (
        f'<button type="button" class="card" data-do="pick" data-model="{escape(face.model)}" aria-pressed="{pressed}">'
        f'<img src="{face.portrait}" alt=""><span><b>{escape(face.title)}</b>'
        f"<small>{escape(face.greeting)}</small></span></button>"
    )


def _base(chat: ChatService, language: Language) -> Face:
    greeting, openers = say(language, "base_greeting"), tuple(questions(language))
    return Face(chat.base.name, chat.base.name, greeting, openers, portrait_uri(BASE_PORTRAIT))


def _of_version(version: AdapterVersion, model: str, language: Language) -> Face:
    manifest = version.manifest
    card = manifest.card if manifest else None
    title = (card and card.title) or version.name
    samples = (card and card.samples) or questions(language)
    return Face(
        model,
        title,
        (card and card.greeting) or say(language, "greeting"),
        tuple(samples[:MAX_SAMPLES]),
        portrait_of(version),
        manifest.system_prompt if manifest else None,
    )
