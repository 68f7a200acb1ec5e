"""Language and theme. Both are the browser's: a change is kept there and the page loaded again, because Gradio reads
them once (and its charts keep the colours they began with)."""

import gradio as gr

from serving.ui.settings.words import SETTINGS

t = SETTINGS.t


def appearance(page: gr.Blocks) -> None:
    gr.Markdown(t("look"))
    language = gr.Radio(
        [(t("language_auto"), ""), ("中文", "zh-CN"), ("English", "en")],
        value="",
        label=t("language"),
        elem_id="settings-language",
    )
    theme = gr.Radio(
        [(t("theme_auto"), ""), (t("theme_light"), "light"), (t("theme_dark"), "dark")],
        value="",
        label=t("theme"),
        elem_id="settings-theme",
    )
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    page.load(None, None, [language, theme], js="() => [bianlian.language(), bianlian.theme()]", **quiet)
    language.input(None, language, None, js="value => { bianlian.setLanguage(value); }", **quiet)
    theme.input(None, theme, None, js="value => { bianlian.setTheme(value); }", **quiet)
