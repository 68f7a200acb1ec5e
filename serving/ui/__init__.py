"""The browser face: Gradio tabs over the same services as the API.

`build_ui` lays the page out, `mount_ui` puts it at "/" of the server with its guards. Gradio is imported by these
two calls and not before: it costs seconds that a command line or an API-only server need not pay."""

import os
from typing import TYPE_CHECKING

from adapters.settings import Settings
from serving.chat import ChatService

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

    from serving.api.auth import Keys

# Read by Gradio while it is imported, and again at startup; without it the server contacts api.gradio.app.
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False"}


def build_ui(chat: ChatService, settings: Settings) -> "gr.Blocks":
    """The whole page, not served yet."""
    os.environ.update(_QUIET)
    from serving.ui.page import build_page

    return build_page(chat)


def mount_ui(app: "FastAPI", blocks: "gr.Blocks", keys: "Keys") -> "FastAPI":
    """Serve `blocks` at "/" of `app`, which must have all its routes by now: what comes later answers 404.

    Once there is an API key, the page asks for one."""
    os.environ.update(_QUIET)
    from serving.ui.mount import mount_page

    return mount_page(app, blocks, keys)
