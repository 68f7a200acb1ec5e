"""Random-weight bases and adapters to measure with: the cost of a model is in its shape, not in what it learned.

Every token such a base generates has text, as nearly every token of a trained model does: else a stream would stay
silent while tokens are made, and the time to the first one could not be seen from outside."""

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config

from adapters.manifest import WEIGHTS_FILE
from adapters.settings import BUNDLED

BUNDLED_BASE = BUNDLED / "bianlian-mini"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    # hidden, mlp, layers, heads, kv heads, head_dim, vocabulary (None: the tokenizer's)
    "mini": (320, 1024, 6, 6, 2, 64, None),
    "0.6b": (1024, 3072, 28, 16, 8, 128, 151_936),
}
MAX_LENGTH = 1024
_TEMPLATE_TOKENS = 10  # what the chat template adds to a one-turn prompt
_FIRST_WORD, _LAST_WORD = 300, 8000  # ids of the bundled vocabulary that stand for whole words


def build_base(shape: str, directory: Path) -> Path:
    """Save a base of that shape in bfloat16, its tokenizer beside it."""
    hidden, mlp, layers, heads, kv_heads, head_dim, vocabulary = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_BASE)
    config = Qwen3Config(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        # Their logits are 0, and among many random ones some are above: greedy decoding never picks these.
        model.get_output_embeddings().weight[list(_without_text(tokenizer))] = 0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if vocabulary:
        _name_the_rest(directory / "tokenizer.json", vocabulary)
    return directory


def build_adapter(base: Path, directory: Path, *, rank: int, seed: int) -> Path:
    """A PEFT adapter on all linear layers with random A and B: PEFT's own configuration and names, float32."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(Qwen3Config.from_pretrained(base)), config)
        shapes = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model).items()}
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    config.save_pretrained(directory)
    randomise_adapter(directory, shapes, seed)
    return directory


def randomise_adapter(directory: Path, shapes: dict[str, torch.Size], seed: int) -> None:
    """Write weights of those shapes into a PEFT directory: for each seed others."""
    dice = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=dice) * (0.02 if ".lora_B." in name else shape[-1] ** -0.5)
        for name, shape in shapes.items()
    }
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


@cache
def prompts(count: int, tokens: int) -> tuple[str, ...]:
    """Texts that render to about `tokens` tokens each, chat template included, all different."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_BASE)
    dice = random.Random(1)
    words = [i for i in range(_FIRST_WORD, _LAST_WORD) if _has_text(tokenizer, i)]
    return tuple(tokenizer.decode(dice.choices(words, k=tokens - _TEMPLATE_TOKENS)) for _ in range(count))


def _has_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    text = tokenizer.decode([token_id], skip_special_tokens=True)
    return bool(text) and "\ufffd" not in text


def _without_text(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """Special tokens, and bytes that are only part of a character."""
    return (token_id for token_id in range(len(tokenizer)) if not _has_text(tokenizer, token_id))


def _name_the_rest(path: Path, vocabulary: int) -> None:
    """Give the ids above the tokenizer's own a short text each. They are ordinary entries without merges: text never
    becomes one of them, and decoding costs what it costs for the others."""
    document = json.loads(path.read_text(encoding="utf-8"))
    names = document["model"]["vocab"]
    names |= {f"t{token_id}": token_id for token_id in range(len(names), vocabulary)}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
