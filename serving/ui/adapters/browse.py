"""Looking at adapters: the list that is searched and turned over page by page, and the one that was chosen.

The server remembers nothing of a visitor: what is searched, shown and chosen is on the page, and the choice also in its
address."""

import asyncio
import html
from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr

from adapters.errors import NotFound
from adapters.ui.words import Language, language_of
from serving.lifecycle import AdapterInfo, Found, VersionInfo, Where
from serving.ui.adapters.desk import TAB, AdapterServices, Update, say, t
from serving.ui.adapters.detail import detail
from serving.ui.adapters.listing import CHOOSING, PAGE, pager, pages, rows, summary

WHERE: tuple[Where, ...] = get_args(Where)


@dataclass(frozen=True)
class ListWidgets:
    summary: gr.HTML
    search: gr.Textbox
    where: gr.Dropdown
    rows: gr.HTML
    previous: gr.Button
    pager: gr.HTML
    next: gr.Button
    page: gr.Number  # hidden; from 1
    chosen: gr.Textbox  # hidden; a name

    @property
    def inputs(self) -> list[Any]:
        return [self.search, self.where, self.page, self.chosen]

    @property
    def drawn(self) -> list[Any]:
        return [self.summary, self.rows, self.pager, self.page, self.previous, self.next]


@dataclass(frozen=True)
class One:
    """The chosen adapter, and what is done with it. `drawn` changes with its state, `met` only when it is another."""

    detail: gr.HTML
    column: gr.Column
    version: gr.Dropdown
    pin: gr.Button
    unpin: gr.Button
    make_current: gr.Button
    delete: gr.Accordion
    confirm: gr.Textbox
    force: gr.Checkbox
    download: gr.DownloadButton

    @property
    def drawn(self) -> list[Any]:
        return [self.detail, self.column, self.pin, self.unpin, self.make_current]

    @property
    def met(self) -> list[Any]:
        return [self.version, self.delete, self.confirm, self.force, self.download]


def lay_out_list() -> ListWidgets:
    summary_line = gr.HTML("", elem_id="adapters-summary", padding=False)
    with gr.Row(elem_id="adapters-filter"):
        search = gr.Textbox(
            "", label=t("search"), placeholder=t("search_hint"), scale=3, min_width=150, elem_id="adapters-search"
        )
        where = gr.Dropdown(
            [(t("all"), ""), *((t(each), each) for each in WHERE)],
            value="",
            label=t("where"),
            scale=2,
            min_width=120,
            elem_id="adapters-where",
        )
    listed = gr.HTML("", js_on_load=CHOOSING, elem_id="adapters-list", padding=False)
    with gr.Row(elem_id="adapters-pager"):
        previous = gr.Button(t("previous"), size="sm", min_width=80, elem_id="adapters-previous")
        numbers = gr.HTML("", padding=False)
        following = gr.Button(t("next"), size="sm", min_width=80, elem_id="adapters-next")
    page = gr.Number(1, label=t("page"), visible=False, precision=0)
    chosen = gr.Textbox("", label=t("chosen"), visible=False)
    return ListWidgets(summary_line, search, where, listed, previous, numbers, following, page, chosen)


class Browsing:
    def __init__(self, services: AdapterServices):
        self.services = services
        self.lifecycle = services.lifecycle

    async def listing(self, request: gr.Request, text: str, where: str, page: float, chosen: str) -> list[Update]:
        """`ListWidgets.drawn`"""
        language, admin = language_of(request), await self.services.is_admin(request)
        at = max(1, int(page or 1))
        found = await asyncio.to_thread(self._find, text, where, at, admin)
        if at > pages(found.total):  # something was deleted, or the search is narrower now
            at = pages(found.total)
            found = await asyncio.to_thread(self._find, text, where, at, admin)
        searched = bool(text.strip() or where)
        return [
            summary(self.lifecycle, found.total, language, admin=admin),
            await asyncio.to_thread(rows, self.lifecycle, found, chosen, language, admin=admin, searched=searched),
            pager(found.total, at, language),
            at,
            gr.Button(interactive=at > 1),
            gr.Button(interactive=at < pages(found.total)),
        ]

    async def one(self, request: gr.Request, name: str, number: int | None = None) -> list[Update]:
        """`One.drawn`, `One.met`: of the version, or else the current one."""
        language, admin = language_of(request), await self.services.is_admin(request)
        adapter, shown = await self._shown(name, number, admin)
        drawn = await self._drawn(name, adapter, shown, language, admin)
        if adapter is None or shown is None:
            return [*drawn, *[gr.skip()] * 5]
        versions = sorted(adapter.versions, key=lambda version: -version.number)
        return [
            *drawn,
            gr.Dropdown(choices=[(version.id, version.number) for version in versions], value=shown.number),
            gr.Accordion(open=False),
            gr.Textbox("", info=_what_to_type(adapter, shown, language)),
            False,
            gr.DownloadButton(visible=False),
        ]

    async def redraw(self, request: gr.Request, name: str, number: int | None) -> list[Update]:
        """`One.drawn`: the same version, as it is now."""
        language, admin = language_of(request), await self.services.is_admin(request)
        adapter, shown = await self._shown(name, number, admin)
        return await self._drawn(name, adapter, shown, language, admin)

    async def first(self, request: gr.Request) -> str:
        """Whom to show to a visitor who has not chosen: the address's, or else the first; "" when there is none."""
        wanted: str | None = request.query_params.get("adapter") if request.query_params.get("tab") == TAB else None
        if wanted:
            return wanted.partition("@")[0]
        found = await asyncio.to_thread(self._find, "", "", 1, await self.services.is_admin(request))
        return found.adapters[0].name if found.adapters else ""

    def _find(self, text: str, where: str, page: int, admin: bool) -> Found:
        state = next((each for each in WHERE if each == where), None)
        return self.lifecycle.find(text, where=state, offset=(page - 1) * PAGE, limit=PAGE, offered=not admin)

    async def _shown(self, name: str, number: int | None, admin: bool) -> tuple[AdapterInfo | None, VersionInfo | None]:
        """The adapter and one of its versions, for who is no admin the one that is offered; None for what is not
        there."""
        if not name:
            return None, None
        try:
            adapter = await asyncio.to_thread(self.lifecycle.get, name)
        except NotFound:
            return None, None
        offered = adapter.now
        if not admin:
            return (adapter, offered) if offered else (None, None)
        newest = max(adapter.versions, key=lambda version: version.number, default=None)
        asked = next((version for version in adapter.versions if version.number == number), None)
        return adapter, asked or offered or newest

    async def _drawn(
        self, name: str, adapter: AdapterInfo | None, shown: VersionInfo | None, language: Language, admin: bool
    ) -> list[Update]:
        if adapter is None or shown is None:
            text = say(language, "gone", name=name) if name else say(language, "choose")
            nothing = f'<p class="ad-empty">{html.escape(text)}</p>'
            return [nothing, gr.Column(visible=False), *[gr.skip()] * 3]
        base = self.lifecycle.chat.base.name
        version = await asyncio.to_thread(self.lifecycle.version, name, shown.number)
        return [
            detail(adapter, shown, version, base, language, admin=admin),
            gr.Column(visible=admin),
            gr.Button(visible=not shown.pinned),
            gr.Button(visible=shown.pinned),
            gr.Button(interactive=not shown.current and not adapter.attached and not shown.problem),
        ]


def _what_to_type(adapter: AdapterInfo, shown: VersionInfo, language: Language) -> str:
    if adapter.attached and shown.current:
        return say(language, "confirm_attached", version=shown.id)
    return say(language, "confirm_info", version=shown.id, name=adapter.name, count=len(adapter.versions))
