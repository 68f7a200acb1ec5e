"""Texts that are nearly the same, by MinHash: how much of their five-character pieces they share (Broder 1997)."""

import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

SIMILAR = 0.85  # Jaccard similarity from which two texts are near duplicates
_PIECE = 5  # characters
_BANDS, _ROWS = 16, 4  # two texts of similarity s meet in a band with probability 1 − (1 − s⁴)¹⁶: 0.99997 at 0.85
_PRIME = (1 << 31) - 1


def normalised(text: str) -> str:
    """What is left of a text without case, width, punctuation and space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """(later, earlier) indices of texts that are nearly the same as an earlier one; each text at most once. Texts
    that are equal character by character are not among them."""
    generator = np.random.default_rng(0)
    factors = generator.integers(1, _PRIME, _BANDS * _ROWS, dtype=np.int64)[:, None]
    offsets = generator.integers(0, _PRIME, _BANDS * _ROWS, dtype=np.int64)[:, None]
    pieces: list[frozenset[int]] = []
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    found: list[tuple[int, int]] = []
    for index, text in enumerate(texts):
        own = _pieces(normalised(text))
        pieces.append(own)
        if not own:
            continue
        hashes = np.fromiter(own, dtype=np.int64)[None, :]
        signature = ((factors * hashes + offsets) % _PRIME).min(axis=1).astype(np.int32)
        bands = [(band, signature[band * _ROWS : (band + 1) * _ROWS].tobytes()) for band in range(_BANDS)]
        candidates = sorted({other for band in bands for other in buckets[band]})
        match = next((n for n in candidates if texts[n] != text and _jaccard(own, pieces[n]) >= SIMILAR), None)
        if match is not None:
            found.append((index, match))
        elif not any(texts[n] == text for n in candidates):  # the first of its kind stands for all
            for band in bands:
                buckets[band].append(index)
    return found


def _pieces(text: str) -> frozenset[int]:
    """Hashes below the prime, so that a product of two fits into 64 bits."""
    last = max(1, len(text) - _PIECE + 1)
    return frozenset(zlib.crc32(text[i : i + _PIECE].encode()) % _PRIME for i in range(last)) if text else frozenset()


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b)
