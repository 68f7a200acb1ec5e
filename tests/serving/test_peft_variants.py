"""Everything PEFT's LoRA can hold, against PEFT itself in float32: the same tokens and logits, alone and in a batch
with other adapters and the base."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from adapters.base_model import load_base
from adapters.errors import Invalid
from adapters.settings import Quantization, Settings
from serving.engine.engine import Engine
from serving.engine.lora import RowSegment
from serving.engine.sequence import Request
from tests.serving.test_engine import assert_nothing_held, request, version_of
from tests.tiny import TOKENIZER

VOCABULARY = 8192
NEW_TOKENS = 6
PROMPTS = [[30, 40, 50, 41, 30, 7000], [40] * 9 + [51, 30], [60, 30]]
RETRAINED = [30, 41, 50]  # tokens that occur in the prompts
BASES: dict[str, dict[str, object]] = {
    "plain": {"model_type": "qwen3"},
    "tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    "biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "fused-projections": {"model_type": "phi3"},
    "scaled-embedding": {"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
}


@dataclass
class Variant:
    base: str
    config: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        changed = {
            key: value for key, value in self.config.items() if key != "target_modules" or "lm_head" in str(value)
        }
        return f"{self.base}-{changed}".replace(" ", "")


EVERYWHERE = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
VARIANTS = [
    Variant("plain", {"lora_bias": True}),
    Variant("biased", {"lora_bias": True, "use_rslora": True}),
    Variant("plain", {"use_dora": True}),
    Variant("biased", {"use_dora": True, "rank_pattern": {"q_proj": 3}}),
    Variant("fused-projections", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    Variant("fused-projections", {"target_modules": ["qkv_proj", "gate_up_proj", "lm_head"], "use_dora": True}),
    Variant("biased", {"bias": "lora_only"}),
    Variant("biased", {"bias": "all", "use_dora": True}),
    Variant("plain", {"modules_to_save": ["lm_head"]}),
    Variant("tied", {"modules_to_save": ["lm_head"]}),
    Variant("plain", {"modules_to_save": ["embed_tokens"]}),
    Variant("tied", {"modules_to_save": ["embed_tokens"]}),
    Variant("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    Variant("plain", {"modules_to_save": ["embed_tokens", "lm_head"], "lora_bias": True}),
    Variant("biased", {"modules_to_save": ["k_proj"]}),
    Variant("plain", {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]}),
    Variant("plain", {"trainable_token_indices": RETRAINED}),
    Variant("tied", {"trainable_token_indices": RETRAINED}),
    Variant("tied", {"trainable_token_indices": {"embed_tokens": RETRAINED, "lm_head": RETRAINED}}),
    Variant("tied", {"trainable_token_indices": {"embed_tokens": RETRAINED, "lm_head": [5, 30, 31]}}),
    Variant("scaled-embedding", {"trainable_token_indices": RETRAINED}),
    Variant("plain", {"target_modules": [*EVERYWHERE, "embed_tokens"]}),
    Variant("tied", {"target_modules": [*EVERYWHERE, "embed_tokens"], "ensure_weight_tying": True}),
    Variant("scaled-embedding", {"target_modules": [*EVERYWHERE, "embed_tokens"], "modules_to_save": ["lm_head"]}),
    Variant("plain", {"target_modules": [*EVERYWHERE, "embed_tokens", "lm_head"], "use_dora": True}),
    Variant("plain", {"target_modules": r".*\.1\..*(q|up)_proj|lm_head"}),
    Variant("plain", {"layers_to_transform": [1]}),
    Variant("scaled-embedding", {"modules_to_save": ["embed_tokens"]}),
    Variant("scaled-embedding", {"target_modules": [*EVERYWHERE, "embed_tokens"], "use_dora": True}),
]


def save_base(directory: Path, base: str) -> Path:
    torch.manual_seed(0)
    options = dict(BASES[base])
    config = AutoConfig.for_model(
        options.pop("model_type"),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
        initializer_range=0.2,
        **options,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name not in made:
            made[name] = save_base(tmp_path_factory.mktemp("bases") / name, name)
        return made[name]

    return base


def save_adapter(base: Path, directory: Path, *, seed: int = 1, **config: object) -> Path:
    """An adapter written by PEFT whose every trained tensor differs from where training starts."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": EVERYWHERE, "task_type": "CAUSAL_LM", **config}
    tuned = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(directory)
    return directory


def peft_logits(base: Path, adapter: Path | None, sequences: list[list[int]]) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([tokens])).logits[0] for tokens in sequences]


def build_engine(base: Path) -> Engine:
    return Engine(
        load_base(str(base), device="cpu", dtype="float32"),
        Settings(kv_cache_memory=0.02, max_batch_tokens=16, prefix_cache=False),
    )


def asked(number: object, prompt: list[int], mix: tuple[tuple[str, float], ...]) -> Request:
    return request(f"{number}", prompt, mix=mix, max_tokens=NEW_TOKENS)


def answers(engine: Engine, requests: list[Request]) -> tuple[dict[str, list[int]], dict[str, torch.Tensor]]:
    """Every request's tokens, prompt and answer, and the logits they were chosen from (answer, vocabulary)."""
    for each in requests:
        engine.add(each)
    sequences = {key: running.sequence for key, running in engine._requests.items()}
    logits: dict[str, list[torch.Tensor]] = {each.id: [] for each in requests}
    forward = engine.runner._forward

    def listen(batch: list) -> torch.Tensor:
        out = forward(batch)
        for row, chunk in enumerate(chunk for chunk in batch if chunk.samples):
            logits[chunk.sequence.request.id].append(out[row].clone())
        return out

    engine.runner._forward = listen
    try:
        while engine.has_work:
            assert not [delta.error for delta in engine.step() if delta.error]
    finally:
        del engine.runner._forward
    assert_nothing_held(engine)
    assert engine.bank.figures().held == 0
    return {key: sequence.tokens for key, sequence in sequences.items()}, {
        key: torch.stack(rows) for key, rows in logits.items()
    }


def assert_equal_to(
    expected: list[torch.Tensor], tokens: list[list[int]], logits: list[torch.Tensor], what: object
) -> None:
    for number, prompt in enumerate(PROMPTS):
        wanted = expected[number][len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[number], wanted, atol=1e-4, rtol=1e-4, msg=lambda text: f"{what}: {text}")
        assert tokens[number][len(prompt) :] == wanted.argmax(dim=-1).tolist()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variant_equals_peft_alone_and_mixed_with_others(
    bases: Callable[[str], Path], tmp_path: Path, variant: Variant
) -> None:
    base = bases(variant.base)
    adapter = save_adapter(base, tmp_path / "variant", **variant.config)
    targets = ["qkv_proj", "down_proj"] if variant.base == "fused-projections" else ["v_proj", "lm_head"]
    other = save_adapter(base, tmp_path / "other", seed=2, target_modules=targets, r=3)
    engine = build_engine(base)
    versions = {path: version_of(path.name, path) for path in (adapter, other)}
    for version in versions.values():
        engine.bank.warm(version)

    mix = ((versions[adapter].digest, 1.0),)
    tokens, logits = answers(engine, [asked(n, prompt, mix) for n, prompt in enumerate(PROMPTS)])
    alone = [tokens[f"{n}"] for n in range(len(PROMPTS))]
    expected = peft_logits(base, adapter, alone)
    assert_equal_to(expected, alone, [logits[f"{n}"] for n in range(len(PROMPTS))], "alone")
    plain = peft_logits(base, None, alone)
    assert not torch.allclose(plain[0], expected[0], atol=1e-2), "the adapter shows"

    mixed = [
        asked((who, n), prompt, mix)
        for n, prompt in enumerate(PROMPTS)
        for who, mix in (
            (adapter, ((versions[adapter].digest, 1.0),)),
            (None, ()),
            (other, ((versions[other].digest, 1.0),)),
        )
    ]
    tokens, logits = answers(engine, mixed)
    for who in (adapter, None, other):
        theirs = [tokens[f"{(who, n)}"] for n in range(len(PROMPTS))]
        assert_equal_to(
            peft_logits(base, who, theirs), theirs, [logits[f"{(who, n)}"] for n in range(len(PROMPTS))], who
        )


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["lm_head"], "use_dora": True},
        {"target_modules": ["lm_head"], "lora_bias": True},
        {"target_modules": ["lm_head"]},
    ],
    ids=["dora", "lora-bias", "lora"],
)
def test_strengths_and_blends_add_up_linearly_on_a_layer(
    bases: Callable[[str], Path], tmp_path: Path, config: dict[str, object]
) -> None:
    """On the output layer alone what an adapter changes is a matrix: at strength t it must change t times as much."""
    base = bases("plain")
    adapters = [save_adapter(base, tmp_path / f"{seed}", seed=seed, **config) for seed in (1, 2)]
    whole = save_adapter(base, tmp_path / "whole", seed=3, modules_to_save=["lm_head"], r=1)
    tensors = load_file(whole / "adapter_model.safetensors")
    save_file(
        {key: tensor * (0 if "lora_B" in key else 1) for key, tensor in tensors.items()},
        whole / "adapter_model.safetensors",
    )
    engine = build_engine(base)
    versions = [version_of(path.name, path) for path in (*adapters, whole)]
    for version in versions:
        engine.bank.warm(version)
    strengths = (0.5, -1.5, 0.25)
    mix = tuple(sorted((version.digest, strength) for version, strength in zip(versions, strengths, strict=True)))
    one = request("one", PROMPTS[0], mix=mix, max_tokens=1)
    _, logits = answers(engine, [one, request("base", PROMPTS[1], max_tokens=1)])
    [plain] = peft_logits(base, None, [PROMPTS[0]])
    expected = plain[-1].clone()
    for path, strength in zip((*adapters, whole), strengths, strict=True):
        expected += strength * (peft_logits(base, path, [PROMPTS[0]])[0][-1] - plain[-1])
    torch.testing.assert_close(logits["one"][0], expected, atol=1e-4, rtol=1e-4)


def test_dora_at_strength_zero_is_the_base_and_half_way_is_half_of_the_change(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("biased")
    adapter = version_of("a", save_adapter(base, tmp_path / "a", use_dora=True, target_modules=["q_proj", "k_proj"]))
    engine = build_engine(base)
    engine.bank.warm(adapter)
    engine.bank.activate([adapter.digest], [])
    layer = engine.bank._layers["model.layers.0.self_attn.q_proj"]
    x = torch.randn(3, 64)
    said = []
    for strength in (0.0, 0.5, 1.0):
        engine.runner.step.begin([RowSegment(0, 3, ((engine.bank.slot(adapter.digest), strength),))])
        with torch.inference_mode():
            said.append(layer(x))
        engine.runner.step.end()
    with torch.inference_mode():
        torch.testing.assert_close(said[0], layer(x))
    torch.testing.assert_close(said[1], (said[0] + said[2]) / 2, atol=1e-5, rtol=1e-5)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "a")
    attention = tuned.base_model.model.model.layers[0].self_attn
    with torch.no_grad():
        theirs = torch.cat([attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)], dim=-1)
    torch.testing.assert_close(said[2], theirs, atol=1e-5, rtol=1e-5)


def test_an_adapter_that_repeats_the_bases_embedding_is_taken_and_one_with_another_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("plain")
    engine = build_engine(base)
    targets = [*EVERYWHERE, "embed_tokens", "lm_head"]
    same = save_adapter(base, tmp_path / "same", target_modules=targets)
    engine.bank.warm(version_of("same", same))
    for module in ("model.embed_tokens", "lm_head"):
        other = save_adapter(base, tmp_path / module, target_modules=targets)
        path = other / "adapter_model.safetensors"
        tensors, key = load_file(path), f"base_model.model.{module}.base_layer.weight"
        save_file(tensors | {key: tensors[key] * 1.01}, path)
        with pytest.raises(Invalid, match=f"{module} that differs from the base's"):
            engine.bank.warm(version_of(module, other))


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_quantised_base_takes_dora_as_peft_does(
    bases: Callable[[str], Path], tmp_path: Path, quantize: Quantization
) -> None:
    base = bases("plain")
    adapter = save_adapter(base, tmp_path / "a", use_dora=True, target_modules=EVERYWHERE)
    loaded = load_base(str(base), device="cpu", dtype="float32", quantize=quantize)
    peft = PeftModel.from_pretrained(
        load_base(str(base), device="cpu", dtype="float32", quantize=quantize).model, adapter
    ).eval()
    engine = Engine(loaded, Settings(kv_cache_memory=0.02, max_batch_tokens=32))
    answers(engine, [request("base", PROMPTS[0], max_tokens=1)])  # bitsandbytes rearranges itself at first use
    version = version_of("a", adapter)
    engine.bank.warm(version)
    _, logits = answers(engine, [request("a", PROMPTS[0], mix=((version.digest, 1.0),), max_tokens=1)])
    with torch.no_grad():
        expected = peft(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    torch.testing.assert_close(logits["a"][0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_dora_on_weights_the_engine_quantised_is_peft_on_those_weights(
    bases: Callable[[str], Path], tmp_path: Path, quantize: Quantization
) -> None:
    base = bases("plain")
    targets = [*EVERYWHERE, "lm_head"]
    adapter = version_of("a", save_adapter(base, tmp_path / "a", use_dora=True, target_modules=targets))
    loaded = load_base(str(base), device="cpu", dtype="float32")
    engine = Engine(loaded, Settings(kv_cache_memory=0.02, max_batch_tokens=32, quantize=quantize))
    twin = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, shape in loaded.linear_shapes.items():
        weight = twin.get_submodule(name).weight
        assert weight.shape == (shape[1], shape[0])
        weight.data = engine.bank._layers[name].base_weight(name).clone()
    engine.bank.warm(adapter)
    _, logits = answers(engine, [request("a", PROMPTS[0], mix=((adapter.digest, 1.0),), max_tokens=1)])
    tuned = PeftModel.from_pretrained(twin, tmp_path / "a").eval()
    for name, module in tuned.base_model.model.named_modules():  # PEFT put the file's own output layer back
        if name == "lm_head.base_layer":
            module.weight.data = engine.bank._layers["lm_head"].base_weight("lm_head").clone()
    with torch.no_grad():
        expected = tuned(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    torch.testing.assert_close(logits["a"][0], expected, atol=1e-3, rtol=1e-3)
