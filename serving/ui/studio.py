"""The tabs of this floor, in the order in which they stand."""

from dataclasses import dataclass

from adapters.settings import Settings
from adapters.ui.tab import Tab, ViewerOf
from serving.battle_store import BattleStore
from serving.battles import Battles
from serving.chat import ChatService
from serving.files import FileStore
from serving.question_sets import QuestionSets
from serving.ui.arena.services import ArenaServices
from serving.ui.arena.tab import arena_tab
from serving.ui.arena.words import WORDS as ARENA
from serving.ui.chat_tab import chat_tab
from serving.ui.compare_tab import compare_tab
from serving.ui.texts import CHAT, COMPARE
from serving.votes import VoteStore


@dataclass(frozen=True)
class Studio:
    """The services behind the tabs."""

    settings: Settings
    chat: ChatService
    viewer_of: ViewerOf
    votes: VoteStore
    files: FileStore


def studio_tabs(studio: Studio) -> list[Tab]:
    battles = Battles(studio.chat, BattleStore(studio.votes))
    arena = ArenaServices(studio.chat, battles, QuestionSets(studio.votes.database), studio.files, studio.viewer_of)
    return [
        Tab("compare", COMPARE, lambda page: compare_tab(studio.chat, page)),
        Tab("chat", CHAT, lambda page: chat_tab(studio.chat, page)),
        Tab("arena", ARENA, lambda page: arena_tab(arena, page)),
    ]
