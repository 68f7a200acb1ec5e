"""Words on the page, in Chinese and English. Every tab brings its own.

Labels go to the browser in both languages, which picks its own (`Words.t`, `translations`). Lines that carry numbers
or names are written on the server, in the language of the request (`Words.say`)."""

from collections.abc import Iterable, Mapping
from typing import Literal

import gradio as gr
from starlette.requests import Request

LANGUAGE_COOKIE = "bianlian-language"  # set by the page: the server writes lines and the login in it too

Language = Literal["zh", "en"]
Both = tuple[str, str]  # Chinese, English


class Words:
    """The words of one tab. `name` keeps its labels apart from those of other tabs."""

    def __init__(self, name: str, labels: Mapping[str, Both], lines: Mapping[str, Both] | None = None):
        self.name = name
        self.labels = {f"{name}_{key}": both for key, both in labels.items()}
        self.lines = dict(lines or {})

    def t(self, key: str) -> object:
        """A label that the browser shows in its language. KeyError for one that is not there."""
        full = f"{self.name}_{key}"
        self.labels[full]
        return gr.i18n.I18nData(full)

    def say(self, language: Language, key: str, **values: object) -> str:
        """A line in `language`, with its values filled in. KeyError for one that is not there."""
        zh, en = self.lines[key]
        return (zh if language == "zh" else en).format(**values)


def translations(words: Iterable[Words]) -> gr.I18n:
    """The labels of all tabs, for the browser."""
    labels = {key: both for each in words for key, both in each.labels.items()}
    return gr.I18n(
        **{
            "zh-CN": {key: zh for key, (zh, _) in labels.items()},
            "en": {key: en for key, (_, en) in labels.items()},
        }
    )


def language_of(request: gr.Request | Request) -> Language:
    """`?lang=` of the page, else what the visitor chose (LANGUAGE_COOKIE), else the browser's first language; anything
    but Chinese reads English."""
    chosen = request.query_params.get("lang") or request.cookies.get(LANGUAGE_COOKIE)
    wanted = chosen or request.headers.get("accept-language", "")
    return "zh" if wanted.strip().lower().startswith("zh") else "en"
