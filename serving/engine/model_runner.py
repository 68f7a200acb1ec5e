"""ModelRunner: a batch → tensors → one forward pass → one token for every sequence that is due one.

The transformers model runs as it is, on one flat row of tokens from many sequences; only its attention is
ours (registered under a name) and its linear layers carry the adapters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.base_model import BaseModel
from serving.engine.attention import StepInput
from serving.engine.bank import AdapterBank
from serving.engine.cuda_graphs import DecodeGraphs, GraphRecorder, Limits
from serving.engine.install import probe_layers
from serving.engine.kernels import CapturingKernels, Kernels
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
        self.graphs: DecodeGraphs | None = None

    def allocate(self, num_blocks: int, block_size: int, *, max_rows: int, max_len: int) -> None:
        """Set memory aside for the cache, and for steps of at most `max_rows` sequences of `max_len` tokens."""
        self.block_size = block_size
        # One block more than sequences get: what fills up a captured step is written there.
        self.cache = KVCache(self.layer_shapes, num_blocks + 1, block_size, self.base.dtype, self.base.device)
        if self.base.device.type == "cuda" and isinstance(self.kernels, CapturingKernels):
            limits = Limits(max_rows, -(-max_len // block_size), block_size, scratch_block=num_blocks)
            self.graphs = DecodeGraphs(self.base.model, self.cache, self.kernels, self.step, limits, GraphRecorder())

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[tuple[Chunk, Sampled]]:
        """Compute every chunk; sample for those that reach their sequence's end."""
        # Rows with the same adapters lie together: each adapter is then one matrix product a layer.
        ordered = sorted(batch, key=lambda chunk: chunk.sequence.request.mix)
        due = [chunk for chunk in ordered if chunk.samples]
        logits = self._run_captured(ordered)
        if logits is None:
            self.step.begin(self._segments(ordered), sum(chunk.count for chunk in ordered))
            try:
                logits = self._forward(ordered)
            finally:
                self.step.end()
        sampled = sample(logits, [chunk.sequence for chunk in due], self.base.stop_token_ids)
        return list(zip(due, sampled, strict=True))

    def _run_captured(self, batch: Batch) -> Tensor | None:
        """As `_forward`, from a CUDA graph; None when the step has none."""
        logits = self.graphs.run(batch, self._segments(batch)) if self.graphs else None
        if logits is None or all(chunk.samples for chunk in batch):
            return logits
        return logits[[row for row, chunk in enumerate(batch) if chunk.samples]]

    def _forward(self, batch: Batch) -> Tensor:
        """Logits (due rows, vocabulary)."""
        assert self.cache is not None
        device = self.base.device
        tokens: list[int] = []
        positions: list[int] = []
        last_rows: list[int] = []
        kept = self._kept_at(batch)
        spans: list[Span] = []
        slots: list[Tensor] = []
        for chunk, places in zip(batch, kept, strict=True):
            row = len(tokens)
            tokens += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            spans.append(Span(row, chunk.count, chunk.end, places))
            slots.append(places[chunk.start :])
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

    def _kept_at(self, batch: Batch) -> Sequence[Tensor]:
        """For each chunk, the cache rows of its sequence's tokens up to the chunk's end, in order. Worked out
        on the host; they reach the device in one copy."""
        within = torch.arange(self.block_size)
        blocks = [torch.tensor(chunk.sequence.blocks) for chunk in batch]
        kept = [
            (mine[:, None] * self.block_size + within).flatten()[: chunk.end]
            for mine, chunk in zip(blocks, batch, strict=True)
        ]
        on_device = torch.cat(kept).to(self.base.device)
        return torch.split(on_device, [len(places) for places in kept])

    def _segments(self, batch: Batch) -> list[RowSegment]:
        segments: list[RowSegment] = []
        row = 0
        for chunk in batch:
            end = row + chunk.count
            slots = tuple((self.bank.slot(digest), scale) for digest, scale in chunk.sequence.request.mix)
            if segments and segments[-1].slots == slots and segments[-1].end == row:
                segments[-1] = RowSegment(segments[-1].start, end, slots)
            elif slots:
                segments.append(RowSegment(row, end, slots))
            row = end
        return segments
