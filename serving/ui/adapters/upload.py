"""Publishing an adapter from the page: the same checks and the same errors as `POST /v1/adapters`."""

import asyncio
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr

from adapters.archive import gather_adapter
from adapters.errors import Invalid
from serving.ui.adapters.desk import QUIET, AdapterServices, Update, say, shown_errors, t
from serving.ui.units import size

FILE_TYPES = [".zip", ".tar", ".gz", ".tgz", ".safetensors", ".json", ".txt", ".svg", ".png", ".bin", ".pt", ".pth"]


@dataclass(frozen=True)
class Upload:
    files: gr.File
    name: gr.Textbox
    notes: gr.Textbox
    publish: gr.Button
    done: gr.Textbox  # hidden; the name that was published


def lay_out_upload() -> Upload:
    with gr.Row():
        # Pickles may be chosen: only the service says why they are refused, and what to send instead.
        files = gr.File(
            label=t("files"), file_count="multiple", file_types=FILE_TYPES, height=150, elem_id="adapters-files"
        )
        with gr.Column(min_width=240):
            name = gr.Textbox(label=t("name"), placeholder=t("name_hint"), max_length=64, elem_id="adapters-name")
            notes = gr.Textbox(label=t("notes"), max_length=4096, elem_id="adapters-notes")
    gr.Markdown(t("files_note"), elem_classes=["ad-note"])
    publish = gr.Button(t("publish"), variant="primary", elem_id="adapters-publish")
    return Upload(files, name, notes, publish, gr.Textbox("", label=t("chosen"), visible=False))


def wire_upload(services: AdapterServices, form: Upload) -> gr.events.Dependency:
    """The event whose success has set `form.done`."""

    async def publish(request: gr.Request, files: list[str] | None, name: str, notes: str) -> list[Update]:
        """[done, files, name, notes]"""
        language = await services.admins_language(request)
        if not files:
            raise gr.Error(say(language, "no_files"), print_exception=False)
        sent = [(Path(file).name, Path(file)) for file in files]
        limit = services.settings.max_upload_bytes
        total = sum(path.stat().st_size for _, path in sent)
        with shown_errors(), services.files.workspace() as workspace:
            if total > limit:
                raise Invalid(say(language, "too_large", size=size(total), limit=size(limit)), param="file")
            source = workspace / "adapter"
            source.mkdir()
            # A copy: who must correct the name should not have to choose the files again.
            gather = partial(gather_adapter, limit=limit, place=shutil.copyfile)
            left_out = await asyncio.to_thread(gather, sent, source)
            published = await services.lifecycle.publish(source, name.strip(), notes=notes.strip())
        gr.Info(say(language, "did_publish" if published.new else "same", version=published.version))
        if left_out:
            gr.Info(say(language, "left_out", names=", ".join(left_out)))
        if published.effect and published.effect.warning:
            gr.Warning(f"{published.version} {published.effect.warning}", duration=None)
        return [published.version.name, None, "", ""]

    inputs = [form.files, form.name, form.notes]
    return form.publish.click(publish, inputs, [form.done, *inputs], **QUIET)
