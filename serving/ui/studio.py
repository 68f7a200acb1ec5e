"""The tabs of this floor, in the order in which they stand."""

from dataclasses import dataclass

from adapters.settings import Settings
from adapters.ui.tab import Tab, ViewerOf
from serving.chat import ChatService
from serving.files import FileStore
from serving.lifecycle import AdapterLifecycle
from serving.metrics import HttpFigures
from serving.recent import Recent
from serving.ui.adapters.desk import AdapterServices
from serving.ui.adapters.tab import adapters_tab
from serving.ui.chat_tab import chat_tab
from serving.ui.compare_tab import compare_tab
from serving.ui.monitor.tab import monitor_tab
from serving.ui.texts import CHAT, COMPARE


@dataclass(frozen=True)
class Studio:
    """The services behind the tabs."""

    settings: Settings
    chat: ChatService
    viewer_of: ViewerOf
    lifecycle: AdapterLifecycle
    files: FileStore
    recent: Recent
    http: HttpFigures


def studio_tabs(studio: Studio) -> list[Tab]:
    return [
        Tab("compare", COMPARE, lambda page: compare_tab(studio.chat, page)),
        Tab("chat", CHAT, lambda page: chat_tab(studio.chat, page)),
        adapters_tab(AdapterServices(studio.settings, studio.lifecycle, studio.files, studio.viewer_of)),
        monitor_tab(studio.recent, studio.http, studio.viewer_of),
    ]
