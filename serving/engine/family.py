"""Which model families the engine can serve.

What is known to compute wrong answers in packed batches is refused by rule, with the reason and the way out. What no
rule names is caught by FamilyProbe: before the model is taken over, transformers computes two sequences, each alone;
afterwards the engine must find the same for both in one batch."""

import random
from typing import Any

import torch
from torch import Tensor

from adapters.base_model import BaseModel
from adapters.errors import Invalid
from serving.engine.model_runner import ModelRunner
from serving.engine.scratch import ScratchRun

# Tokens of the two sequences of the probe. They may not be longer than any max_model_len.
_LENGTHS = (11, 14)
# How far logits may be apart, root mean square over their own spread. Measured between the engine and transformers:
# up to 7e-6 in float32 (CUDA's TF32 has 1e-3) and 0.05 in bfloat16 (48 layers); a sequence that sees the other, 0.6.
_FLOAT32_TOLERANCE = 0.01
_ROUGH_TOLERANCE = 0.2  # 16 bits and less

_WAY_OUT = "serve a base of plain attention layers, such as Llama, Mistral, Qwen2 or 3, Gemma 2 or 3, Phi-3 or GLM-4"

# Kinds of layer, as `config.layer_types` has them, that attention over kept keys and values computes in full.
_SERVED_KINDS = {"full_attention", "sliding_attention", "dense", "sparse", "moe", "mlp"}


def refuse_unsupported(base: BaseModel, max_model_len: int) -> None:
    """Invalid when the engine is known to compute wrong answers with this model and this length."""
    for rule in (_own_attention, _drops_arguments, _other_layers, _keeps_state, _long_rope):
        if reason := rule(base.model, max_model_len):
            raise _unservable(base, reason)


def _unservable(base: BaseModel, reason: str) -> Invalid:
    kind = base.model.config.model_type
    return Invalid(f"base '{base.name}' ({kind}) cannot be served: {reason}", param="base")


def _own_attention(model: Any, max_model_len: int) -> str | None:
    # Falcon, Bloom, MPT, GPT-J: setting another attention only logs a line and changes nothing.
    if model._can_set_attn_implementation():
        return None
    return f"its attention cannot be replaced by the engine's; {_WAY_OUT}"


def _drops_arguments(model: Any, max_model_len: int) -> str | None:
    if model.config.model_type not in ("stablelm", "nemotron"):
        return None
    return f"its layers do not hand on what the engine's attention needs; {_WAY_OUT}"


def _other_layers(model: Any, max_model_len: int) -> str | None:
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _SERVED_KINDS
    if kinds == {"chunked_attention"}:  # Llama 4: the hook is not told the size of a chunk
        return f"the engine has no chunked attention; {_WAY_OUT}"
    if kinds:
        named = ", ".join(sorted(kinds))
        return f"the engine cannot keep sequences of one batch apart in its layers of the kind {named}; {_WAY_OUT}"
    return None


def _keeps_state(model: Any, max_model_len: int) -> str | None:
    if not model._is_stateful:
        return None
    return f"it keeps a recurrent state, which sequences in one batch would share; {_WAY_OUT}"


def _long_rope(model: Any, max_model_len: int) -> str | None:
    """LongRoPE picks its frequencies by the longest sequence of the batch, so a long one would change the answers of
    the short. (`dynamic` does too, but only beyond max_position_embeddings, where no sequence gets here.)"""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # some have one a kind of layer
    switches = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    if not switches or max_model_len <= min(switches):
        return None
    return (
        f"its positions (longrope) depend on the longest sequence in the batch once that has more than {min(switches)} "
        f"tokens, and {max_model_len} are allowed; start with --max-model-len {min(switches)}"
    )


class FamilyProbe:
    """Made before the model is taken over, `check`ed afterwards. Four short forward passes in all."""

    def __init__(self, base: BaseModel):
        base.model.set_attn_implementation("eager")  # the others leave out soft caps
        self._parts = [_split(sequence) for sequence in _random_sequences(base)]
        self._expected = [_alone(base, first + second) for first, second in self._parts]

    def check(self, runner: ModelRunner, *, rounded: bool = False) -> None:
        """Invalid when the engine's logits for the packed sequences are not transformers' for each alone.

        `rounded`: the engine has quantised the weights since. 4 bits move logits by 0.2 of their spread, so its own
        answers to each alone take the place of transformers'."""
        expected = [_alone_here(runner, first + second) for first, second in self._parts] if rounded else self._expected
        run = ScratchRun(runner, [()] * len(self._parts), capacity=max(map(len, expected)))
        first = run.extend([first for first, _ in self._parts])
        second = run.extend([second for _, second in self._parts])
        found = [half for halves in zip(first, second, strict=True) for half in halves]
        wanted = [
            half
            for logits, (begin, _) in zip(expected, self._parts, strict=True)
            for half in (logits[: len(begin)], logits[len(begin) :])
        ]
        # Not Python's max, which would lose what is not a number.
        worst = float(torch.tensor([_difference(*pair) for pair in zip(found, wanted, strict=True)]).max())
        tolerance = _tolerance(runner.base)
        if not worst <= tolerance:  # also when it is not a number
            raise _unservable(
                runner.base,
                f"two sequences in one batch do not give what each gives alone (logits differ by {worst:.2g} of their "
                f"spread, {tolerance:.2g} is rounding); {_WAY_OUT}",
            )


def _random_sequences(base: BaseModel) -> list[list[int]]:
    """Different tokens of the vocabulary, none with a meaning to the model's code (images, padding)."""
    size = min(len(base.tokenizer), base.model.get_input_embeddings().num_embeddings)
    drawn = random.Random(0).sample(range(size), min(size, 4 * sum(_LENGTHS)))
    special = set(base.tokenizer.added_tokens_decoder)
    ordinary = [token for token in drawn if token not in special]
    return [ordinary[: _LENGTHS[0]], ordinary[_LENGTHS[0] : sum(_LENGTHS)]]


def _split(sequence: list[int]) -> tuple[list[int], list[int]]:
    """In two uneven parts, computed one after the other: the first sequence ends by decoding a token, the second with
    a chunk of its prompt."""
    cut = len(sequence) - 1 if len(sequence) == _LENGTHS[0] else len(sequence) // 2
    return sequence[:cut], sequence[cut:]


@torch.inference_mode()
def _alone(base: BaseModel, sequence: list[int]) -> Tensor:
    """Logits (tokens, vocabulary) of one sequence by transformers' own attention."""
    logits: Tensor = base.model(input_ids=torch.tensor([sequence], device=base.device), use_cache=False).logits[0]
    return logits


def _alone_here(runner: ModelRunner, sequence: list[int]) -> Tensor:
    """Logits (tokens, vocabulary) of one sequence by the engine."""
    return ScratchRun(runner, [()], capacity=len(sequence)).extend([sequence])[0]


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference, over the spread of what was wanted."""
    error = (found.float() - wanted.float()).square().mean().sqrt()
    return float(error / wanted.float().std())


def _tolerance(base: BaseModel) -> float:
    rough = base.dtype != torch.float32 or getattr(base.model, "is_quantized", False)
    return _ROUGH_TOLERANCE if rough else _FLOAT32_TOLERANCE
