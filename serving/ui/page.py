"""The page: a headline and its tabs."""

from collections.abc import Sequence

import gradio as gr

from adapters.ui.tab import Tab
from serving.ui.texts import t

MAX_EVENTS = 100  # Gradio runs 40 at once unless told, streams included
UPLOADS_KEPT_S = (3600, 86_400)  # looked at once an hour; what is a day old goes

HEADLINE = """<div class="headline"><h1><span class="face">变脸</span> Bianlian</h1><p>{}</p></div>"""


def build_page(tabs: Sequence[Tab]) -> gr.Blocks:
    """The tabs in their order. The first is shown unless the address names another: `?tab=ID`."""
    known = [tab.id for tab in tabs]

    def chosen(request: gr.Request) -> gr.Tabs:
        wanted = request.query_params.get("tab")
        return gr.Tabs(selected=wanted) if wanted in known else gr.skip()

    with gr.Blocks(title="变脸 Bianlian", analytics_enabled=False, delete_cache=UPLOADS_KEPT_S) as page:
        gr.HTML(HEADLINE.format(t("subtitle")), elem_id="head", padding=False)
        with gr.Tabs(elem_id="studio-tabs", overflow_behavior="wrap") as shown:
            for tab in tabs:
                with gr.Tab(tab.words.t("title"), id=tab.id, elem_id=f"tab-{tab.id}"):
                    tab.build(page)
        page.load(chosen, None, shown, queue=False, api_visibility="private", show_progress="hidden")
    page.max_threads = MAX_EVENTS
    page.queue(default_concurrency_limit=None)  # the engine has its own queue, and says so when it is full
    return page
