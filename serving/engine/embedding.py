"""LoRAEmbedding: the base's input embedding plus, for each row, what that row's adapters change in it."""

from collections.abc import Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serving.engine.lora import Delta, StepAdapters


class LoRAEmbedding(nn.Module):
    """`base` is the model's own embedding. `head` names the output layer that shares its weight, if one does."""

    def __init__(self, base: nn.Module, step: StepAdapters, *, head: str | None):
        super().__init__()
        self.base = base
        self.step = step
        self.head = head
        self.version = 0
        self._deltas: dict[int, Delta] = {}  # by slot

    @property
    def weight(self) -> Tensor:
        """(vocabulary, width)"""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight.detach()

    @property
    def dense_slots(self) -> Set[int]:
        """Those whose adapter changes the embedding."""
        return self._deltas.keys()

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.base(ids)
        rows = self.step.rows
        if not self._deltas.keys().isdisjoint(rows.slots):
            flat_out, flat_ids = out.view(-1, out.shape[-1]), ids.reshape(-1)
            for segment in rows.segments:
                here = slice(segment.start, segment.end)
                base = flat_out[here].to(torch.float32, copy=True)
                change = torch.zeros_like(base)
                for slot, scale in segment.slots:
                    if slot in self._deltas:
                        change += scale * self._change(base, flat_ids[here], self._deltas[slot])
                flat_out[here] = base + change
        return out

    def load(self, slot: int, member: str, delta: Delta) -> None:
        self._deltas[slot] = delta
        self.version += 1

    def unload(self, slot: int) -> None:
        if self._deltas.pop(slot, None):
            self.version += 1

    def base_weight(self, member: str) -> Tensor:
        """The embedding as a linear layer of one-hot tokens, dense float32 (width, vocabulary)."""
        return self.weight.T.float()

    def base_bias(self, member: str) -> None:
        return None

    def _change(self, base: Tensor, ids: Tensor, delta: Delta) -> Tensor:
        """What the adapter changes in base (rows, width), the embeddings of ids (rows,), at strength 1."""
        # Gemma multiplies its embeddings; what stands in their place is multiplied alike.
        factor = getattr(self.base, "embed_scale", 1.0)
        change = torch.zeros_like(base)
        if delta.gain is not None:
            change += (delta.gain - 1) * base
        if delta.a is not None and delta.b is not None:
            change += factor * (delta.a[:, ids].T @ delta.b).float()
        if delta.weight is not None and delta.tokens is None:
            change += factor * F.embedding(ids, delta.weight).float() - base
        elif delta.weight is not None and delta.tokens is not None:
            same = ids[:, None] == delta.tokens
            instead = factor * F.embedding(same.int().argmax(dim=1), delta.weight).float() - base
            change += torch.where(same.any(dim=1)[:, None], instead, 0.0)
        return change
