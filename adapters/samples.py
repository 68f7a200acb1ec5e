"""The personas shipped with the bundled base, offered once to a store: who deletes one is not given it again."""

from pathlib import Path

from adapters.manifest import AdapterVersion, digest_of, read_manifest
from adapters.settings import BUNDLED
from adapters.store import AdapterStore

PERSONAS = BUNDLED / "personas"
_OFFERED_FILE = ".offered"  # digests of the samples this store has had, one a line


def shipped_samples(base_fingerprint: str, personas: Path = PERSONAS) -> list[Path]:
    """Directories of the personas trained on this base."""
    if not personas.is_dir():
        return []
    return [
        directory
        for directory in sorted(personas.iterdir())
        if (manifest := read_manifest(directory)) is not None and manifest.base_fingerprint == base_fingerprint
    ]


def offer_samples(store: AdapterStore, base_fingerprint: str, personas: Path = PERSONAS) -> list[AdapterVersion]:
    """Publish the samples that this store has not had yet; a name of the user's own is left alone."""
    noted = store.root / _OFFERED_FILE
    offered = set(noted.read_text("ascii").split()) if noted.is_file() else set()
    published = []
    for directory in shipped_samples(base_fingerprint, personas):
        digest = digest_of(directory)
        if digest in offered:
            continue
        if not store.numbers(directory.name):
            published.append(store.publish(directory, directory.name))
        offered.add(digest)
    if offered:
        store.root.mkdir(parents=True, exist_ok=True)
        noted.write_text("\n".join(sorted(offered)), "ascii")
    return published
