"""The tabs of this floor, in the order in which they stand."""

from dataclasses import dataclass

from adapters.settings import Settings
from adapters.ui.tab import Tab, ViewerOf
from serving.chat import ChatService
from serving.comparison_store import ComparisonStore
from serving.comparisons import Comparisons
from serving.database.database import Database
from serving.ui.chat_tab import chat_tab
from serving.ui.compare.tab import compare_tab
from serving.ui.compare.words import WORDS as COMPARE
from serving.ui.texts import CHAT


@dataclass(frozen=True)
class Studio:
    """The services behind the tabs."""

    settings: Settings
    chat: ChatService
    viewer_of: ViewerOf
    database: Database


def studio_tabs(studio: Studio) -> list[Tab]:
    comparisons = Comparisons(studio.chat, ComparisonStore(studio.database))
    return [
        Tab("compare", COMPARE, lambda page: compare_tab(comparisons, studio.viewer_of, page)),
        Tab("chat", CHAT, lambda page: chat_tab(studio.chat, page)),
    ]
