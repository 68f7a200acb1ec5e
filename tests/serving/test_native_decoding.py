"""The compiled forms of a decoding step in bfloat16: products of few rows, and all layers in one call."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from adapters.base_model import load_base
from adapters.settings import Settings
from serving.engine.engine import Engine
from serving.engine.kernels import cpu, native
from serving.engine.kernels.native import NativeKernels
from serving.engine.kernels.packed_linear import PackedLinear
from serving.engine.kernels.quantized import Int4Linear, Int8Linear
from tests.serving.test_engine import assert_nothing_held, drain, random_prompts, request, tokens_of, version_of
from tests.serving.test_families import FAMILIES, save_family
from tests.tiny import save_adapter

kernels = native.load()
pytestmark = pytest.mark.skipif(
    kernels is None or not kernels.most_rows, reason="no compiler, or a processor without AVX512-BF16"
)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(96, 64), (80, 320), (64, 1088), (208, 512)])  # out, in
def test_products_of_few_rows_are_right_and_rows_do_not_depend_on_company(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0], bias=bias, dtype=torch.bfloat16)
    with torch.inference_mode():
        packed = PackedLinear(linear.weight.detach(), linear.bias)
        assert packed.native is not None
        assert packed(torch.empty(1, 0, shape[1], dtype=torch.bfloat16)).shape == (1, 0, shape[0])  # no logits are due
        for rows in range(1, 18):  # the last one is oneDNN's again
            x = torch.randn(1, rows, shape[1]).bfloat16()
            exact = linear.float()(x.float())
            linear.bfloat16()
            torch.testing.assert_close(packed(x).float(), exact, rtol=2**-7, atol=2**-7)
            if rows <= packed.native.most_rows:
                alone = torch.cat([packed(x[:, row, None]) for row in range(rows)], dim=1)
                assert torch.equal(packed(x), alone)


@pytest.mark.parametrize("layer", [Int4Linear, Int8Linear])
@pytest.mark.parametrize("bias", [False, True])
def test_products_with_quantised_weights_are_those_of_the_rounded_weights(
    layer: type[Int4Linear] | type[Int8Linear], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(320, 208, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    ours = layer(linear.weight, linear.bias)
    monkeypatch.setattr(native, "load", lambda: None)
    theirs = layer(linear.weight, linear.bias)  # the same rounding, on PyTorch's kernel
    assert ours.native is not None and theirs.native is None
    assert torch.equal(ours.weight, theirs.weight)
    x = torch.randn(40, 320).bfloat16()
    offset = linear.bias.float() if bias else 0
    assert ours(x[:0]).shape == (0, 208)
    for rows in (1, 6, 7, 40):
        exact = x[:rows].float() @ ours.weight.float().T + offset
        torch.testing.assert_close(ours(x[:rows]).float(), exact, rtol=2**-7, atol=2**-7)
        assert torch.equal(ours(x[:rows]), ours(x)[:rows])


def test_a_packed_layer_gives_its_weights_back() -> None:
    weight = torch.randn(80, 64).bfloat16()
    assert torch.equal(PackedLinear(weight, None).weight, weight)


# One operation after the other, as a step that is no plain decoding runs.
LAYER_BY_LAYER = SimpleNamespace(**{name: getattr(cpu, name) for name in cpu.__all__ if name != "decode_layers"})


@pytest.mark.parametrize(
    "family, quantize",
    [("qwen3", "none"), ("qwen2", "none"), ("llama-bias", "none"), ("mistral", "none"), ("qwen2", "4bit")],
)
def test_a_step_in_one_call_says_what_its_operations_say(
    family: str, quantize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sizes that the 4-bit kernel takes as well.
    sizes = {"head_dim": 32, "intermediate_size": 128}
    directory = save_family(family, tmp_path / "base", {**FAMILIES[family], **sizes})
    adapters = [
        save_adapter(tmp_path / f"a{rank}", directory, rank=rank, seed=rank, **given)
        for rank, given in ((2, {}), (5, {"targets": ["v_proj", "down_proj"]}), (4, {"use_dora": True}))
    ]
    calls: list[int] = []
    whole = NativeKernels.decode_layers
    monkeypatch.setattr(NativeKernels, "decode_layers", lambda *args: (calls.append(1), whole(*args))[1])
    options = {
        "kv_cache_memory": 0.05,
        "max_running": 20,
        "adapter_slots": 2,
        "max_batch_tokens": 48,
        "quantize": quantize,
    }
    answers = []
    for kernels in (cpu, LAYER_BY_LAYER):
        base = load_base(str(directory), device="cpu", dtype="bfloat16")
        engine = Engine(base, Settings(**options), kernels=kernels)
        versions = [version_of(path.name, path) for path in adapters]
        for version in versions:
            engine.bank.warm(version)
        low, few, dora = (version.digest for version in versions)
        mixes = [(), ((low, 1.0),), ((few, -0.5),), ((low, 0.5), (few, 2.0)), ((low, 1.0),), ()]
        found = []
        # Alone, in company, with an adapter that needs more, in the same slots again, and more than a call takes.
        for batch in ([mixes[0]], mixes, [*mixes[:2], ((dora, 1.0),)], mixes, [()] * 20):
            for number, (mix, prompt) in enumerate(zip(batch, random_prompts(len(batch), seed=3), strict=True)):
                engine.add(request(f"{number}", prompt, mix=mix, max_tokens=5 + number))
            found.append({key: tokens_of(deltas) for key, deltas in drain(engine).items()})
        assert_nothing_held(engine)
        answers.append(found)
        assert bool(calls) == (kernels is cpu)
        calls.clear()
    assert answers[0] == answers[1]
