"""The page on the server: mounted at "/", behind the guard, and behind a login when keys are set."""

from collections.abc import Sequence

import gradio as gr
from fastapi import FastAPI

from adapters.ui.tab import Tab
from adapters.ui.words import translations
from serving.ui.guard import UiGuard
from serving.ui.login import Login, Sessions
from serving.ui.page import build_page
from serving.ui.texts import WORDS
from serving.ui.theme import CSS, HEAD, theme

MAX_UPLOAD = "200mb"


def mount_page(app: FastAPI, tabs: Sequence[Tab], sessions: Sessions) -> FastAPI:
    blocks = build_page(tabs)
    # Only launch() sets this, and without it Gradio does not check that a file named by a client was uploaded: any
    # file the server can read could be downloaded.
    blocks.has_launched = True
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,  # it would keep every conversation in the browser
        auth_dependency=sessions.user,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        i18n=translations([WORDS, *(tab.words for tab in tabs)]),
        theme=theme(),
        css="\n".join([CSS, *(tab.css for tab in tabs)]),
        head=HEAD,
    )
    app.add_middleware(Login, sessions=sessions)
    app.add_middleware(UiGuard)
    return app
