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
EMBEDDING = "base_model.model.model.embed_tokens."
KEY = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.fixture(scope="module")
def shapes(tiny_base: Path) -> LinearShapes:
    return load_base(str(tiny_base), device="cpu", dtype="float32").linear_shapes


def read(directory: Path, shapes: LinearShapes) -> AdapterWeights:
    embeddings = {"model.embed_tokens": (8192, 64)}
    return read_adapter(directory, shapes, torch.float32, CPU, embeddings=embeddings)


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
        (lambda t: t | {KEY + "lora_magnitude_vector": torch.ones(128)}, "use_dora is not set"),
        (lambda t: t | {KEY + "lora_B.bias": torch.ones(128)}, "lora_bias is not set"),
        (lambda t: t | {KEY + "lora_B.old.weight": torch.ones(128, 2)}, "two tensors"),
        (lambda t: t | {KEY + "lora_embedding_A": torch.ones(2, 64)}, "is a linear layer"),
        (lambda t: t | {KEY + "lora_C.weight": torch.ones(2, 64)}, "would be ignored"),
        (lambda t: t | {EMBEDDING + "token_adapter.trainable_tokens_delta": torch.ones(2, 64)}, "does not name it"),
        (lambda t: t | {KEY.replace("self_attn", "mlp.experts.3") + "lora_A.weight": torch.ones(2, 64)}, "experts"),
    ],
)
def test_a_tensor_that_does_not_land_is_an_error(
    tiny_adapters: dict[str, Path], shapes: LinearShapes, tmp_path: Path, tensors: object, words: str
) -> None:
    with pytest.raises(Invalid, match=words):
        read(rewritten(tiny_adapters["r2"], tmp_path / "changed", tensors), shapes)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora is set, but the file has nothing"),
        ({"lora_bias": True}, "lora_bias is set, but the file has nothing"),
        ({"use_dora": True, "lora_bias": True}, "both set"),
        ({"modules_to_save": ["lm_head"]}, "holds nothing for it"),
        ({"trainable_token_indices": [1, 2]}, "holds no retrained tokens"),
        ({"bias": "some"}, "'none', 'all' and 'lora_only'"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target linear layers"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "changed the base's weights"),
        ({"alora_invocation_tokens": [1]}, "train plain LoRA"),
        ({"use_qalora": True}, "train plain LoRA"),
        ({"enable_lora": [True, False, True]}, "newer PEFT"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is set; it is for bases of Conv1D"),
        ({"use_newlora": True}, "use_newlora is set, which is not known"),
        ({"target_modules": ["q_proj"]}, "which target_modules leaves out"),
        ({"target_modules": "model.layers.0.*"}, "'model.layers.1.mlp.down_proj', which target_modules leaves out"),
        ({"target_modules": [*tiny.ALL_LINEAR, "lm_head"]}, "covers 'lm_head', but the file holds no LoRA"),
        ({"target_modules": "("}, "target_modules is no regular expression"),
        ({"target_modules": r"(?:\w|\W|[a-z]|[_-z]|.)+[A-Z]"}, "takes too long"),
        ({"target_modules": {"q_proj": 1}}, "target_modules"),
        ({"layers_to_transform": [1]}, "which layers_to_transform leaves out"),
        ({"layers_to_transform": [0, 1], "layers_pattern": "blocks"}, "which layers_to_transform leaves out"),
        ({"exclude_modules": ["down_proj"]}, "which exclude_modules leaves out"),
        ({"r": 3}, "its tensors have 2"),
        ({"r": 2.5}, "valid integer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_served_is_refused_by_name(
    tiny_adapters: dict[str, Path], shapes: LinearShapes, tmp_path: Path, config: dict[str, object], words: str
) -> None:
    with pytest.raises(Invalid, match=words):
        read(rewritten(tiny_adapters["r2"], tmp_path / "changed", **config), shapes)


def test_a_replaced_norm_is_refused_by_name(
    tiny_adapters: dict[str, Path], shapes: LinearShapes, tmp_path: Path
) -> None:
    tensors = {"base_model.model.model.norm.weight": torch.ones(64)}
    changed = rewritten(tiny_adapters["r2"], tmp_path / "changed", lambda t: t | tensors, modules_to_save=["norm"])
    with pytest.raises(Invalid, match=r"modules_to_save replaces 'model\.norm'; only linear layers"):
        read(changed, shapes)


def test_a_pickle_is_refused(tiny_adapters: dict[str, Path], shapes: LinearShapes, tmp_path: Path) -> None:
    changed = tiny.copy(tiny_adapters["r2"], tmp_path / "changed")
    (changed / "adapter_model.safetensors").rename(changed / "adapter_model.bin")
    with pytest.raises(Invalid, match="pickle"):
        read(changed, shapes)


def older_key(key: str) -> str:
    return f"{key}.default.weight" if key.endswith("_vector") else key.replace(".weight", ".default.weight")


OLD_FIELDS = ("peft_type", "r", "lora_alpha", "target_modules", "bias", "task_type", "lora_dropout")


@pytest.mark.parametrize("dora", [False, True])
def test_files_of_older_versions_of_peft_say_the_same(
    tiny_base: Path, shapes: LinearShapes, tmp_path: Path, dora: bool
) -> None:
    new = tiny.save_adapter(tmp_path / "new", tiny_base, rank=4, seed=5, targets=["q_proj", "down_proj"], use_dora=dora)
    old = tiny.copy(new, tmp_path / "old")
    path = old / "adapter_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key in OLD_FIELDS}
    config |= {"r": 4.0, "lora_alpha": 8.0, "fan_in_fan_out": False, "merge_weights": False, "enable_lora": None}
    config |= {"target_modules": r".*(q|down)_proj", "inference_mode": True} | ({"use_dora": True} if dora else {})
    path.write_text(json.dumps(config))
    weights = old / "adapter_model.safetensors"
    save_file({older_key(key): tensor for key, tensor in load_file(weights).items()}, weights)
    ours, theirs = read(old, shapes).modules, read(new, shapes).modules
    assert set(ours) == set(theirs) and len(ours) == 4
    for name, weights_now in theirs.items():
        assert (ours[name].magnitude is not None) == dora
        for part in ("a", "b", "magnitude"):
            torch.testing.assert_close(getattr(ours[name], part), getattr(weights_now, part), atol=0, rtol=0)


def test_the_fingerprint_survives_precision_and_sharding_but_not_training(tiny_base: Path, tmp_path: Path) -> None:
    model = Qwen3ForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16", max_shard_size="200KB")
    assert len(list((tmp_path / "bf16").glob("*.safetensors"))) > 1
    assert fingerprint_of(tmp_path / "bf16") == fingerprint_of(tiny_base)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.01)
    model.save_pretrained(tmp_path / "trained")
    assert fingerprint_of(tmp_path / "trained") != fingerprint_of(tiny_base)
