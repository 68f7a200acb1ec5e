"""Adapters on a base quantised by bitsandbytes, against PEFT on the same quantised base."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import PeftModel

from adapters.base_model import load_base
from adapters.settings import Settings
from serving.engine.engine import Engine
from serving.engine.lora import LoRALinear
from tests.serving.test_engine import assert_nothing_held, drain, random_prompts, request, tokens_of, version_of


# bitsandbytes' 8-bit product treats outlying features apart, and takes them from all rows at once: only equal batches
# give equal tokens. So those requests run alone, for their first token.
@pytest.mark.parametrize(("quantize", "new_tokens"), [("4bit", 8), ("8bit", 1)])
def test_adapters_on_a_quantised_base_equal_peft_on_it(
    tiny_base: Path, tiny_adapters: dict[str, Path], quantize: Literal["4bit", "8bit"], new_tokens: int
) -> None:
    names = ["r2", "r16"]
    load = {"device": "cpu", "dtype": "float32", "quantize": quantize}
    engine = Engine(load_base(str(tiny_base), **load), Settings(kv_cache_memory=0.05, max_batch_tokens=256))  # type: ignore[arg-type]
    quantised = "Linear4bit" if quantize == "4bit" else "Linear8bitLt"
    layers = [module for module in engine.base.model.modules() if isinstance(module, LoRALinear)]
    assert sum(type(layer.base).__name__ == quantised for layer in layers) == len(layers) - 1  # all but the head
    versions = {name: version_of(name, tiny_adapters[name]) for name in names}
    for version in versions.values():
        engine.bank.warm(version)
    prompts = random_prompts(3, seed=21)
    answers: dict[str, list[int]] = {}
    for number, (prompt, name) in enumerate(zip(prompts, [None, *names], strict=True)):
        mix = ((versions[name].digest, 1.0),) if name else ()
        engine.add(request(f"{number}", prompt, mix=mix, max_tokens=new_tokens))
        if quantize == "8bit":
            answers |= {key: tokens_of(deltas) for key, deltas in drain(engine).items()}
    answers |= {key: tokens_of(deltas) for key, deltas in drain(engine).items()}
    assert_nothing_held(engine)

    model = PeftModel.from_pretrained(load_base(str(tiny_base), **load).model, tiny_adapters["r2"], "r2").eval()  # type: ignore[arg-type]
    model.load_adapter(tiny_adapters["r16"], "r16")
    for number, (prompt, name) in enumerate(zip(prompts, [None, *names], strict=True)):
        if name:
            model.set_adapter(name)
            expected = continue_greedily(model, prompt, new_tokens)
        else:
            with model.disable_adapter():
                expected = continue_greedily(model, prompt, new_tokens)
        assert answers[f"{number}"] == expected


@torch.inference_mode()
def continue_greedily(model: PeftModel, prompt: list[int], new_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
