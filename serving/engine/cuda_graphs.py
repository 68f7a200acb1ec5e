"""Captured decoding steps: one CUDA graph for each number of rows, repeated with new inputs in the same memory.

A step of decoding launches about a thousand small kernels, which takes the host longer than the device; a graph
launches them at once. It reads everything that differs between steps (tokens, block tables, adapters and strengths)
from one matrix on the device. Steps with prompts in them, wide blends, and
adapters with more than a low-rank part run without a graph."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serving.engine.attention import StepInput
from serving.engine.embedding import LoRAEmbedding
from serving.engine.kernels import CapturingKernels
from serving.engine.kernels.plan import PagedDecodes
from serving.engine.kv_cache import KVCache
from serving.engine.lora import DeviceRows, LoRALinear, RowSegment, StepAdapters
from serving.engine.sequence import Batch

log = logging.getLogger(__name__)

Step = Callable[[], Tensor]
Recorder = Callable[[Step], Step]  # a step → one that does the same again, reading its inputs where they were

# Adapters a row may have in a captured step: none, one, or a blend. A blend of more runs without a graph.
ADAPTERS = (0, 1, 4)

# Columns of the input matrix before the block table.
_TOKEN, _POSITION, _PLACE, _LENGTH, _SLOTS = 0, 1, 2, 3, 4
_STRENGTHS = _SLOTS + ADAPTERS[-1]
_BLOCKS = _STRENGTHS + ADAPTERS[-1]


class Shape(NamedTuple):
    """What tells captured steps apart."""

    rows: int
    adapters: int  # most of any row
    rank: int  # room for the adapters' ranks


@dataclass(frozen=True)
class Limits:
    max_rows: int
    max_blocks: int  # of one sequence
    block_size: int
    scratch_block: int  # no sequence's: rows that only fill up write there


def round_up_rows(rows: int) -> int:
    """1, 2, 4, 8, then every multiple of 8: few graphs, and never twice the work."""
    return 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8


class StepInputs:
    """The matrix a captured step reads: one row a sequence, int32 throughout (strengths by their bits)."""

    def __init__(self, limits: Limits, device: torch.device):
        self.limits = limits
        shape = (round_up_rows(limits.max_rows), _BLOCKS + limits.max_blocks)
        self.on_host = torch.zeros(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.on_device = torch.zeros(shape, dtype=torch.int32, device=device)
        self._ints = self.on_host.numpy()
        self._floats = self.on_host.view(torch.float32).numpy()
        self._tables: list[tuple[list[int], int] | None] = [None] * shape[0]  # whose blocks each row has, and how many

    def fill(self, batch: Batch, segments: Sequence[RowSegment], rows: int) -> None:
        """Write `batch`, one token a sequence, and fill up to `rows`; then bring it to the device."""
        size = self.limits.block_size
        used = self._ints[:rows]
        for row, chunk in enumerate(batch):
            blocks, at = chunk.sequence.blocks, chunk.start
            place = blocks[at // size] * size + at % size
            used[row, :_SLOTS] = (chunk.sequence.tokens[at], at, place, chunk.end)
            self._write_blocks(row, blocks)
        used[len(batch) :, :_SLOTS] = (0, 0, self.limits.scratch_block * size, 1)
        for row in range(len(batch), rows):
            self._write_blocks(row, [self.limits.scratch_block])
        used[:, _SLOTS:_STRENGTHS] = 0
        for segment in segments:
            for number, (slot, strength) in enumerate(segment.slots):
                used[segment.start : segment.end, _SLOTS + number] = slot
                self._floats[segment.start : segment.end, _STRENGTHS + number] = strength
        self.on_device[:rows].copy_(self.on_host[:rows])

    def _write_blocks(self, row: int, blocks: list[int]) -> None:
        """A sequence's list of blocks only ever grows, and is another list after it was preempted."""
        kept = self._tables[row]
        if kept is None or kept[0] is not blocks or kept[1] != len(blocks):
            self._ints[row, _BLOCKS : _BLOCKS + len(blocks)] = blocks
            self._tables[row] = (blocks, len(blocks))

    def tokens(self, rows: int) -> Tensor:
        return self.on_device[:rows, _TOKEN].long()

    def positions(self, rows: int) -> Tensor:
        return self.on_device[:rows, _POSITION].long()

    def places(self, rows: int) -> Tensor:
        """(rows,) int64: where in the cache each row's keys and values go."""
        return self.on_device[:rows, _PLACE].long()

    def decodes(self, rows: int) -> PagedDecodes:
        lengths = self.on_device[:rows, _LENGTH].contiguous()
        return PagedDecodes(self.on_device[:rows, _BLOCKS:], lengths, self.limits.block_size)

    def adapters(self, rows: int, width: int) -> DeviceRows:
        slots = self.on_device[:rows, _SLOTS : _SLOTS + width].contiguous()
        strengths = self.on_device[:rows, _STRENGTHS : _STRENGTHS + width].contiguous()
        return DeviceRows(slots, strengths.view(torch.float32))


class DecodeGraphs:
    """Runs the steps it can from graphs, capturing each shape when it first comes up."""

    def __init__(
        self,
        model: Any,
        cache: KVCache,
        kernels: CapturingKernels,
        step: StepAdapters,
        limits: Limits,
        record: Recorder,
    ):
        self.model = model
        self.cache = cache
        self.kernels = kernels
        self.step = step
        self.record = record
        self.inputs = StepInputs(limits, cache.layers[0].keys.device)
        self.layers: list[LoRALinear] = [module for module in model.modules() if isinstance(module, LoRALinear)]
        self.embeddings: list[LoRAEmbedding] = [
            module for module in model.modules() if isinstance(module, LoRAEmbedding)
        ]
        self._captured: dict[Shape, Step] = {}
        self._versions: list[int] = []  # of the layers, when last looked at
        self._dense: set[int] = set()  # slots with more than a low-rank part somewhere

    def run(self, batch: Batch, segments: Sequence[RowSegment]) -> Tensor | None:
        """Logits (rows of `batch`, vocabulary), valid until the next step; None when the step must run without a
        graph."""
        if any(chunk.count > 1 for chunk in batch):
            return None
        width = max((len(segment.slots) for segment in segments), default=0)
        if width > ADAPTERS[-1]:
            return None
        if width:
            self._note_changes()
            used = {slot for segment in segments for slot, _ in segment.slots}
            if not all(slots.isdisjoint(used) for slots in (self._dense, *(e.dense_slots for e in self.embeddings))):
                return None
        adapters = next(most for most in ADAPTERS if most >= width)
        shape = Shape(round_up_rows(len(batch)), adapters, self.kernels.rank if width else 0)
        self.inputs.fill(batch, segments, shape.rows)
        if shape not in self._captured:
            self._captured[shape] = self.record(lambda: self._forward(shape))
        return self._captured[shape]()[: len(batch)]

    def _note_changes(self) -> None:
        """Learn what was loaded and unloaded since the last step: a look at each layer, as it is made in every step."""
        versions = [layer.version for layer in self.layers]
        if versions != self._versions:
            self._versions = versions
            self._dense = {slot for layer in self.layers for slot in layer.dense_slots}
            self.kernels.prepare(self.layers)

    def _forward(self, shape: Shape) -> Tensor:
        """One decoding step from the input matrix, without a value that the host must know."""
        inputs, rows = self.inputs, shape.rows
        running = self.step.rows, self.step.head
        if shape.adapters:  # every row's logits are computed, so the output layer sees the same rows
            self.step.rows = self.step.head = inputs.adapters(rows, shape.adapters)
        try:
            out = self.model(
                input_ids=inputs.tokens(rows)[None],
                position_ids=inputs.positions(rows)[None],
                use_cache=False,
                step_input=StepInput(self.kernels, self.cache, inputs.decodes(rows), inputs.places(rows)),
            )
        finally:
            self.step.rows, self.step.head = running
        logits: Tensor = out.logits[0]
        return logits


class GraphRecorder:
    """Captures steps on the device into graphs that share one pool of memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        self._works = True

    def __call__(self, step: Step) -> Step:
        if not self._works:
            return step
        # Compilers and libraries set themselves up at the first call, which cannot be captured.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads go on allocating and copying, adapters are being read.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                out = step()
        except RuntimeError as error:  # the model waits for the device somewhere in its forward
            log.warning("decoding without CUDA graphs, which is slower: %s", str(error).splitlines()[0])
            self._works = False
            return step

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
