"""ModelRunner: a batch → tensors → one forward pass → one token for every sequence that is due one, and
log-probabilities and sums of hidden states for prompts that are to be scored or embedded.

The transformers model runs as it is, on one flat row of tokens from many sequences; only its attention is
ours (registered under a name) and its linear layers carry the adapters."""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

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
from serving.engine.sampler import Sampled, sample, token_logprobs
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
        """Compute every chunk; sample for those that reach their sequence's end. Prompts to be scored get their
        log-probabilities, those to be embedded the sum of their hidden states."""
        # Rows with the same adapters lie together: each adapter is then one matrix product a layer.
        ordered = sorted(batch, key=lambda chunk: chunk.sequence.request.mix)
        due = [chunk for chunk in ordered if chunk.samples]
        scored = [chunk for chunk in ordered if chunk.scored]
        segments = self._segments([(chunk, chunk.count) for chunk in ordered])
        pools = any(chunk.pooled for chunk in ordered)
        logits = None if scored or pools else self._run_captured(ordered, segments)
        if logits is None:
            # The output layer sees the last row of each that is due, then the scored ones.
            head = self._segments([(chunk, 1) for chunk in due] + [(chunk, len(chunk.scored)) for chunk in scored])
            self.step.begin(segments, head)
            try:
                with self._pooling(ordered if pools else []):
                    logits = self._forward(ordered)
            finally:
                self.step.end()
        sampled = sample(logits[: len(due)], [chunk.sequence for chunk in due], self.base.stop_token_ids)
        self._score(scored, logits[len(due) :])
        return list(zip(due, sampled, strict=True))

    def _run_captured(self, batch: Batch, segments: Seq[RowSegment]) -> Tensor | None:
        """As `_forward`, from a CUDA graph; None when the step has none."""
        logits = self.graphs.run(batch, segments) if self.graphs else None
        if logits is None or all(chunk.samples for chunk in batch):
            return logits
        return logits[[row for row, chunk in enumerate(batch) if chunk.samples]]

    def _score(self, batch: Batch, logits: Tensor) -> None:
        """Note how likely the prompts' tokens were. logits (scored positions of all chunks, vocabulary)."""
        row = 0
        for chunk in batch:
            positions = chunk.scored
            sequence = chunk.sequence
            said = torch.tensor(sequence.tokens[positions.start + 1 : positions.stop + 1], device=logits.device)
            num_top = [sequence.request.params.prompt_logprobs or 0] * len(positions)
            sequence.prompt_logprobs += token_logprobs(logits[row : row + len(positions)], said, num_top)
            row += len(positions)

    @contextmanager
    def _pooling(self, batch: Batch) -> Iterator[None]:
        """A forward pass in here adds the hidden states that embeddings are made of to their sequences."""
        if not batch:
            yield
            return

        def pool(decoder: Any, inputs: Any, out: Any) -> None:
            _pool(batch, out.last_hidden_state[0])

        # The decoder's output is what the output layer sees: behind the final norm, whatever the family calls it.
        hook = self.base.model.get_decoder().register_forward_hook(pool)
        try:
            yield
        finally:
            hook.remove()

    def _forward(self, batch: Batch) -> Tensor:
        """Logits (due rows, then scored ones; vocabulary)."""
        assert self.cache is not None
        device = self.base.device
        tokens: list[int] = []
        positions: list[int] = []
        last_rows: list[int] = []
        scored_rows: list[int] = []
        spans: list[Span] = []
        slots: list[Tensor] = []
        for chunk in batch:
            row = len(tokens)
            tokens += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            places = self._kept_at(chunk)
            spans.append(Span(row, chunk.count, chunk.end, places))
            slots.append(places[chunk.start :])
            if chunk.samples:
                last_rows.append(len(tokens) - 1)
            scored_rows += (row + position - chunk.start for position in chunk.scored)
        step_input = StepInput(self.kernels, self.cache, AttentionPlan(spans), torch.cat(slots))
        out = self.base.model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(last_rows + scored_rows, device=device, dtype=torch.long),
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


def _pool(batch: Batch, hidden: Tensor) -> None:
    """Add up what embeddings are made of. hidden (rows of all chunks, hidden size)."""
    row = 0
    for chunk in batch:
        positions, sequence = chunk.pooled, chunk.sequence
        if positions:
            first = row + positions.start - chunk.start
            added = hidden[first : first + len(positions)].sum(dim=0, dtype=torch.float32)
            sequence.hidden_sum = added if sequence.hidden_sum is None else sequence.hidden_sum + added
            sequence.num_pooled = positions.stop
        row += chunk.count
