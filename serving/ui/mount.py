"""The page on the server: mounted at "/", behind the guard, and behind a login when keys are set."""

import gradio as gr
from fastapi import FastAPI

from adapters.settings import Settings
from serving.api.auth import Keys
from serving.ui.guard import UiGuard
from serving.ui.texts import LINES, translations
from serving.ui.theme import CSS, HEAD, theme

MAX_UPLOAD = "200mb"


def mount_page(app: FastAPI, blocks: gr.Blocks, settings: Settings) -> FastAPI:
    keys = Keys(settings)

    def may_enter(user: str, password: str) -> bool:
        return keys.accepts(password)

    # Only launch() sets this, and without it Gradio does not check that a file named by a client was uploaded: any
    # file the server can read could be downloaded.
    blocks.has_launched = True
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,  # it would keep every conversation in the browser
        auth=may_enter if keys.configured else None,
        auth_message=" / ".join(LINES["login"]) if keys.configured else None,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        i18n=translations(),
        theme=theme(),
        css=CSS,
        head=HEAD,
    )
    app.add_middleware(UiGuard)
    return app
