"""A base small enough for any test, and adapters whose effect shows: real Qwen3 code, random weights."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from adapters.settings import BUNDLED

TOKENIZER = BUNDLED / "bianlian-mini"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_base(
    directory: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    template: str | None = None,
    special_tokens: Sequence[str] = (),
    tokens: Sequence[str] = (),
) -> Path:
    """A random base in float32. Weights are large enough that the next token depends on the whole past."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_with(template, special_tokens, tokens)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024 if template else 512,  # tools take room
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tokenizer_with(template: str | None = None, special_tokens: Sequence[str] = (), tokens: Sequence[str] = ()) -> Any:
    """The bundled tokenizer, with another chat template, more special tokens and more ordinary ones if given."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens(list(tokens))
    if special_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def save_adapter(
    directory: Path, base: Path, *, rank: int, seed: int, targets: list[str] | None = None, **options: object
) -> Path:
    """A PEFT adapter with random A and B, written by PEFT itself."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=targets or ALL_LINEAR, task_type="CAUSAL_LM", **options
    )
    tuned = get_peft_model(model, config)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    return directory


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
