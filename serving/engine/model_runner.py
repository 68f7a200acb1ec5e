"""ModelRunner: a batch → tensors → one forward pass → one token for every sequence that is due one.

The transformers model runs as it is, on one flat row of tokens from many sequences; only its attention is
ours (registered under a name) and its linear layers carry the adapters."""

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
from serving.engine.sequence import Batch, Chunk


class ModelRunner:
    def __init__(self, base: BaseModel, bank: AdapterBank, step: StepAdapters, kernels: Kernels):
        self.base = base
        self.bank = bank
        self.step = step
        self.kernels = kernels
        self.block_size = 0
        self.layer_shapes = probe_layers(base)
        self.cache: KVCache | None = None

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
            sum(chunk.count for chunk in ordered),
            self._segments([(chunk, 1) for chunk in due]),  # of each, its last row
            len(due),
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
        """Cache rows of the sequence's tokens up to the chunk's end, in order."""
        blocks = torch.tensor(chunk.sequence.blocks, device=self.base.device)
        offsets = torch.arange(self.block_size, device=self.base.device)
        return (blocks[:, None] * self.block_size + offsets).flatten()[: chunk.end]

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
