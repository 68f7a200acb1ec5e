"""The tabs of the page, in the order in which they stand."""

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from adapters.settings import Settings
from adapters.ui.tab import Tab, ViewerOf
from serving.battle_store import BattleStore
from serving.battles import Battles
from serving.chat import ChatService
from serving.comparison_store import ComparisonStore
from serving.comparisons import Comparisons
from serving.conversations import Conversations
from serving.database.database import Database
from serving.files import FileStore
from serving.keys import KeyStore
from serving.lifecycle import AdapterLifecycle
from serving.metrics import HttpFigures
from serving.question_sets import QuestionSets
from serving.recent import Recent
from serving.system_prompts import SystemPrompts
from serving.ui.adapters.desk import AdapterServices
from serving.ui.adapters.tab import adapters_tab
from serving.ui.arena.services import ArenaServices
from serving.ui.arena.style import CSS as ARENA_CSS
from serving.ui.arena.tab import arena_tab
from serving.ui.arena.words import WORDS as ARENA
from serving.ui.chat.drawing import ChatServices
from serving.ui.chat.style import CSS as CHAT_CSS
from serving.ui.chat.tab import chat_tab
from serving.ui.chat.words import CHAT
from serving.ui.compare.style import CSS as COMPARE_CSS
from serving.ui.compare.tab import compare_tab
from serving.ui.compare.words import WORDS as COMPARE
from serving.ui.home.css import CSS as HOME_CSS
from serving.ui.home.tab import home_tab
from serving.ui.home.words import HOME
from serving.ui.monitor.tab import monitor_tab
from serving.ui.settings.css import CSS as SETTINGS_CSS
from serving.ui.settings.tab import SettingsServices, settings_tab
from serving.ui.settings.words import SETTINGS
from serving.usage import UsageBook
from serving.votes import VoteStore


@dataclass(frozen=True)
class Studio:
    """The services behind the tabs."""

    settings: Settings
    chat: ChatService
    viewer_of: ViewerOf
    log_in: Callable[[gr.Request, str], bool]
    database: Database
    keys: KeyStore
    usage: UsageBook
    votes: VoteStore
    conversations: Conversations
    files: FileStore
    lifecycle: AdapterLifecycle
    recent: Recent
    http: HttpFigures


def studio_tabs(studio: Studio, training: Tab) -> list[Tab]:
    """`training` is the tab of the floor beside this one."""
    prompts = SystemPrompts(studio.database)
    talk = ChatServices(studio.chat, studio.conversations, prompts, studio.files, studio.viewer_of)
    comparisons = Comparisons(studio.chat, ComparisonStore(studio.database))
    battles = Battles(studio.chat, BattleStore(studio.votes))
    arena = ArenaServices(studio.chat, battles, QuestionSets(studio.database), studio.files, studio.viewer_of)
    return [
        Tab("home", HOME, lambda page: home_tab(studio.chat, studio.viewer_of, page), HOME_CSS),
        Tab("chat", CHAT, lambda page: chat_tab(talk, page), CHAT_CSS),
        Tab("compare", COMPARE, lambda page: compare_tab(comparisons, studio.viewer_of, page), COMPARE_CSS),
        Tab("arena", ARENA, lambda page: arena_tab(arena, page), ARENA_CSS),
        training,
        adapters_tab(AdapterServices(studio.settings, studio.lifecycle, studio.files, studio.viewer_of)),
        monitor_tab(studio.recent, studio.http, studio.viewer_of),
        settings_of(studio),
    ]


def settings_of(studio: Studio) -> Tab:
    services = SettingsServices(
        studio.settings, studio.chat, studio.viewer_of, studio.keys, studio.usage, studio.log_in
    )
    return Tab("settings", SETTINGS, lambda page: settings_tab(services, page), SETTINGS_CSS)
