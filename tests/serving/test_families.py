"""Model families: greedy tokens equal transformers' generate in float32, without and with an adapter, in a batch."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from adapters.base_model import load_base
from adapters.settings import Settings
from serving.engine.engine import Engine
from tests.serving.test_engine import assert_nothing_held, drain, random_prompts, request, tokens_of, version_of
from tests.tiny import TOKENIZER

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
}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
    "gemma3_text": {"sliding_window": 24, "query_pre_attn_scalar": 16, "tie_word_embeddings": False},
    "phi3": {},
    "glm4": {"partial_rotary_factor": 0.5},
}
NEW_TOKENS = 10


def save_family(family: str, directory: Path) -> Path:
    torch.manual_seed(0)
    options = {**SMALL, **FAMILIES[family]}
    config = AutoConfig.for_model(options.pop("model_type", family), **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(directory)
    return directory


def save_adapter(base: Path, directory: Path) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
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
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    engine = Engine(
        load_base(str(base), device="cpu", dtype="float32"), Settings(kv_cache_memory=0.05, max_batch_tokens=48)
    )
    version = version_of("a", adapter)
    engine.bank.warm(version)
    prompts = random_prompts(3, seed=11)
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
