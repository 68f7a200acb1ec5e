"""Comparisons that are set up in one click."""

from collections.abc import Mapping

from adapters.errors import Invalid
from adapters.ui.words import Language
from serving.chat import ChatService
from serving.compare import Lane
from serving.ui.compare.words import say
from serving.ui.models import first_adapter, manifest_of

SWEEP = (0.0, 0.5, 1.0, 1.5)


def strength_sweep(chat: ChatService, lanes: Mapping[int, Lane], language: Language) -> dict[int, Lane]:
    """One adapter at growing strengths, under the prompt that its lane has now. Invalid when there is no adapter."""
    tuned = _tuned(chat, lanes, language)
    return {slot: Lane(tuned.model, scale, tuned.system) for slot, scale in enumerate(SWEEP)}


def ablation(chat: ChatService, lanes: Mapping[int, Lane], language: Language) -> dict[int, Lane]:
    """Was tuning worth it, or would a prompt have done? Base, base with the persona's prompt, tuned without it, tuned
    with it. The prompt is the one in the adapter's lane, or its own, or one made of the persona's name. Invalid when
    there is no adapter."""
    tuned = _tuned(chat, lanes, language)
    prompt = tuned.system or _own_prompt(chat, tuned.model, language)
    models = (chat.base.name, chat.base.name, tuned.model, tuned.model)
    return {slot: Lane(model, system=prompt if slot % 2 else "") for slot, model in enumerate(models)}


def _tuned(chat: ChatService, lanes: Mapping[int, Lane], language: Language) -> Lane:
    """The first lane on screen that is no base, else the first adapter."""
    adapter = first_adapter(chat)
    lane = next((lane for _, lane in sorted(lanes.items()) if not chat.is_base(lane.model)), Lane(adapter))
    if chat.is_base(lane.model):
        raise Invalid(say(language, "no_adapter"), param="model")
    return lane


def _own_prompt(chat: ChatService, model: str, language: Language) -> str:
    manifest = manifest_of(chat, model)
    if manifest and manifest.system_prompt:
        return manifest.system_prompt
    name = (manifest and manifest.card.title) or model
    return say(language, "persona_prompt", name=name)
