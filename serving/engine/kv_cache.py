"""Keys and values of running sequences, in blocks. BlockPool does the accounting (which block belongs to whom,
which full blocks can be shared); KVCache holds the tensors.

A block may be shared only by sequences whose tokens up to its end and whose adapter mix are the same: keys
computed under one adapter are wrong under every other, and under another strength of the same one."""

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.engine.sequence import AdapterMix, Sequence

BlockKey = tuple[int, AdapterMix, tuple[int, ...]]  # id of the block before (-1: none), mix, tokens


class BlockPool:
    """Blocks by number. A freed block keeps its contents, and its place in the prefix cache, until it is
    taken for something else, least recently freed first."""

    def __init__(self, num_blocks: int, block_size: int, *, share_prefixes: bool = True):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.share_prefixes = share_prefixes
        self._users = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        # A cached block is named by its generation, which is never used twice: a chain that runs through a
        # block overwritten in the meantime finds nothing.
        self._generation = 0
        self._by_key: dict[BlockKey, tuple[int, int]] = {}  # key → (block, generation)
        self._key_of: dict[int, BlockKey] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give the sequence room for its first `num_tokens` tokens; False (and no change) when the pool is short."""
        missing = self.blocks_for(num_tokens) - len(sequence.blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._users[block] = 1
            sequence.blocks.append(block)
        return True

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back, the last first, so that the beginnings of prompts stay shareable longest."""
        for block in reversed(sequence.blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free[block] = None
        sequence.blocks = []
        sequence.num_shared, sequence.last_shared = 0, -1

    def reuse_prefix(self, sequence: Sequence) -> int:
        """Give a sequence without blocks every cached block that fits its beginning; returns the tokens covered.
        At least one token is left to compute, because the next token comes from the last one's logits; all are of a
        prompt that is to be scored or embedded."""
        if not self.share_prefixes or sequence.needs_whole_prompt:
            return 0
        parent = -1
        for number in range((len(sequence.tokens) - 1) // self.block_size):
            found = self._by_key.get(self._key(sequence, number, parent))
            if found is None:
                break
            block, parent = found
            self._free.pop(block, None)
            self._users[block] += 1
            sequence.blocks.append(block)
        sequence.num_shared, sequence.last_shared = len(sequence.blocks), parent
        return len(sequence.blocks) * self.block_size

    def share(self, sequence: Sequence) -> None:
        """Offer the sequence's full, computed blocks to later ones with the same beginning and mix."""
        if not self.share_prefixes:
            return
        parent = sequence.last_shared
        for number in range(sequence.num_shared, sequence.num_computed // self.block_size):
            key = self._key(sequence, number, parent)
            found = self._by_key.get(key)
            if found is None:
                block = sequence.blocks[number]
                self._forget(block)
                self._generation += 1
                found = (block, self._generation)
                self._by_key[key] = found
                self._key_of[block] = key
            parent = found[1]
            sequence.num_shared, sequence.last_shared = number + 1, parent

    def forget_adapter(self, digest: str) -> None:
        """Drop every cached block computed under the adapter."""
        for block, key in list(self._key_of.items()):
            if any(used == digest for used, _ in key[1]):
                self._forget(block)

    def _key(self, sequence: Sequence, number: int, parent: int) -> BlockKey:
        start = number * self.block_size
        return parent, sequence.request.mix, tuple(sequence.tokens[start : start + self.block_size])

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._by_key[key]


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer keeps for a token."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class LayerCache:
    keys: Tensor  # (kv_heads, num_blocks · block_size, key_dim): gathered rows are then ready for a matrix product
    values: Tensor  # (kv_heads, num_blocks · block_size, value_dim)


class KVCache:
    """The tensors behind a BlockPool: one LayerCache a layer, preallocated."""

    def __init__(
        self, shapes: Seq[LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ):
        tokens = num_blocks * block_size
        self.layers = [
            LayerCache(
                keys=torch.zeros(shape.kv_heads, tokens, shape.key_dim, dtype=dtype, device=device),
                values=torch.zeros(shape.kv_heads, tokens, shape.value_dim, dtype=dtype, device=device),
            )
            for shape in shapes
        ]

    @staticmethod
    def bytes_per_token(shapes: Seq[LayerShape], dtype: torch.dtype) -> int:
        return sum(shape.kv_heads * (shape.key_dim + shape.value_dim) for shape in shapes) * dtype.itemsize
