"""The fast paths against their plain twins."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from adapters.base_model import load_base
from adapters.settings import Settings
from serving.engine.engine import Engine
from serving.engine.kernels import cpu, reference
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, Span
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import Delta, LoRALinear, RowSegment, StepAdapters
from tests.serving.test_engine import drain, random_prompts, request, tokens_of

TOKENS = 512


def random_plan(rng: random.Random, *, prefills: bool) -> tuple[AttentionPlan, int]:
    spans, row = [], 0
    for _ in range(5):
        length = rng.randrange(1, 70)
        count = rng.randrange(1, length + 1) if prefills and rng.random() < 0.5 else 1
        spans.append(Span(row, count, length, torch.tensor(rng.sample(range(TOKENS), length))))
        row += count
    return AttentionPlan(spans), row


@pytest.mark.parametrize("prefills", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_cpu_attention_equals_the_reference(seed: int, prefills: bool) -> None:
    torch.manual_seed(seed)
    cache = LayerCache(torch.randn(2, TOKENS, 16), torch.randn(2, TOKENS, 24))
    plan, rows = random_plan(random.Random(seed), prefills=prefills)
    query = torch.randn(rows, 6, 16)
    spec = AttentionSpec(scale=0.3)
    torch.testing.assert_close(cpu.attend(query, cache, plan, spec), reference.attend(query, cache, plan, spec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_linears_equal_each_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(64, width, bias=width != 32, dtype=dtype) for width in (48, 32, 32)]
    x = torch.randn(5, 64, dtype=dtype)
    alone = torch.cat([linear(x) for linear in linears], dim=-1)
    for kernels in (cpu, reference):
        with torch.inference_mode():
            torch.testing.assert_close(kernels.join_linears(linears)(x), alone)


def test_adapters_joined_or_by_segment_equal_the_reference() -> None:
    torch.manual_seed(0)
    outs = []
    for kernels, steps in ((reference, 1), (cpu, 1), (cpu, 2)):  # the second step with the same adapters joins them
        torch.manual_seed(1)
        step = StepAdapters()
        base = nn.Linear(64, 80, bias=False).requires_grad_(False)
        layer = LoRALinear(base, {"q": 48, "v": 32}, step, kernels)
        for slot, rank in ((1, 4), (3, 2), (4, 7)):
            for name, width in (("q", 48), ("v", 32)):
                if (slot, name) != (3, "q"):  # an adapter need not target every layer
                    layer.load(slot, name, Delta(torch.randn(rank, 64), torch.randn(rank, width)))
        segments = [
            RowSegment(1, 3, ((1, 1.0),)),
            RowSegment(3, 4, ((3, 0.5), (4, -1.5))),
            RowSegment(4, 9, ((4, 2.0),)),
            RowSegment(9, 10, ((2, 1.0),)),  # a slot with nothing for this layer
        ]
        x = torch.randn(10, 64)
        for _ in range(steps):
            step.begin(segments, 10)
            out = layer(x[None])[0]
            joins = step.rows.joins
            step.end()
        assert joins == (steps == 2)
        torch.testing.assert_close(layer(x), base(x))  # nothing of the step is left
        outs.append(out)
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(outs[2], outs[0], rtol=1e-5, atol=1e-4)


def test_a_slot_loaded_again_is_not_served_from_the_joined_copy() -> None:
    step = StepAdapters()
    layer = LoRALinear(nn.Linear(8, 8, bias=False).requires_grad_(False), {"q": 8}, step, cpu)
    x, outs = torch.randn(2, 8), []
    for value in (1.0, 2.0):
        layer.load(1, "q", Delta(torch.full((2, 8), value), torch.ones(2, 8)))
        for _ in range(3):
            step.begin([RowSegment(0, 2, ((1, 1.0),))], 2)
            out = layer(x) - layer.base(x)
            step.end()
        outs.append(out)
        layer.unload(1)
    torch.testing.assert_close(outs[1], 2 * outs[0])


def test_fused_blocks_say_what_transformers_blocks_say(tiny_base: Path) -> None:
    answers = []
    for fuse in (True, False):
        base = load_base(str(tiny_base), device="cpu", dtype="float32")
        engine = Engine(base, Settings(kv_cache_memory=0.05), fuse=fuse)
        assert any(type(m).__name__ == "FusedLayer" for m in base.model.modules()) == fuse
        for number, prompt in enumerate(random_prompts(4, seed=9)):
            engine.add(request(f"{number}", prompt))
        answers.append({key: tokens_of(deltas) for key, deltas in drain(engine).items()})
    assert answers[0] == answers[1]
