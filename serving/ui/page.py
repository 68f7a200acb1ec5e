"""The page: a headline and its tabs."""

import gradio as gr

from serving.chat import ChatService
from serving.ui.chat_tab import chat_tab
from serving.ui.compare_tab import compare_tab
from serving.ui.texts import t

MAX_EVENTS = 100  # Gradio runs 40 at once unless told, streams included

HEADLINE = """<div class="headline"><h1><span class="face">变脸</span> Bianlian</h1><p>{}</p></div>"""


def build_page(chat: ChatService) -> gr.Blocks:
    with gr.Blocks(title="变脸 Bianlian", analytics_enabled=False) as page:
        gr.HTML(HEADLINE.format(t("subtitle")), elem_id="head", padding=False)
        with gr.Tabs():
            with gr.Tab(t("tab_compare"), id="compare", elem_id="tab-compare"):
                compare_tab(chat, page)
            with gr.Tab(t("tab_chat"), id="chat", elem_id="tab-chat"):
                chat_tab(chat, page)
    page.max_threads = MAX_EVENTS
    page.queue(default_concurrency_limit=None)  # the engine has its own queue, and says so when it is full
    return page
