"""ModelRunner: a batch → tensors → one forward pass → one token for every sequence that is due one.

The transformers model runs as it is, on one flat row of tokens from many sequences; only its attention is
ours (registered under a name) and its linear layers carry the adapters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from adapters.base_model import BaseModel
from adapters.errors import Invalid
from serving.engine.bank import AdapterBank
from serving.engine.kernels import Kernels
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, Span
from serving.engine.kv_cache import KVCache, LayerShape
from serving.engine.lora import RowSegment, StepAdapters
from serving.engine.sampler import Sampled, sample
from serving.engine.sequence import Batch, Chunk

ATTENTION = "bianlian"


@dataclass
class StepInput:
    """What travels through the model's forward to our attention, as the keyword `step_input`."""

    kernels: Kernels
    cache: KVCache
    plan: AttentionPlan
    slots: Tensor  # (rows,) int64: where each row's keys and values go


@dataclass
class LayerProbe:
    """Takes StepInput's place in one forward at start, to learn what each layer keeps for a token."""

    shapes: dict[int, LayerShape]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    step_input: StepInput | LayerProbe,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention hook. query (1, heads, rows, key_dim); key and value likewise with kv_heads, rotary
    applied; returns (1, rows, heads, value_dim)."""
    if isinstance(step_input, LayerProbe):
        step_input.shapes[module.layer_idx] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    cache = step_input.cache.layers[module.layer_idx]
    rows = [t[0].transpose(0, 1) for t in (query, key, value)]  # (rows, heads, dim)
    step_input.kernels.store_kv(cache, rows[1], rows[2], step_input.slots)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    spec = AttentionSpec(scale, sliding_window, softcap, s_aux)
    return step_input.kernels.attend(rows[0], cache, step_input.plan, spec)[None], None


AttentionInterface.register(ATTENTION, _attention)


class ModelRunner:
    def __init__(self, base: BaseModel, bank: AdapterBank, step: StepAdapters, kernels: Kernels):
        self.base = base
        self.bank = bank
        self.step = step
        self.kernels = kernels
        self.block_size = 0
        self.layer_shapes = self._probe_layers()
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
        self.step.segments = self._segments(ordered)
        try:
            logits = self._forward(ordered)
        finally:
            self.step.segments = []
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

    @torch.inference_mode()
    def _probe_layers(self) -> list[LayerShape]:
        """Run one token through the model with our attention. Invalid when an architecture does not go through it
        in every layer: it would attend with its own code, across sequences."""
        model = self.base.model
        layers = model.config.get_text_config().num_hidden_layers
        probe = LayerProbe({})
        try:
            model.set_attn_implementation(ATTENTION)
            model(
                input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.base.device),
                position_ids=torch.zeros(1, 1, dtype=torch.long, device=self.base.device),
                use_cache=False,
                step_input=probe,
            )
        except (TypeError, ValueError) as error:
            raise Invalid(f"base '{self.base.name}' cannot run in this engine: {error}", param="base") from error
        if set(probe.shapes) != set(range(layers)):
            raise Invalid(
                f"base '{self.base.name}' ({model.config.model_type}) has {layers} layers; only {len(probe.shapes)} "
                "use attention that the engine can replace; choose a model of plain attention layers",
                param="base",
            )
        return [probe.shapes[layer] for layer in range(layers)]
