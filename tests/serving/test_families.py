"""Model families: greedy tokens equal transformers' generate in float32, without and with an adapter, in a batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from adapters.base_model import load_base
from adapters.errors import Invalid
from adapters.settings import Settings
from adapters.weights import read_adapter
from serving.engine.engine import Engine
from serving.engine.kernels import reference
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec
from serving.engine.kv_cache import LayerCache
from tests.serving.test_engine import assert_nothing_held, drain, random_prompts, request, tokens_of, version_of
from tests.tiny import ALL_LINEAR, TOKENIZER

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 8192,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,  # tied, some of these random models only repeat themselves
}
# Shorter than two of the three prompts below, and than a prefill chunk.
WINDOW = 24
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-dynamic": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        "max_position_embeddings": 77,  # the longest answer ends there
    },
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, **ALTERNATING},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gemma2": {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, **ALTERNATING},
    "gemma3_text": {"query_pre_attn_scalar": 16, **ALTERNATING},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **ALTERNATING},
    "phi3": {"sliding_window": WINDOW},
    "glm4": {"partial_rotary_factor": 0.5},
    "starcoder2": {"sliding_window": WINDOW},
    "olmo2": {},
    "cohere2": {"logit_scale": 1.0, **ALTERNATING},
    "granite": {"attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
}
# What must be among the layers that adapters of a family reach.
PROJECTIONS = {
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "glm4": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"},
    "qwen3_moe": {"q_proj", "k_proj", "v_proj", "o_proj"},  # experts are no linear layers
    "gpt_oss": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "starcoder2": {"q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"},
}
NEW_TOKENS = 10


def save_family(family: str, directory: Path, options: dict[str, object] | None = None) -> Path:
    """A random model of the family, in float32. Options of None are left to the family's config."""
    torch.manual_seed(0)
    given = {**SMALL, **(FAMILIES[family] if options is None else options)}
    kind = given.pop("model_type", family)
    config = AutoConfig.for_model(kind, **{name: value for name, value in given.items() if value is not None})
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "bias" in name or "sinks" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(directory)
    return directory


def load_plain(base: Path) -> torch.nn.Module:
    """transformers' own computation; only its eager attention has soft caps and sinks."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


def save_adapter(base: Path, directory: Path) -> Path:
    torch.manual_seed(1)
    model = load_plain(base)
    linears = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=sorted(linears - {"lm_head"}), task_type="CAUSAL_LM"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(directory, save_embedding_layers=False)
    return directory


def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_generate_with_and_without_an_adapter(family: str, tmp_path: Path) -> None:
    base = save_family(family, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    plain = load_plain(base)
    tuned = PeftModel.from_pretrained(load_plain(base), adapter).eval()
    engine = Engine(
        load_base(str(base), device="cpu", dtype="float32"), Settings(kv_cache_memory=0.05, max_batch_tokens=48)
    )
    version = version_of("a", adapter)
    engine.bank.warm(version)
    shapes = load_base(str(base), device="cpu", dtype="float32").linear_shapes
    reached = set(read_adapter(adapter, shapes, torch.float32, torch.device("cpu")).modules)
    assert reached == set(shapes) - {"lm_head"}, "every linear layer has an adapter"
    assert {name.rsplit(".", 1)[-1] for name in reached} == PROJECTIONS.get(family, set(ALL_LINEAR))
    prompts = random_prompts(3, seed=11)
    assert sorted(map(len, prompts))[1] > 2 * WINDOW
    bias = ((2, -1e9),)
    for number, prompt in enumerate(prompts):
        engine.add(request(f"base-{number}", prompt, max_tokens=NEW_TOKENS, logit_bias=bias))
        mix = ((version.digest, 1.0),)
        engine.add(request(f"tuned-{number}", prompt, mix=mix, max_tokens=NEW_TOKENS, logit_bias=bias))
    answers = {key: tokens_of(deltas) for key, deltas in drain(engine).items()}
    for number, prompt in enumerate(prompts):
        assert answers[f"base-{number}"] == greedy(plain, prompt)
        assert answers[f"tuned-{number}"] == greedy(tuned, prompt)
        assert answers[f"tuned-{number}"] != answers[f"base-{number}"]
    assert_nothing_held(engine)


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "falcon": ({"head_dim": None, "num_key_value_heads": None}, "attention cannot be replaced"),
    "gptj": ({"n_layer": 2, "n_head": 4, "rotary_dim": 8}, "attention cannot be replaced"),
    "stablelm": ({}, "do not hand on"),
    "llama4_text": ({"intermediate_size_mlp": 96, "num_local_experts": 2}, "chunked attention"),
    "qwen3_next": (
        {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
        "linear_attention",
    ),
    "lfm2": ({"full_attn_idxs": [1], "head_dim": None}, "kind conv"),
    "mamba": ({}, "linear_attention"),
    "xlstm": ({}, "recurrent state"),
    "t5": ({"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 1}, "encoder-decoder"),
    "diffllama": ({}, "two sequences in one batch"),  # no rule names it: it splits what attention returns
}


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_would_answer_wrongly_is_refused_by_name(family: str, tmp_path: Path) -> None:
    options, reason = REFUSED[family]
    directory = save_family(family, tmp_path / "base", options)
    with pytest.raises(Invalid, match=rf"\({family}\).*{reason}"):
        Engine(load_base(str(directory), device="cpu", dtype="float32"), Settings(kv_cache_memory=0.05))


def test_longrope_is_served_up_to_the_length_at_which_its_frequencies_change(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 64,
    }
    directory = save_family(
        "phi3", tmp_path / "base", {"rope_parameters": rope, "original_max_position_embeddings": 64}
    )

    def engine(**options: object) -> Engine:
        base = load_base(str(directory), device="cpu", dtype="float32")
        return Engine(base, Settings(kv_cache_memory=0.05, **options))

    with pytest.raises(Invalid, match=r"\(phi3\).*longrope.*256 are allowed; start with --max-model-len 64"):
        engine()
    served = engine(max_model_len=64)
    [prompt, *_] = random_prompts(1, seed=4)
    prompt = prompt[: 64 - NEW_TOKENS]
    served.add(request("a", prompt, max_tokens=NEW_TOKENS))
    assert tokens_of(drain(served)["a"]) == greedy(load_plain(directory), prompt)


class PlainKernels:
    """The reference kernels under another name, for the wrong ones below."""

    def __getattr__(self, name: str) -> object:
        return getattr(reference, name)


class Leaking(PlainKernels):
    """A sequence sees those before it in the batch."""

    def attend(self, query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor:
        slots = torch.cat([span.slots for span in plan.spans])
        spans = [replace(s, length=s.length + s.row, slots=slots[: s.length + s.row]) for s in plan.spans]
        return reference.attend(query, cache, AttentionPlan(spans), spec)


class Overflowing(PlainKernels):
    """Decoding gives no numbers; prompts are right."""

    def attend(self, query: Tensor, cache: LayerCache, plan: AttentionPlan, spec: AttentionSpec) -> Tensor:
        out = reference.attend(query, cache, plan, spec)
        return out if plan.decodes is None else out * float("nan")


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [("float32", "none"), ("bfloat16", "none"), ("float16", "none"), ("float32", "4bit"), ("bfloat16", "8bit")],
)
def test_the_probe_tells_rounding_from_a_wrong_computation(dtype: str, quantize: str, tmp_path: Path) -> None:
    """The same base is served as it is, and refused when its attention is wrong."""
    directory = save_family("qwen3", tmp_path / "base")
    settings = Settings(kv_cache_memory=0.05, quantize=quantize)
    Engine(load_base(str(directory), device="cpu", dtype=dtype), settings)
    for wrong in (Leaking(), Overflowing()):
        with pytest.raises(Invalid, match=r"\(qwen3\).*two sequences in one batch"):
            Engine(load_base(str(directory), device="cpu", dtype=dtype), settings, kernels=wrong)
