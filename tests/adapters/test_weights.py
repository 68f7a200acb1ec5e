"""Reading PEFT files: what PEFT computes, or a refusal that says why."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

from adapters.base_model import fingerprint_of, load_base
from adapters.errors import Invalid
from adapters.weights import AdapterWeights, LinearShapes, read_adapter
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shapes(tiny_base: Path) -> LinearShapes:
    return load_base(str(tiny_base), device="cpu", dtype="float32").linear_shapes


def read(directory: Path, shapes: LinearShapes) -> AdapterWeights:
    return read_adapter(directory, shapes, torch.float32, CPU)


@pytest.mark.parametrize("name", ["r2", "r4", "r8", "r16"])
def test_scaled_product_equals_what_peft_adds_to_the_layer(
    tiny_base: Path, tiny_adapters: dict[str, Path], shapes: LinearShapes, name: str
) -> None:
    model = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(tiny_base), tiny_adapters[name])
    ours = read(tiny_adapters[name], shapes).modules
    layers = {
        key.removeprefix("base_model.model."): module
        for key, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(ours) == set(layers)
    for key, module in layers.items():
        torch.testing.assert_close(ours[key].b @ ours[key].a, module.get_delta_weight("default"))


def rewritten(source: Path, target: Path, tensors: object = None, **config: object) -> Path:
    """A copy with other tensors or configuration."""
    tiny.copy(source, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if callable(tensors):
        weights = target / "adapter_model.safetensors"
        save_file(tensors(load_file(weights)), weights)
    return target


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lambda t: t | {"base_model.model.model.norm.weight": torch.ones(64)}, "would be ignored"),
        (lambda t: {k.replace("layers.1.", "layers.7."): v for k, v in t.items()}, "no linear layer"),
        (lambda t: {k: v for k, v in t.items() if "lora_B" not in k or "q_proj" not in k}, "incomplete"),
        (lambda t: {k: (v[:, :8].clone() if "lora_A" in k else v) for k, v in t.items()}, "another base"),
        (lambda t: {k.removeprefix("base_model.model."): v for k, v in t.items()}, "would be ignored"),
    ],
)
def test_a_tensor_that_does_not_land_is_an_error(
    tiny_adapters: dict[str, Path], shapes: LinearShapes, tmp_path: Path, tensors: object, words: str
) -> None:
    with pytest.raises(Invalid, match=words):
        read(rewritten(tiny_adapters["r2"], tmp_path / "changed", tensors), shapes)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"peft_type": "IA3"},
        {"target_parameters": ["x"]},
        {"r": 3},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_is_not_served_is_refused_by_name(
    tiny_adapters: dict[str, Path], shapes: LinearShapes, tmp_path: Path, config: dict[str, object]
) -> None:
    with pytest.raises(Invalid):
        read(rewritten(tiny_adapters["r2"], tmp_path / "changed", **config), shapes)


def test_the_fingerprint_survives_precision_and_sharding_but_not_training(tiny_base: Path, tmp_path: Path) -> None:
    model = Qwen3ForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16", max_shard_size="200KB")
    assert len(list((tmp_path / "bf16").glob("*.safetensors"))) > 1
    assert fingerprint_of(tmp_path / "bf16") == fingerprint_of(tiny_base)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.01)
    model.save_pretrained(tmp_path / "trained")
    assert fingerprint_of(tmp_path / "trained") != fingerprint_of(tiny_base)
