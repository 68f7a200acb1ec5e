"""The ways in which other servers' clients name an adapter: one meaning for all of them, never a guess between two."""

from collections.abc import Iterator

from fastapi import Request

from adapters.errors import Invalid, naming
from serving.api.auth import caller_of
from serving.api.schemas import AdapterFields
from serving.chat import ChatService

Blend = tuple[tuple[str, float], ...]  # (model id, strength)

HEADERS = ("lora_id", "patch_id")  # iFlytek's clients send them so
_BASE = {"adapter_id": "__base_model__", "lora_id": "0", "patch_id": "0"}  # what the base is called there


def chosen(body: AdapterFields, request: Request, chat: ChatService) -> tuple[Blend, str]:
    """The adapters that a request names in a dialect, none when it names the base or uses no dialect; and the field it
    did so in, for errors. Invalid when two fields contradict each other or `model`, naming both."""
    user = body.user or caller_of(request).key
    fields = [*_fields(body, request, chat.base.name)]
    meanings = [_meaning(chat, field, blend, user) for field, blend in fields]
    with naming("model"):
        asked = _meaning(chat, "model", ((body.model, 1.0),), user) if fields or body.use_adapter else {}
    for (field, blend), meaning in zip(fields, meanings, strict=True):
        # Most dialects send the base as model and the adapter beside it; one adapter is not asked to be another.
        if asked and not asked.keys() <= meaning.keys():
            raise _contradiction("model", ((body.model, 1.0),), field, blend)
        if meaning.keys() != meanings[0].keys():  # strengths come from `lora`, the first of the fields
            raise _contradiction(*fields[0], field, blend)
    if body.use_adapter is True and not (meanings[0] if fields else asked):
        raise Invalid(
            f"use_adapter is true, but model '{body.model}' is the base; name the adapter in one of them",
            param="use_adapter",
        )
    if not fields:
        return (), "model"
    field, blend = fields[0]
    return (blend if meanings[0] else ()), field


def _fields(body: AdapterFields, request: Request, base: str) -> Iterator[tuple[str, Blend]]:
    """Each field that was sent, and what it asks for in our words."""
    if body.lora:
        yield "lora", tuple((choice.model, choice.scale) for choice in body.lora)
    sent = {"adapter_id": body.adapter_id, "lora_path": body.lora_path}
    if body.use_adapter is not True:  # which names none: model or another field has to
        sent["use_adapter"] = base if body.use_adapter is False else body.use_adapter
    for name in HEADERS:
        sent[name] = getattr(body, name)
        sent[f"header {name}"] = request.headers.get(name)
    for field, value in sent.items():
        if value is not None:
            is_base = value == _BASE.get(field.removeprefix("header "))
            yield field, ((base if is_base else value, 1.0),)


def _meaning(chat: ChatService, field: str, blend: Blend, user: str) -> dict[str, float]:
    """Strengths by digest; empty for the base. NotFound when there is no such adapter."""
    strengths: dict[str, float] = {}
    with naming(field):
        for name, scale in blend:
            target = chat.target(name, user)
            if not chat.is_base(target):
                digest = chat.registry.resolve(target).digest
                strengths[digest] = strengths.get(digest, 0.0) + scale
    return strengths


def _contradiction(first: str, one: Blend, second: str, other: Blend) -> Invalid:
    said = [
        f"{field} asks for '{'+'.join(name for name, _ in blend)}'" for field, blend in ((first, one), (second, other))
    ]
    return Invalid(f"{said[0]} and {said[1]}; they contradict each other, send one of them", param=second)
