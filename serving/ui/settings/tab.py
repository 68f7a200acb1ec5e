"""The Settings tab."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import gradio as gr

from adapters.errors import BianlianError, Forbidden, Invalid
from adapters.settings import Settings
from adapters.ui.tab import Viewer, ViewerOf
from adapters.ui.words import Language, language_of
from serving.chat import ChatService
from serving.keys import KeyStore
from serving.ui.settings.appearance import appearance
from serving.ui.settings.keys import NewKey, Revoking, key_table, live_names, new_key_form, revoking_row
from serving.ui.settings.server import effective, facts
from serving.ui.settings.usage import usage_chart, used
from serving.ui.settings.words import SETTINGS
from serving.usage import UsageBook

t, say = SETTINGS.t, SETTINGS.say
Update = Any
QUIET = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class SettingsServices:
    """`log_in` makes the browser of a request that of a key; False when it has no session."""

    settings: Settings
    chat: ChatService
    viewer_of: ViewerOf
    keys: KeyStore
    usage: UsageBook
    log_in: Callable[[gr.Request, str], bool]


def settings_tab(services: SettingsServices, page: gr.Blocks) -> None:
    with gr.Row():
        with gr.Column(min_width=320):
            appearance(page)
        with gr.Column(min_width=320):
            about = gr.HTML(elem_id="settings-facts", padding=False)
            log_out = gr.Button(t("log_out"), visible=False, elem_id="settings-log-out")
    with gr.Column(visible=False, elem_id="settings-keys") as keys_part:
        gr.Markdown(t("keys"))
        listed = gr.HTML(elem_id="settings-key-table", padding=False)
        revoking = revoking_row()
        with gr.Accordion(t("new_key"), open=False, elem_id="settings-new-key"):
            form = new_key_form()
    gr.Markdown(t("usage"))
    chart = usage_chart()
    sums = gr.HTML(elem_id="settings-usage-table", padding=False)
    with gr.Accordion(t("effective"), open=False, visible=False, elem_id="settings-effective") as effective_part:
        everything = gr.HTML(padding=False)

    async def show(request: gr.Request) -> list[Update]:
        """[about, log out, keys, key table, revoking, key to revoke, chart, sums, all settings, their table]"""
        language, viewer = language_of(request), await services.viewer_of(request)
        known = [gr.skip()] * 3
        if viewer.admin:
            known = await _keys_shown(services, language)
        return [
            facts(services.chat, viewer, language),
            gr.Button(visible=bool(viewer.key)),
            gr.Column(visible=viewer.admin),
            *known,
            *await used(services.usage, viewer, language),
            gr.Accordion(visible=viewer.admin),
            effective(services.settings, language) if viewer.admin else "",
        ]

    shown = [about, log_out, keys_part, listed, revoking.row, revoking.which, chart, sums, effective_part, everything]
    page.load(show, None, shown, **QUIET)
    log_out.click(None, None, None, js="() => { bianlian.logOut(); }", **QUIET)
    _wire_creation(services, form, listed, revoking)
    _wire_revoking(services, listed, revoking)


def _wire_creation(services: SettingsServices, form: NewKey, listed: gr.HTML, revoking: Revoking) -> None:
    async def create(
        request: gr.Request,
        name: str,
        scope: Literal["user", "admin"],
        *limits: float | None,
    ) -> list[Update]:
        """[made, table, revoking, key to revoke, *the form]"""
        language = language_of(request)
        viewer, store = await services.viewer_of(request), services.keys
        rpm, tpm, expires = (int(limit) if limit else None for limit in limits)
        make = partial(
            store.create,
            name.strip(),
            admin=scope == "admin",
            requests_per_minute=rpm,
            tokens_per_minute=tpm,
            expires_in_days=expires,
        )
        try:
            _require_admin(viewer, language)
            if not viewer.key and scope != "admin":
                raise Invalid(say(language, "first_admin"), param="scope")
            key, text = await store.database.call(make)
        except BianlianError as error:
            gr.Warning(error.message)
            return [gr.skip()] * (4 + len(form.inputs))
        gr.Info(say(language, "created", name=key.name))
        if not viewer.key and services.log_in(request, text):
            gr.Info(say(language, "now_in"))
        cleared = ["", "user", 0, 0, 0]
        return [gr.Textbox(text, visible=True), *await _keys_shown(services, language), *cleared]

    form.create.click(create, form.inputs, [form.made, listed, revoking.row, revoking.which, *form.inputs], **QUIET)


def _wire_revoking(services: SettingsServices, listed: gr.HTML, revoking: Revoking) -> None:
    steps = [revoking.asked, revoking.ask, revoking.really, revoking.keep]

    def ask(request: gr.Request, name: str | None) -> list[Update]:
        if not name:
            gr.Warning(say(language_of(request), "choose_key"))
        return _asking(name or "", language_of(request))

    def keep(request: gr.Request) -> list[Update]:
        return _asking("", language_of(request))

    async def revoke(request: gr.Request, name: str) -> list[Update]:
        """[table, revoking, key to revoke, *steps]"""
        language = language_of(request)
        try:
            _require_admin(await services.viewer_of(request), language)
            key = await services.keys.database.call(services.keys.revoke, name)
        except BianlianError as error:
            gr.Warning(error.message)
            return [gr.skip()] * (3 + len(steps))
        gr.Info(say(language, "revoked", name=key.name))
        return [*await _keys_shown(services, language), *_asking("", language)]

    revoking.ask.click(ask, revoking.which, steps, **QUIET)
    revoking.keep.click(keep, None, steps, **QUIET)
    revoking.really.click(revoke, revoking.asked, [listed, revoking.row, revoking.which, *steps], **QUIET)


def _asking(name: str, language: Language) -> list[Update]:
    """[asked, ask, really, keep]: whether to end the key `name`; the first step again without one."""
    sure = gr.Button(say(language, "revoke_really", name=name), visible=bool(name))
    return [name, gr.Button(visible=not name), sure, gr.Button(visible=bool(name))]


async def _keys_shown(services: SettingsServices, language: Language) -> list[Update]:
    """[table, revoking, key to revoke]"""
    keys = await services.keys.database.call(services.keys.all)
    names = live_names(keys)
    return [key_table(keys, language), gr.Row(visible=bool(names)), gr.Dropdown(choices=names, value=None)]


def _require_admin(viewer: Viewer, language: Language) -> None:
    if not viewer.admin:
        raise Forbidden(say(language, "no_admin"), code="admin_required")
