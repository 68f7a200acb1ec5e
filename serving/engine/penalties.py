"""What a sequence has said so far, counted as it goes: what repetition, presence and frequency penalties need."""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

_FIRST_ROOM = 64


class TokenCounts:
    """The distinct tokens of a sequence and how often its answer holds each. A step costs the tokens that are new,
    not those that were there."""

    def __init__(self, prompt: Seq[int], num_prompt: int):
        """`prompt`: the tokens that count as seen although not said. The answer begins at token `num_prompt`."""
        seen = np.unique(np.asarray(prompt, dtype=np.int64))
        self._read = num_prompt
        self._size = len(seen)
        room = max(_FIRST_ROOM, 2 * len(seen))
        self._ids = np.zeros(room, dtype=np.int64)
        self._ids[: len(seen)] = seen
        self._counts = np.zeros(room, dtype=np.float32)
        self._place = {token: place for place, token in enumerate(seen.tolist())}

    def read(self, tokens: Seq[int]) -> None:
        """Count what the sequence holds beyond the tokens read before."""
        for at in range(self._read, len(tokens)):
            place = self._place.setdefault(tokens[at], self._size)
            if place == self._size:
                self._grow()
                self._ids[place] = tokens[at]
            self._counts[place] += 1
        self._read = len(tokens)

    @property
    def ids(self) -> Tensor:
        return torch.from_numpy(self._ids[: self._size])

    @property
    def counts(self) -> Tensor:
        """Of `ids`, in the answer; 0 for tokens of the prompt alone."""
        return torch.from_numpy(self._counts[: self._size])

    def _grow(self) -> None:
        self._size += 1
        if self._size > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
