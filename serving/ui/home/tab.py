"""The Home tab: what this is on one screen, three ways to begin, the faces that are here, and the line for programs."""

import json
import re

import gradio as gr

from adapters.ui.tab import ViewerOf
from adapters.ui.words import Language, language_of
from serving.chat import ChatService
from serving.ui.home.faces import cards
from serving.ui.home.words import HOME
from serving.ui.models import first_adapter

_ORIGIN = re.compile(r"https?://[\w.\[\]:-]+")


def home_tab(chat: ChatService, viewer_of: ViewerOf, page: gr.Blocks) -> None:
    gr.HTML(HOME.t("hero"), elem_id="home-hero", padding=False)
    faces = gr.HTML(elem_id="home-faces", padding=False)
    api = gr.Markdown(elem_id="home-api", buttons=[])

    async def show(request: gr.Request) -> list[str]:
        language = language_of(request)
        keyed = bool((await viewer_of(request)).key)
        versions = chat.registry.versions()
        return [
            cards(versions, chat.base.name, language),
            api_lines(_origin(request), first_adapter(chat), language, keyed),
        ]

    page.load(show, None, [faces, api], api_visibility="private", show_progress="hidden")


def api_lines(origin: str, model: str, language: Language, keyed: bool) -> str:
    """How a program asks the same server, as Markdown with one command to copy."""
    body = {"model": model, "messages": [{"role": "user", "content": HOME.say(language, "question")}]}
    key = ' -H "Authorization: Bearer $BIANLIAN_KEY"' if keyed else ""
    command = (
        f"curl {origin}/v1/chat/completions{key} \\\n"
        f"  -H 'content-type: application/json' \\\n"
        f"  -d '{json.dumps(body, ensure_ascii=False)}'"
    )
    heading, how = HOME.say(language, "api"), HOME.say(language, "api_how", url=origin)
    return f"## {heading}\n\n{how}\n\n```sh\n{command}\n```"


def _origin(request: gr.Request) -> str:
    """This server's address as the visitor's browser has it; proxies included."""
    named = request.headers.get("origin", "")
    return named if _ORIGIN.fullmatch(named) else f"http://{request.headers.get('host', '127.0.0.1')}"
