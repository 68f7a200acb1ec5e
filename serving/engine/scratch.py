"""ScratchRun: a few short sequences computed beside the engine's own, by the same layers and kernels, for questions
about the model itself. Their keys and values lie in a small cache that goes with them: no block is taken or shared."""

from collections.abc import Sequence

import torch
from torch import Tensor

from serving.engine.attention import StepInput
from serving.engine.kernels.plan import AttentionPlan, Span
from serving.engine.kv_cache import KVCache
from serving.engine.lora import RowSegment, SlotMix
from serving.engine.model_runner import ModelRunner


class ScratchRun:
    def __init__(self, runner: ModelRunner, mixes: Sequence[SlotMix], capacity: int):
        """One sequence of at most `capacity` tokens for each of `mixes`; () is the base."""
        self._runner = runner
        self._mixes = mixes
        self._capacity = capacity
        self._lengths = [0] * len(mixes)
        base = runner.base
        self._cache = KVCache(runner.layer_shapes, len(mixes), capacity, base.dtype, base.device)

    @torch.inference_mode()
    def extend(self, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        """Append tokens to every sequence, all in one forward pass; for each, the logits (tokens, vocabulary) after
        every one of them. Engine's thread, between two steps."""
        device = self._runner.base.device
        spans: list[Span] = []
        segments: list[RowSegment] = []
        positions: list[int] = []
        slots: list[Tensor] = []
        for number, (added, mix) in enumerate(zip(tokens, self._mixes, strict=True)):
            row, before = len(positions), self._lengths[number]
            length = self._lengths[number] = before + len(added)
            kept = torch.arange(length, device=device) + number * self._capacity
            spans.append(Span(row, len(added), length, kept))
            slots.append(kept[before:])
            positions += range(before, length)
            if mix:
                segments.append(RowSegment(row, row + len(added), mix))
        step_input = StepInput(self._runner.kernels, self._cache, AttentionPlan(spans), torch.cat(slots))
        self._runner.step.begin(segments, segments)  # logits of all rows
        try:
            out = self._runner.base.model(
                input_ids=torch.tensor([[token for added in tokens for token in added]], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                step_input=step_input,
            )
        finally:
            self._runner.step.end()
        return list(out.logits[0].split([len(added) for added in tokens]))
