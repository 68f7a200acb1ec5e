"""The plain model that a neural one has to beat: a character n-gram with interpolated, modified Kneser–Ney smoothing
(Chen and Goodman 1998, "An empirical study of smoothing techniques for language modeling", equations 25 to 28).

Characters rather than bytes, since five bytes are less than two Chinese characters. Below the single characters lies
an even chance for every character that UTF-8 can write, so nothing is impossible and the bits of any text are exact.
Arrays hold all of it: 90 MB of text take four GB and some minutes while it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.pretrain.corpus import Document, said

ORDER = 5
WRITABLE = 0x110000 - 0x800  # characters UTF-8 can write: all code points but the surrogates
# Marks of a conversation, numbered after the last code point. They are given as context and never guessed.
START = 0x110000
ROLES = {"system": START + 1, "user": START + 2, "assistant": START + 3}
_WIDTH = START + 4

Symbols = NDArray[np.int64]  # code points and marks
Floats = NDArray[np.float64]


def symbols_of(documents: Iterable[Document], order: int = ORDER) -> Symbols:
    """All documents one after the other, each behind enough start marks that it sees nothing of the one before."""
    pieces: list[Symbols] = []
    for document in documents:
        pieces.append(np.full(order - 1, START, dtype=np.int64))
        roles = [] if "text" in document else [message["role"] for message in document["messages"]]
        for index, text in enumerate(said(document)):
            if roles:
                pieces.append(np.array([ROLES[roles[index]]], dtype=np.int64))
            pieces.append(np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64))
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length. An n-gram's number is its place in `keys`; its key is made of the number of all but
    its last symbol (its context, an n-gram of the level below) and that symbol."""

    keys: Symbols  # sorted
    kept: Floats  # (n-grams): discounted share of its context's count
    left: Floats  # (contexts): what discounting leaves for the level below


@dataclass(frozen=True)
class NGram:
    levels: tuple[_Level, ...]

    @classmethod
    def train(
        cls, documents: Iterable[Document], order: int = ORDER, level_done: Callable[[], None] = lambda: None
    ) -> NGram:
        """`level_done` is called after each of the `order` lengths."""
        symbols = symbols_of(documents, order)
        if not symbols.size:
            raise ValueError("an n-gram needs at least one document to learn from")
        numbers = np.zeros(len(symbols), dtype=np.int64)  # of the n-gram that ends at each place
        all_keys: list[Symbols] = []
        counts: list[NDArray[np.int64]] = []
        for length in range(1, order + 1):
            shorter = numbers
            keys, numbers, an_occurrence, occurrences = _numbered(_keys(shorter, symbols))
            if length > 1:
                # Below the longest, an n-gram counts once for each different symbol before it (Kneser and Ney 1995).
                counts.append(np.bincount(shorter[an_occurrence], minlength=len(all_keys[-1])))
            all_keys.append(keys)
            level_done()
        counts.append(occurrences)
        contexts = [1, *map(len, all_keys)]
        return cls(tuple(map(_level, all_keys, counts, contexts)))

    def probabilities(self, symbols: Symbols) -> Floats:
        """Of each symbol after the ones before it. Those of marks mean nothing."""
        chance = np.full(len(symbols), 1 / WRITABLE)
        numbers = np.zeros(len(symbols), dtype=np.int64)
        for level in self.levels:
            contexts = _before(numbers)
            keys = contexts * _WIDTH + symbols
            places = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
            found = level.keys[places] == keys
            numbers = np.where(found, places, -1)
            # A context never seen passes everything on to the level below.
            chance = np.where(found, level.kept[places], 0) + np.where(contexts >= 0, level.left[contexts], 1) * chance
        return chance

    def bits_per_byte(self, documents: list[Document]) -> float:
        """Over at least one document. As in `bits.bits_per_byte`, roles and marks are given, not guessed."""
        symbols = symbols_of(documents, len(self.levels))
        chance = self.probabilities(symbols)[symbols < START]
        size = sum(len(text.encode()) for document in documents for text in said(document))
        return float(-np.log2(chance).sum()) / size


def _before(numbers: Symbols) -> Symbols:
    return np.concatenate([numbers[:1], numbers[:-1]])


def _keys(shorter: Symbols, symbols: Symbols) -> Symbols:
    keys = _before(shorter)
    keys *= _WIDTH
    keys += symbols
    return keys


def _numbered(keys: Symbols) -> tuple[Symbols, Symbols, Symbols, NDArray[np.int64]]:
    """Sorted distinct keys; the number of each key among them; a place where each occurs; how often each does."""
    order = np.argsort(keys)
    ordered = keys[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    distinct, an_occurrence = ordered[first], order[first]
    occurrences = np.diff(first, append=len(keys))
    del ordered
    numbers = np.empty(len(keys), dtype=np.int64)
    numbers[order] = np.repeat(np.arange(len(first)), occurrences)
    return distinct, numbers, an_occurrence, occurrences


def _level(keys: Symbols, counts: NDArray[np.int64], contexts: int) -> _Level:
    counts = np.where(keys % _WIDTH < START, counts, 0)
    context = keys // _WIDTH
    total = np.bincount(context, weights=counts, minlength=contexts)
    discount = _discounts(counts)[np.minimum(counts, 3)]
    spared = np.bincount(context, weights=discount, minlength=contexts)
    seen = total > 0
    left = np.divide(spared, total, out=np.ones(contexts), where=seen)
    return _Level(keys, (counts - discount) / np.where(seen, total, 1)[context], left)


def _discounts(counts: NDArray[np.int64]) -> Floats:
    """What is taken from n-grams counted 0, 1, 2, and 3 times or more."""
    n1, n2, n3, n4 = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    usual = np.array([0.0, 0.5, 1.0, 1.5])  # where there is too little text to estimate them
    if not (n1 and n2 and n3):
        return usual
    y = n1 / (n1 + 2 * n2)
    estimated = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return estimated if (estimated[1:] > 0).all() else usual
