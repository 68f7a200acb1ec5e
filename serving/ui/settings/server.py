"""Who one is here, and what the server is: facts to read, nothing to change."""

import html
from importlib.metadata import version

from adapters.settings import Settings
from adapters.ui.tab import Viewer
from adapters.ui.words import Language
from serving.chat import ChatService
from serving.ui.settings.words import SETTINGS
from serving.ui.tables import table

LINKS = ("/v1/models", "/openapi.json", "/metrics", "/health")


def who(viewer: Viewer, language: Language) -> str:
    """The viewer's key and scope; that there are no keys, where that is so."""
    if not viewer.key:
        return SETTINGS.say(language, "open")
    scope = SETTINGS.say(language, "admin" if viewer.admin else "user")
    return html.escape(SETTINGS.say(language, "you", name=viewer.key, scope=scope))


def facts(chat: ChatService, viewer: Viewer, language: Language) -> str:
    """Version, base and device as HTML. Links to the API only while a browser may follow them without a key."""

    def say(key: str, **values: object) -> str:
        return html.escape(SETTINGS.say(language, key, **values))

    base = chat.base
    quantized = f", {base.quantize}" if base.quantize != "none" else ""
    rows = [
        ("version", version("bianlian")),
        ("base", html.escape(base.name)),
        ("device", html.escape(str(base.device))),
        ("precision", html.escape(str(base.dtype).removeprefix("torch.") + quantized)),
        ("context", say("context_value", n=chat.engine.engine.max_model_len)),
    ]
    if not viewer.key:
        links = " ".join(f'<a href="{link}" target="_blank" rel="noopener">{link}</a>' for link in LINKS)
        rows.append(("links", links))
    listed = "".join(f"<dt>{say(key)}</dt><dd>{value}</dd>" for key, value in rows)
    return f"<h2>{say('server')}</h2><p>{who(viewer, language)}</p><dl>{listed}</dl>"


def effective(settings: Settings, language: Language) -> str:
    """Every setting with its origin. For admins: it tells paths of this machine."""
    say = SETTINGS.say
    origins = {"default": say(language, "default"), "flag": say(language, "flag")}
    rows = [
        (each.name, each.value or say(language, "unset"), origins.get(each.origin, each.origin))
        for each in settings.effective()
    ]
    return table([say(language, key) for key in ("setting", "value", "origin")], rows, say(language, "setting"))
