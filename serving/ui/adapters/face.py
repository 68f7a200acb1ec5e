"""The face of an adapter in this tab."""

import html

from adapters.manifest import AdapterVersion
from serving.ui.portraits import portrait_of


def face(name: str, version: AdapterVersion | None) -> str:
    """HTML, for the eye only: the name stands beside it. A letter where there is no version to show."""
    if version:
        return f'<img class="ad-face" src="{portrait_of(version)}" alt="">'
    return f'<span class="ad-face" aria-hidden="true">{html.escape(name[0].upper())}</span>'
