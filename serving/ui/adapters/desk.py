"""What the parts of the tab share: the services, who may change things, and how errors reach the page."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from adapters.errors import BianlianError
from adapters.settings import Settings
from adapters.ui.tab import ViewerOf
from adapters.ui.words import Language, language_of
from serving.files import FileStore
from serving.lifecycle import AdapterLifecycle
from serving.ui.adapters.words import ADAPTERS

TAB = "adapters"
Update = Any
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

t, say = ADAPTERS.t, ADAPTERS.say


@dataclass(frozen=True)
class AdapterServices:
    settings: Settings
    lifecycle: AdapterLifecycle
    files: FileStore
    viewer_of: ViewerOf

    async def is_admin(self, request: gr.Request) -> bool:
        return (await self.viewer_of(request)).admin

    async def admins_language(self, request: gr.Request) -> Language:
        """The language to answer in; an error on the page for who is no admin, as the API refuses them."""
        language = language_of(request)
        if not await self.is_admin(request):
            raise gr.Error(say(language, "no_admin"), print_exception=False)
        return language


@contextmanager
def shown_errors() -> Iterator[None]:
    """What services refuse inside stands on the page until it is closed, after the name of the input."""
    try:
        yield
    except BianlianError as error:
        said = f"{error.param}: {error.message}" if error.param else error.message
        raise gr.Error(said, duration=None, print_exception=False) from error
