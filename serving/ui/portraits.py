"""A model's picture, the same in every tab."""

from contextlib import suppress

from adapters.errors import BianlianError
from adapters.manifest import AdapterVersion
from adapters.portrait import initial_uri, portrait_uri


def portrait_of(version: AdapterVersion) -> str:
    """As a data URI: its own picture, or else the first letter of its title on a colour of its own."""
    card = version.manifest.card if version.manifest else None
    if card and card.portrait:
        with suppress(BianlianError, OSError):  # attached from a directory that was not checked, or gone since
            return portrait_uri(version.directory / card.portrait)
    return initial_uri((card and card.title) or version.name)
