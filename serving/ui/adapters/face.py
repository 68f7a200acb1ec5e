"""The face of an adapter on the page: its portrait, or else its first letter."""

import base64
import html
from functools import lru_cache

from adapters.manifest import AdapterVersion
from adapters.settings import BUNDLED

PORTRAITS = BUNDLED / "portraits"


def face(name: str, version: AdapterVersion | None) -> str:
    """HTML, for the eye only: the name stands beside it."""
    if version and version.manifest and (uri := _portrait(name)):
        return f'<img class="ad-face" src="{uri}" alt="">'
    title = version.manifest.card.title if version and version.manifest else ""
    return f'<span class="ad-face" aria-hidden="true">{html.escape((title or name)[0].upper())}</span>'


@lru_cache(maxsize=64)
def _portrait(name: str) -> str | None:
    path = PORTRAITS / f"{name}.svg"
    if not path.is_file():
        return None
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
