"""The Adapters tab: the list on one side, the chosen adapter on the other, publishing and aliases below. A clock looks
for what has changed while the tab is shown."""

from functools import partial

import gradio as gr

from adapters.ui.tab import Tab
from serving.ui.adapters.actions import Actions, lay_out_actions, wire_actions
from serving.ui.adapters.aliases import Aliases, aliases_now, lay_out_aliases, wire_aliases
from serving.ui.adapters.browse import Browsing, ListWidgets, lay_out_list
from serving.ui.adapters.desk import QUIET, TAB, AdapterServices, Update, t
from serving.ui.adapters.style import CSS
from serving.ui.adapters.upload import Upload, lay_out_upload, wire_upload
from serving.ui.adapters.words import ADAPTERS
from serving.ui.resting import rest_while_elsewhere, tab_here

LIVE_S = 3.0
_AT_ONCE = QUIET | {"queue": False}  # looking is quick: one request, no stream


def adapters_tab(services: AdapterServices) -> Tab:
    return Tab(TAB, ADAPTERS, partial(_build, services), CSS)


def _build(services: AdapterServices, page: gr.Blocks) -> None:
    tab = tab_here()
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            listed = lay_out_list()
        with gr.Column(scale=3, min_width=300):
            actions = lay_out_actions()
    with gr.Row(visible=False, elem_id="adapters-changes") as changes:
        with gr.Column(min_width=300), gr.Accordion(t("upload"), open=False, elem_id="adapters-upload"):
            upload = lay_out_upload()
        with gr.Column(min_width=300), gr.Accordion(t("aliases"), open=False, elem_id="adapters-aliases"):
            aliases = lay_out_aliases()
    timer = gr.Timer(LIVE_S, active=False)
    browsing = Browsing(services)
    _wire_arrival(browsing, page, tab, listed, actions, aliases, changes, timer)
    _wire_looking(browsing, listed, actions, timer)
    _wire_changes(browsing, services, listed, actions, upload, aliases)
    rest_while_elsewhere(tab, timer)


def _wire_arrival(
    browsing: Browsing,
    page: gr.Blocks,
    tab: gr.Tab,
    listed: ListWidgets,
    actions: Actions,
    aliases: Aliases,
    changes: gr.Row,
    timer: gr.Timer,
) -> None:
    one = actions.one
    aliases_shown = aliases_now(browsing.services)
    outputs = [listed.chosen, *listed.drawn, *one.drawn, *one.met, changes, timer, *aliases.drawn]

    async def open_tab(request: gr.Request, text: str, where: str, at: float, chosen: str) -> list[Update]:
        name = chosen or await browsing.first(request)
        admin = await browsing.services.is_admin(request)
        return [
            name,
            *await browsing.listing(request, text, where, at, name),
            *await browsing.one(request, name),
            gr.Row(visible=admin),
            gr.Timer(active=True),
            *await aliases_shown(request),
        ]

    async def arrive(request: gr.Request, text: str, where: str, at: float, chosen: str) -> list[Update]:
        if request.query_params.get("tab") != TAB:
            return [gr.skip()] * len(outputs)
        return await open_tab(request, text, where, at, chosen)

    page.load(arrive, listed.inputs, outputs, **_AT_ONCE)
    tab.select(open_tab, listed.inputs, outputs, **_AT_ONCE)


def _wire_looking(browsing: Browsing, listed: ListWidgets, actions: Actions, timer: gr.Timer) -> None:
    one = actions.one

    async def choose(request: gr.Request, row: gr.EventData, text: str, where: str, at: float) -> list[Update]:
        """[chosen, the list, the adapter]"""
        name = str(row.name)
        found = await browsing.listing(request, text, where, at, name)
        return [name, *found, *await browsing.one(request, name)]

    async def turn(step: int, request: gr.Request, text: str, where: str, at: float, chosen: str) -> list[Update]:
        return await browsing.listing(request, text, where, at + step, chosen)

    async def forward(request: gr.Request, text: str, where: str, at: float, chosen: str) -> list[Update]:
        return await turn(1, request, text, where, at, chosen)

    async def back(request: gr.Request, text: str, where: str, at: float, chosen: str) -> list[Update]:
        return await turn(-1, request, text, where, at, chosen)

    async def search(request: gr.Request, text: str, where: str, _: float, chosen: str) -> list[Update]:
        return await browsing.listing(request, text, where, 1, chosen)

    async def refresh(
        request: gr.Request, text: str, where: str, at: float, chosen: str, number: int | None
    ) -> list[Update]:
        found = await browsing.listing(request, text, where, at, chosen)
        return [*found, *await browsing.redraw(request, chosen, number)]

    listed.rows.select(choose, listed.inputs[:3], [listed.chosen, *listed.drawn, *one.drawn, *one.met], **_AT_ONCE)
    listed.previous.click(back, listed.inputs, listed.drawn, **_AT_ONCE)
    listed.next.click(forward, listed.inputs, listed.drawn, **_AT_ONCE)
    changed = [listed.search.input, listed.where.input]
    gr.on(changed, search, listed.inputs, listed.drawn, trigger_mode="always_last", **_AT_ONCE)
    one.version.input(browsing.one, [listed.chosen, one.version], [*one.drawn, *one.met], **_AT_ONCE)
    timer.tick(refresh, [*listed.inputs, one.version], [*listed.drawn, *one.drawn], **_AT_ONCE)


def _wire_changes(
    browsing: Browsing,
    services: AdapterServices,
    listed: ListWidgets,
    actions: Actions,
    upload: Upload,
    aliases: Aliases,
) -> None:
    one = actions.one
    outputs = [listed.chosen, *listed.drawn, *one.drawn, *one.met, *aliases.drawn]
    aliases_shown = aliases_now(services)

    async def look_again(
        request: gr.Request, text: str, where: str, at: float, chosen: str, number: int | None
    ) -> list[Update]:
        found = await browsing.listing(request, text, where, at, chosen)
        drawn = await browsing.one(request, chosen, number)
        return [chosen, *found, *drawn, *await aliases_shown(request)]

    async def meet_new(request: gr.Request, name: str) -> list[Update]:
        """[search, state, *outputs]: the one that was just published."""
        await services.admins_language(request)
        return ["", "", *await look_again(request, "", "", 1, name, None)]

    def after(event: gr.events.Dependency) -> None:
        event.success(look_again, [*listed.inputs, one.version], outputs, **QUIET)

    wire_actions(services, actions, listed.chosen, after)
    published = wire_upload(services, upload)
    published.success(meet_new, upload.done, [listed.search, listed.where, *outputs], **QUIET)
    wire_aliases(services, aliases)
