"""The tabs of this floor, in the order in which they stand."""

from dataclasses import dataclass

from adapters.settings import Settings
from adapters.ui.tab import Tab, ViewerOf
from serving.chat import ChatService
from serving.conversations import Conversations
from serving.files import FileStore
from serving.system_prompts import SystemPrompts
from serving.ui.chat.drawing import ChatServices
from serving.ui.chat.tab import chat_tab
from serving.ui.chat.words import CHAT
from serving.ui.compare_tab import compare_tab
from serving.ui.texts import COMPARE


@dataclass(frozen=True)
class Studio:
    """The services behind the tabs."""

    settings: Settings
    chat: ChatService
    viewer_of: ViewerOf
    conversations: Conversations
    prompts: SystemPrompts
    files: FileStore


def studio_tabs(studio: Studio) -> list[Tab]:
    talk = ChatServices(studio.chat, studio.conversations, studio.prompts, studio.files, studio.viewer_of)
    return [
        Tab("compare", COMPARE, lambda page: compare_tab(studio.chat, page)),
        Tab("chat", CHAT, lambda page: chat_tab(talk, page)),
    ]
