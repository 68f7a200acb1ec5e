"""ModelRunner: a batch → tensors → one forward pass → one token for every sequence that is due one.

The transformers model runs as it is, on one flat row of tokens from many sequences; only its attention is
ours (registered under a name) and its linear layers carry the adapters."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from adapters.base_model import BaseModel
from serving.engine.attention import StepInput
from serving.engine.bank import AdapterBank
from serving.engine.install import probe_layers
from serving.engine.kernels import Kernels
from serving.engine.kernels.plan import AttentionPlan, Span
from serving.engine.kv_cache import KVCache
from serving.engine.lora import RowSegment, StepAdapters
from serving.engine.sampler import Sampled, sample
from serving.engine.sequence import Batch, Chunk, Sequence


class _KeptRows:
    """Where in the cache one sequence's tokens are; grows with its blocks."""

    def __init__(self, blocks: list[int], block_size: int, device: torch.device):
        self.blocks = blocks
        self._offsets = torch.arange(block_size, device=device)
        self._rows = self._offsets.new_empty(0)
        self._known = 0  # blocks

    def until(self, end: int) -> Tensor:
        if new := self.blocks[self._known :]:
            size = len(self._offsets)
            if len(self.blocks) * size > len(self._rows):
                self._rows = torch.cat([self._rows, self._rows.new_empty(2 * len(self.blocks) * size)])
            starts = torch.tensor(new, device=self._offsets.device)[:, None] * size
            self._rows[self._known * size : len(self.blocks) * size] = (starts + self._offsets).flatten()
            self._known = len(self.blocks)
        return self._rows[:end]


class ModelRunner:
    def __init__(self, base: BaseModel, bank: AdapterBank, step: StepAdapters, kernels: Kernels):
        self.base = base
        self.bank = bank
        self.step = step
        self.kernels = kernels
        self.block_size = 0
        self.layer_shapes = probe_layers(base)
        self.cache: KVCache | None = None
        self._kept: WeakKeyDictionary[Sequence, _KeptRows] = WeakKeyDictionary()

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.cache = KVCache(self.layer_shapes, num_blocks, block_size, self.base.dtype, self.base.device)

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[tuple[Chunk, Sampled]]:
        """Compute every chunk; sample for those that reach their sequence's end."""
        # Rows with the same adapters lie together: each adapter is then one matrix product a layer.
        ordered = sorted(batch, key=lambda chunk: chunk.sequence.request.mix)
        due = [chunk for chunk in ordered if chunk.samples]
        self.step.begin(
            self._segments([(chunk, chunk.count) for chunk in ordered]),
            self._segments([(chunk, 1) for chunk in due]),  # of each, its last row
        )
        try:
            logits = self._forward(ordered)
        finally:
            self.step.end()
        sampled = sample(logits, [chunk.sequence for chunk in due], self.base.stop_token_ids)
        return list(zip(due, sampled, strict=True))

    def _forward(self, batch: Batch) -> Tensor:
        """Logits (due rows, vocabulary)."""
        assert self.cache is not None
        device = self.base.device
        tokens: list[int] = []
        positions: list[int] = []
        last_rows: list[int] = []
        spans: list[Span] = []
        slots: list[Tensor] = []
        for chunk in batch:
            row = len(tokens)
            tokens += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            kept = self._kept_at(chunk)
            spans.append(Span(row, chunk.count, chunk.end, kept))
            slots.append(kept[chunk.start :])
            if chunk.samples:
                last_rows.append(len(tokens) - 1)
        step_input = StepInput(self.kernels, self.cache, AttentionPlan(spans), torch.cat(slots))
        out = self.base.model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(last_rows, device=device, dtype=torch.long),
            step_input=step_input,
        )
        logits: Tensor = out.logits[0]
        return logits

    def _kept_at(self, chunk: Chunk) -> Tensor:
        """(chunk's end,) int64: cache rows of the sequence's tokens up to there, in order; contiguous. Kept between
        steps, so that a token costs the same however long its past is."""
        sequence = chunk.sequence
        kept = self._kept.get(sequence)
        if kept is None or kept.blocks is not sequence.blocks:  # its first step, or its blocks were taken meanwhile
            kept = self._kept[sequence] = _KeptRows(sequence.blocks, self.block_size, self.base.device)
        return kept.until(chunk.end)

    def _segments(self, counts: list[tuple[Chunk, int]]) -> list[RowSegment]:
        """Which rows use which slots, when each chunk has `count` of them."""
        segments: list[RowSegment] = []
        row = 0
        for chunk, count in counts:
            end = row + count
            slots = tuple((self.bank.slot(digest), scale) for digest, scale in chunk.sequence.request.mix)
            if segments and segments[-1].slots == slots and segments[-1].end == row:
                segments[-1] = RowSegment(segments[-1].start, end, slots)
            elif slots and count:
                segments.append(RowSegment(row, end, slots))
            row = end
        return segments
