"""The fast paths against their plain twins."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from adapters.base_model import load_base
from adapters.settings import Settings
from serving.engine.engine import Engine
from serving.engine.kernels import cpu, native, quantized, reference
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, Span
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import Delta, LoRALinear, RowSegment, StepAdapters
from tests.serving.test_engine import drain, random_prompts, request, tokens_of, version_of

TOKENS = 512


def random_plan(rng: random.Random, *, prefills: bool) -> tuple[AttentionPlan, int]:
    spans, row = [], 0
    for _ in range(5):
        length = rng.randrange(1, 70)
        count = rng.randrange(1, length + 1) if prefills and rng.random() < 0.5 else 1
        spans.append(Span(row, count, length, torch.tensor(rng.sample(range(TOKENS), length))))
        row += count
    return AttentionPlan(spans), row


@pytest.fixture(params=["compiled", "torch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both lives of the CPU kernels: with the compiled ones, and on a machine without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip("no C++ compiler here")
    return bool(request.param == "compiled")


SPECS = {
    "plain": AttentionSpec(scale=0.3),
    "window": AttentionSpec(scale=0.3, window=9),
    "softcap": AttentionSpec(scale=0.3, softcap=2.0),
    "sinks": AttentionSpec(scale=0.3, sinks=torch.linspace(-1, 2, 6)),
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("prefills", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dims", [(16, 32), (80, 48), (10, 12)])  # vectors, vectors in pieces, no vectors
def test_cpu_attention_equals_the_reference(
    compiled: bool, dims: tuple[int, int], seed: int, prefills: bool, spec: str
) -> None:
    torch.manual_seed(seed)
    cache = LayerCache(torch.randn(2, TOKENS, dims[0]), torch.randn(2, TOKENS, dims[1]))
    plan, rows = random_plan(random.Random(seed), prefills=prefills)
    query = torch.randn(rows, 9, dims[0])[:, :6]  # as it lies among keys and values in a joined product
    ours, plain = (kernels.attend(query, cache, plan, SPECS[spec]) for kernels in (cpu, reference))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_the_operations_between_products_equal_the_reference(compiled: bool, rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    x, add, weight = torch.randn(rows, 96).to(dtype), torch.randn(rows, 96).to(dtype), torch.randn(96).to(dtype)
    heads = torch.randn(rows, 6, 32).to(dtype)
    cos, sin, head_weight = (
        torch.randn(rows, 32).to(dtype),
        torch.randn(rows, 32).to(dtype),
        torch.randn(4, 32).to(dtype),
    )
    results = []
    for kernels in (cpu, reference):
        hidden, normed = kernels.add_rms_norm(x.clone(), add, weight, 1e-6)
        joined = heads.clone()  # query and key heads, then value heads, as a joined product gives them
        rotated = kernels.norm_and_rotate(joined[:, :4], None, cos, sin)
        assert torch.equal(joined[:, 4:], heads[:, 4:])
        both = kernels.norm_and_rotate(heads.clone()[:, :4], (head_weight, 1e-6), cos, sin)
        cache = LayerCache(torch.zeros(2, 64, 32, dtype=dtype), torch.zeros(2, 64, 32, dtype=dtype))
        places = torch.randperm(64, generator=torch.manual_seed(1))[:rows]
        kernels.store_kv(cache, heads[:, 2:4], heads[:, 4:], places)
        gated = kernels.silu_and_multiply(4 * x)
        results.append([hidden, normed, rotated, both, gated, cache.keys, cache.values])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_linears_equal_each_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(64, width, bias=width != 32, dtype=dtype) for width in (48, 32, 32)]
    x = torch.randn(5, 64, dtype=dtype)
    alone = torch.cat([linear(x) for linear in linears], dim=-1)
    for kernels in (cpu, reference):
        with torch.inference_mode():
            torch.testing.assert_close(kernels.join_linears(linears)(x), alone)


@pytest.mark.parametrize("bits, worst", [(8, 0.015), (4, 0.08)])  # of the largest weight: half a step of the scale
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_linears_are_near_the_real_ones(dtype: torch.dtype, bits: int, worst: float) -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(128, width, bias=width == 48, dtype=dtype) for width in (48, 32)]
    with torch.inference_mode():
        joined = cpu.join_linears(linears, bits)
        weight = torch.cat([linear.weight for linear in linears])
        error = joined.weight - weight
        assert 0 < error.abs().max() < worst * weight.abs().max()
        x = torch.randn(2, 5, 128, dtype=dtype)
        alone = torch.cat([linear(x) for linear in linears], dim=-1)
        assert (joined(x) - alone).norm() < 2 * worst * alone.norm()
        assert joined(x[:, :0]).shape == (2, 0, 80)  # a prompt's chunk may have no logits due


def test_a_layer_the_4_bit_kernel_does_not_take_gets_8_bits() -> None:
    assert isinstance(cpu.join_linears([nn.Linear(96, 32)], 4), quantized.Int8Linear)
    assert isinstance(cpu.join_linears([nn.Linear(128, 40)], 4), quantized.Int8Linear)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantised_base_serves_adapters_as_its_dense_twin_does(
    quantize: str, tiny_base: Path, tiny_adapters: dict[str, Path]
) -> None:
    """The twin is a plain model that holds the quantised weights, dequantised."""
    versions = [version_of(name, tiny_adapters[name]) for name in ("r2", "r16")]
    mixes = [(), *(((version.digest, 1.0),) for version in versions)]
    settings = Settings(kv_cache_memory=0.05, quantize=quantize)
    quantised = Engine(load_base(str(tiny_base), device="cpu", dtype="float32"), settings)
    twin_base = load_base(str(tiny_base), device="cpu", dtype="float32")
    for name in twin_base.linear_shapes:
        linear = twin_base.model.get_submodule(name)
        layer = cpu.join_linears([linear], 8 if name == "lm_head" else int(quantize[0]))
        linear.weight.data = layer.weight
    answers = []
    for engine in (quantised, Engine(twin_base, Settings(kv_cache_memory=0.05))):
        for version in versions:
            engine.bank.warm(version)
        for number, prompt in enumerate(random_prompts(6, seed=9)):
            engine.add(request(f"{number}", prompt, mix=mixes[number % 3]))
        answers.append({key: tokens_of(deltas) for key, deltas in drain(engine).items()})
    assert answers[0] == answers[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_a_mixed_step_equal_the_reference(compiled: bool, dtype: torch.dtype) -> None:
    outs = []
    for kernels in (reference, cpu):
        torch.manual_seed(1)
        step = StepAdapters()
        base = nn.Linear(96, 80, bias=False, dtype=dtype).requires_grad_(False)
        layer = LoRALinear(base, {"q": 48, "v": 32}, step, kernels)
        for slot, rank in ((1, 4), (3, 2), (4, 67)):
            for name, width in (("q", 48), ("v", 32)):
                if (slot, name) != (3, "q"):  # an adapter need not target every layer
                    a, b = torch.randn(rank, 96) / 10, torch.randn(rank, width) / 10
                    layer.load(slot, name, Delta(a.to(dtype), b.to(dtype)))
        segments = [
            RowSegment(1, 3, ((1, 1.0),)),
            RowSegment(3, 4, ((3, 0.5), (4, -1.5))),
            RowSegment(4, 9, ((4, 2.0),)),
            RowSegment(9, 10, ((5, 1.0),)),  # a slot with nothing for this layer
            RowSegment(12, 40, ((4, 0.5), (1, 1.0))),  # a prompt
        ]
        x = torch.randn(40, 96).to(dtype)
        step.begin(segments)
        outs.append(layer(x[None])[0])
        step.end()
        torch.testing.assert_close(layer(x), base(x))  # nothing of the step is left
    close = {"rtol": 2e-2, "atol": 3e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(outs[1], outs[0], **close)


def test_a_slot_loaded_again_gives_the_new_weights(compiled: bool) -> None:
    step = StepAdapters()
    layer = LoRALinear(nn.Linear(16, 16, bias=False).requires_grad_(False), {"q": 16}, step, cpu)
    x, outs = torch.randn(2, 16), []
    for value in (1.0, 2.0):
        layer.load(1, "q", Delta(torch.full((2, 16), value), torch.ones(2, 16)))
        for _ in range(3):
            step.begin([RowSegment(0, 2, ((1, 1.0),))])
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
