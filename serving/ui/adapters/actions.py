"""What is done with the chosen version. Every function asks anew who is there: hiding a button protects nothing."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from adapters.ui.words import Language
from serving.ui.adapters.browse import One
from serving.ui.adapters.desk import QUIET, AdapterServices, Update, say, shown_errors, t
from serving.ui.adapters.detail import effect_text
from serving.ui.units import size

# After something was done: look again at what is shown.
Again = Callable[[gr.events.Dependency], None]


@dataclass(frozen=True)
class Actions:
    one: One
    warm: gr.Button
    measure: gr.Button
    export: gr.Button
    really: gr.Button


def lay_out_actions() -> Actions:
    """The chosen adapter: first what there is to say of it, then what may be done."""
    about = gr.HTML("", elem_id="adapters-detail", padding=False)
    with gr.Column(visible=False, elem_id="adapters-actions") as column:
        # The page may be a moment behind, and a version gone that it still shows: that is no error of the visitor's, so
        # the component lets any value through, and whoever reads it looks whether it is there.
        version = gr.Dropdown(
            [],
            value=None,
            label=t("version"),
            elem_id="adapters-version",
            allow_custom_value=True,
            filterable=False,
        )
        with gr.Row(elem_id="adapters-buttons"):
            warm = _button("warm_up")
            measure = _button("measure")
            pin = _button("pin")
            unpin = _button("unpin", visible=False)
            make_current = _button("make_current")
            export = _button("export")
        download = gr.DownloadButton(t("download"), visible=False, variant="primary", elem_id="adapters-download")
        with gr.Accordion(t("delete"), open=False, elem_id="adapters-delete") as delete:
            confirm = gr.Textbox(label=t("confirm"), info=" ", elem_id="adapters-confirm")
            force = gr.Checkbox(False, label=t("force"), elem_id="adapters-force")
            really = gr.Button(t("really"), variant="stop", elem_id="adapters-really")
    one = One(about, column, version, pin, unpin, make_current, delete, confirm, force, download)
    return Actions(one, warm, measure, export, really)


def wire_actions(services: AdapterServices, actions: Actions, chosen: gr.Textbox, after: Again) -> None:
    """`after` gets each event whose success changes what is shown."""
    lifecycle, one = services.lifecycle, actions.one

    async def warm(version: str, language: Language) -> str:
        await lifecycle.warm(version)
        return say(language, "warmed", version=version)

    async def pin(version: str, language: Language) -> str:
        await lifecycle.pin(version)
        return say(language, "did_pin", version=version)

    async def unpin(version: str, language: Language) -> str:
        await asyncio.to_thread(lifecycle.unpin, version)
        return say(language, "did_unpin", version=version)

    async def measure(version: str, language: Language) -> str:
        effect = await lifecycle.measure(version)
        if effect is None:
            return say(language, "measured_not")
        return say(language, "did_measure", version=version, effect=effect_text(effect, language))

    async def make_current(version: str, language: Language) -> str:
        name, _, number = version.partition("@")
        now = await lifecycle.rollback(name, int(number))
        return say(language, "did_roll", name=name, version=now)

    def act(do: Callable[[str, Language], Awaitable[str]]) -> Callable[..., Awaitable[None]]:
        async def acted(request: gr.Request, name: str, number: int) -> None:
            language = await services.admins_language(request)
            with shown_errors():
                gr.Info(await do(f"{name}@{number}", language))

        return acted

    for button, do in (
        (actions.warm, warm),
        (actions.measure, measure),
        (one.pin, pin),
        (one.unpin, unpin),
        (one.make_current, make_current),
    ):
        after(button.click(act(do), [chosen, one.version], None, **QUIET))

    async def export(request: gr.Request, name: str, number: int) -> Update:
        language = await services.admins_language(request)
        with shown_errors():
            version = await asyncio.to_thread(lifecycle.version, name, number)
            place = Path(get_upload_folder()) / "adapters" / uuid.uuid4().hex  # from where pages may download
            await asyncio.to_thread(place.mkdir, parents=True)
            file = await asyncio.to_thread(lifecycle.pack, version, place)
        label = say(language, "download_label", file=file.name, size=size(file.stat().st_size))
        return gr.DownloadButton(label, value=str(file), visible=True)

    async def delete(request: gr.Request, name: str, number: int, typed: str, force: bool) -> None:
        language = await services.admins_language(request)
        version = f"{name}@{number}"
        if typed.strip() not in (name, version):
            raise gr.Error(
                say(language, "confirm_wrong", version=version, name=name),
                print_exception=False,
            )
        with shown_errors():
            gone, freed = await lifecycle.remove(typed.strip(), force=force)
        gr.Info(say(language, "did_delete", versions=", ".join(map(str, gone)), size=size(freed)))

    actions.export.click(export, [chosen, one.version], one.download, **QUIET)
    wanted = [chosen, one.version, one.confirm, one.force]
    deleted = gr.on([actions.really.click, one.confirm.submit], delete, wanted, None, **QUIET)
    after(deleted)


def _button(name: str, **options: Any) -> gr.Button:
    return gr.Button(t(name), size="md", min_width=110, elem_id=f"adapters-{name.replace('_', '-')}", **options)
