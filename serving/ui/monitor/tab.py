"""The Monitor tab."""

import html
from typing import Any

import gradio as gr

from adapters.ui.tab import Tab, ViewerOf
from adapters.ui.words import Language, language_of
from serving.metrics import HttpFigures
from serving.recent import Recent
from serving.ui.monitor.panels import view
from serving.ui.monitor.style import CSS
from serving.ui.monitor.words import MONITOR
from serving.ui.resting import rest_while_elsewhere, tab_here

TAB = "monitor"
DRAWN_S = 1.0
RANGES = (60, 300, 900)  # seconds

t, say = MONITOR.t, MONITOR.say
Update = Any
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


def monitor_tab(recent: Recent, http: HttpFigures, viewer_of: ViewerOf) -> Tab:
    return Tab(TAB, MONITOR, lambda page: _build(Drawing(recent, http), viewer_of, page), CSS)


class Drawing:
    """The tab's HTML, made once a sample for all who look at the same range in the same language."""

    def __init__(self, recent: Recent, http: HttpFigures):
        self._recent = recent
        self._http = http
        self._made: dict[tuple[int, Language], tuple[float, str]] = {}

    def of(self, seconds: int, language: Language) -> str:
        at_s = self._recent.now.at_s
        made = self._made.get((seconds, language))
        if made is None or made[0] != at_s:
            made = at_s, view(self._recent, list(self._http.failed), seconds, language)
            self._made[seconds, language] = made
        return made[1]


def _build(drawing: Drawing, viewer_of: ViewerOf, page: gr.Blocks) -> None:
    tab = tab_here()
    seconds = gr.Radio(
        [(t(str(each)), each) for each in RANGES],
        value=RANGES[-1],
        label=t("window"),
        container=False,
        elem_id="monitor-window",
    )
    shown = gr.HTML("", elem_id="monitor-view", padding=False)
    timer = gr.Timer(DRAWN_S, active=False)

    async def draw(request: gr.Request, seconds: int) -> Update:
        """What is to be seen; nothing of it for who is no admin, whatever asks."""
        language = language_of(request)
        if not (await viewer_of(request)).admin:
            return f'<p class="mon-empty" role="alert">{html.escape(say(language, "no_admin"))}</p>'
        return drawing.of(seconds if seconds in RANGES else RANGES[-1], language)

    async def open_tab(request: gr.Request, seconds: int) -> list[Update]:
        """[the view, the clock, the range]: from here on drawn anew, for an admin."""
        admin = (await viewer_of(request)).admin
        return [await draw(request, seconds), gr.Timer(active=admin), gr.Radio(visible=admin)]

    async def arrive(request: gr.Request, seconds: int) -> list[Update]:
        if request.query_params.get("tab") != TAB:
            return [gr.skip()] * 3
        return await open_tab(request, seconds)

    page.load(arrive, seconds, [shown, timer, seconds], **_QUIET)
    tab.select(open_tab, seconds, [shown, timer, seconds], **_QUIET)
    rest_while_elsewhere(tab, timer)
    seconds.input(draw, seconds, shown, **_QUIET)
    timer.tick(draw, seconds, shown, **_QUIET)
