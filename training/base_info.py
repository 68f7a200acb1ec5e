"""What a base tells without its weights: its configuration, and the renderer for its chat template."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.base_model import locate_base
from adapters.errors import Invalid
from adapters.renderer import ChatRenderer


@dataclass(frozen=True)
class BaseInfo:
    directory: Path
    config: Any  # transformers.PretrainedConfig; its attributes differ by architecture
    renderer: ChatRenderer

    @property
    def hidden_size(self) -> int:
        return int(self.config.get_text_config().hidden_size)

    @property
    def max_model_len(self) -> int:
        return int(self.config.get_text_config().max_position_embeddings)


def read_base(name: str) -> BaseInfo:
    """Look at the base `name`, as `locate_base` finds it. Blocks. Raises NotFound or Invalid when it is none."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    directory = locate_base(name)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise Invalid(
            f"base '{name}' has no chat template; train a chat model, or add chat_template.jinja", param="base"
        )
    try:
        configured = GenerationConfig.from_pretrained(directory).eos_token_id
    except OSError:  # no generation_config.json: transformers takes the model's
        configured = config.get_text_config().eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    stops = frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
    return BaseInfo(directory, config, ChatRenderer(tokenizer, stops))
