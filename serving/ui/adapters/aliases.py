"""Aliases: a name shared out between models, with a slider each; the shares are 100 % together at every moment."""

import asyncio
import html
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from adapters.aliases import MAX_TARGETS, Alias, AliasTarget
from adapters.ui.words import Language, language_of
from serving.ui.adapters.desk import QUIET, AdapterServices, Update, say, shown_errors, t
from serving.ui.adapters.shares import as_shares, moved, retargeted


@dataclass(frozen=True)
class Aliases:
    listed: gr.HTML
    name: gr.Dropdown
    targets: gr.Dropdown
    known: gr.JSON  # hidden; the targets that the sliders stand for
    sliders: list[gr.Slider]
    save: gr.Button
    ask: gr.Button
    really: gr.Button
    keep: gr.Button

    @property
    def drawn(self) -> list[Any]:
        """What stands there when the tab opens."""
        return [self.listed, self.name, self.targets]

    @property
    def shares(self) -> list[Any]:
        return [self.known, *self.sliders]

    @property
    def sure(self) -> list[Any]:
        return [self.ask, self.really, self.keep]


def lay_out_aliases() -> Aliases:
    listed = gr.HTML("", elem_id="aliases-list", padding=False)
    with gr.Row():
        name = gr.Dropdown(
            [], value=None, label=t("alias"), allow_custom_value=True, min_width=200, elem_id="alias-name"
        )
        targets = gr.Dropdown(
            [],
            value=[],
            label=t("targets"),
            multiselect=True,
            allow_custom_value=True,
            max_choices=MAX_TARGETS,
            scale=2,
            min_width=240,
            elem_id="alias-targets",
        )
    known = gr.JSON([], label=t("known"), visible=False)
    sliders = [
        gr.Slider(0.1, 100, 100, step=0.1, label=str(at), visible=False, buttons=[], elem_id=f"alias-share-{at}")
        for at in range(MAX_TARGETS)
    ]
    gr.Markdown(t("sticky"), elem_classes=["ad-note"])
    with gr.Row():
        save = gr.Button(t("save"), variant="primary", min_width=120, elem_id="alias-save")
        ask = gr.Button(t("alias_delete"), min_width=120, elem_id="alias-delete")
        really = gr.Button(t("alias_really"), variant="stop", visible=False, min_width=120, elem_id="alias-really")
        keep = gr.Button(t("keep"), visible=False, min_width=120, elem_id="alias-keep")
    return Aliases(listed, name, targets, known, sliders, save, ask, really, keep)


def aliases_now(services: AdapterServices) -> Callable[..., Awaitable[list[Update]]]:
    """What `Aliases.drawn` is to show, from a request; `cleared`: with nothing chosen. Nothing to who is no admin."""
    chat = services.lifecycle.chat

    def read() -> tuple[list[Alias], list[tuple[str, str]]]:
        registry = chat.registry
        models = [(name, name) for name in (version.name for version in registry.versions())]
        several = [name for name, _ in models if len(registry.store.numbers(name)) > 1]
        models += [(f"{name}@{n}", f"{name}@{n}") for name in several for n in registry.store.numbers(name)]
        return chat.aliases.all(), models

    async def now(request: gr.Request, cleared: bool = False) -> list[Update]:
        if not await services.is_admin(request):
            return [gr.skip()] * 3
        language = language_of(request)
        found, models = await asyncio.to_thread(read)
        base = (say(language, "base_choice", name=chat.base.name), chat.base.name)
        names: dict[str, Any] = {"choices": [alias.name for alias in found]}
        targets: dict[str, Any] = {"choices": [base, *models]}
        if cleared:
            names["value"], targets["value"] = None, []
        return [_table(found, language), gr.Dropdown(**names), gr.Dropdown(**targets)]

    return now


def wire_aliases(services: AdapterServices, form: Aliases) -> None:
    chat, now = services.lifecycle.chat, aliases_now(services)

    async def meet(request: gr.Request, name: str | None) -> list[Update]:
        """[targets, *shares, *sure]: those of an alias that was chosen; a new name leaves what stands there."""
        await services.admins_language(request)
        alias = await asyncio.to_thread(chat.aliases.get, name or "")
        if alias is None:
            return [*[gr.skip()] * (1 + len(form.shares)), *_asking(False)]
        targets = [target.model for target in alias.targets]
        shares = as_shares([target.weight for target in alias.targets])
        return [targets, targets, *_sliders(targets, shares), *_asking(False)]

    def retarget(targets: list[str], known: list[str], *values: float) -> list[Update]:
        """`Aliases.shares`"""
        before = dict(zip(known or [], values, strict=False))
        return [targets, *_sliders(targets, retargeted(before, targets))]

    def slide(at: int) -> Callable[..., list[Update]]:
        def slid(known: list[str], *values: float) -> list[Update]:
            """All sliders: the others give way."""
            count = len(known)
            shares = moved(values[:count], at, values[at])
            return [gr.skip() if other == at or other >= count else shares[other] for other in range(MAX_TARGETS)]

        return slid

    async def save(request: gr.Request, name: str | None, targets: list[str], *values: float) -> list[Update]:
        """`Aliases.drawn`"""
        language = await services.admins_language(request)
        _require(bool(name and name.strip()), "no_alias", language)
        _require(bool(targets), "no_targets", language)
        shared = [AliasTarget(model=model, weight=share) for model, share in zip(targets, values, strict=False)]
        with shown_errors():
            alias = Alias(name=(name or "").strip(), targets=shared)
            await asyncio.to_thread(chat.aliases.put, alias, chat.registry)
        gr.Info(say(language, "did_alias", name=alias.name))
        return await now(request)

    def ask(request: gr.Request, name: str | None) -> list[Update]:
        _require(bool(name), "no_alias", language_of(request))
        return _asking(True)

    async def delete(request: gr.Request, name: str | None) -> list[Update]:
        """[*drawn, *shares, *sure]"""
        language = await services.admins_language(request)
        with shown_errors():
            await asyncio.to_thread(chat.aliases.delete, name or "")
        gr.Info(say(language, "did_alias_delete", name=name))
        return [*await now(request, cleared=True), [], *_sliders([], []), *_asking(False)]

    form.name.change(meet, form.name, [form.targets, *form.shares, *form.sure], **QUIET)
    form.targets.input(retarget, [form.targets, *form.shares], form.shares, queue=False, **QUIET)
    for at, slider in enumerate(form.sliders):
        slider.input(slide(at), form.shares, form.sliders, trigger_mode="always_last", queue=False, **QUIET)
    form.save.click(save, [form.name, form.known, *form.sliders], form.drawn, **QUIET)
    form.ask.click(ask, form.name, form.sure, **QUIET)
    form.keep.click(lambda: _asking(False), None, form.sure, queue=False, **QUIET)
    form.really.click(delete, form.name, [*form.drawn, *form.shares, *form.sure], **QUIET)


def _sliders(targets: Sequence[str], shares: Sequence[float]) -> list[Update]:
    shown: list[Update] = [
        gr.Slider(value=share, label=f"{target} · %", visible=True)
        for target, share in zip(targets, shares, strict=True)
    ]
    return [*shown, *(gr.Slider(visible=False) for _ in range(MAX_TARGETS - len(shown)))]


def _asking(sure: bool) -> list[Update]:
    """`Aliases.sure`, before and after the first step."""
    return [gr.Button(visible=not sure), gr.Button(visible=sure), gr.Button(visible=sure)]


def _require(there: bool, line: str, language: Language) -> None:
    if not there:
        raise gr.Error(say(language, line), print_exception=False)


def _table(aliases: Sequence[Alias], language: Language) -> str:
    """Every alias with its shares, as a bar and in words."""
    if not aliases:
        return f'<p class="ad-empty">{say(language, "no_aliases")}</p>'
    rows = []
    for alias in aliases:
        total = sum(target.weight for target in alias.targets)
        parts = [(html.escape(target.model), target.weight / total) for target in alias.targets]
        bar = "".join(f'<i style="flex-grow:{share:.4f}"></i>' for _, share in parts)
        text = " · ".join(f"{model} {share:.1%}" for model, share in parts)
        rows.append(
            f'<li><b>{html.escape(alias.name)}</b><span class="ad-bar" aria-hidden="true">{bar}</span> {text}</li>'
        )
    return f'<ul class="ad-aliases">{"".join(rows)}</ul>'
