"""The page on the server: mounted at "/", behind the guard, and behind a login when keys are set."""

import gradio as gr
from fastapi import FastAPI, Request

from serving.api.auth import Keys
from serving.ui.guard import UiGuard
from serving.ui.texts import LINES, translations
from serving.ui.theme import CSS, HEAD, theme

MAX_UPLOAD = "200mb"
KEYS_SINCE = "An API key was made since the server started; restart it, and this page asks for one."


def mount_page(app: FastAPI, blocks: gr.Blocks, keys: Keys) -> FastAPI:
    async def may_enter(user: str, password: str) -> bool:
        return await keys.caller(password) is not None

    async def anyone(request: Request) -> str | None:
        """Without keys everybody may enter, until one is made."""
        return None if await keys.configured() else ""

    wanted = keys.configured_now()
    # Only launch() sets this, and without it Gradio does not check that a file named by a client was uploaded: any
    # file the server can read could be downloaded.
    blocks.has_launched = True
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,  # it would keep every conversation in the browser
        auth=may_enter if wanted else None,
        auth_dependency=None if wanted else anyone,
        auth_message=" / ".join(LINES["login"]) if wanted else KEYS_SINCE,
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
