"""What an adapter changes: KL(base ‖ tuned) over a fixed text, computed by the engine's own layers and kernels with
base and adapter in one batch, so that it says what is really served. An adapter that was never trained, or whose
weights reach no layer, shows here; so does one that has destroyed the model."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from serving.engine.model_runner import ModelRunner
from serving.engine.scratch import ScratchRun

Verdict = Literal["ok", "no effect", "breaks down"]

# Two languages, statements and questions. About 45 tokens: running answers wait for it no longer than for a prompt.
TEXT = (
    "你好！请介绍一下你自己。今天天气很好，我们去公园散步吧。\n"
    "The quick brown fox jumps over the lazy dog. What is your name, and what can you do for me?"
)
# Nats a token. Measured on bianlian-mini: an adapter with B = 0 changes nothing, to the bit; any other moves roundings
# and shows 3e-4 in bfloat16, even rank 4 after a single step, whose own share is 6e-6 (6e-5 after ten steps). The
# smallest that changes words has 2e-3, the bundled persona 2.2.
NO_EFFECT = 1e-3
# Of ln(vocabulary), which is all that a token can tell: half of it off, an adapter no longer knows what text is like.
# Random B, under which 4 % of the likeliest tokens are still the base's, is 0.51 of it off; the bundled persona 0.24.
BREAKS_DOWN = 0.5


@dataclass(frozen=True)
class Effect:
    """`kl` in nats a token; None when logits were infinite or not numbers."""

    kl: float | None
    verdict: Verdict

    @property
    def warning(self) -> str | None:
        """What is wrong with the adapter, as the rest of a sentence that begins with its name; None when nothing is."""
        if self.verdict == "no effect":
            return (
                f"has no effect: it moves the base's predictions by {self.kl:.1e} nats a token, and below {NO_EFFECT} "
                "that is rounding; was it trained, and on this base?"
            )
        if self.verdict == "breaks down":
            found = (
                "gives numbers that are infinite or none" if self.kl is None else f"is {self.kl:.1f} nats a token off"
            )
            return f"breaks down: it {found} where the base reads plain text; train it again at a lower learning rate"
        return None


def measure_effect(runner: ModelRunner, slot: int, max_tokens: int) -> Effect:
    """The effect of the adapter in the bank's `slot`, from one forward pass. Engine's thread, between two steps."""
    prompt = runner.base.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:max_tokens]
    base, tuned = ScratchRun(runner, [(), ((slot, 1.0),)], capacity=len(prompt)).extend([prompt, prompt])
    return compare(base, tuned)


def compare(base: Tensor, tuned: Tensor) -> Effect:
    """Both are logits (tokens, vocabulary) after the same tokens."""
    log_p, log_q = (logits.float().log_softmax(dim=-1) for logits in (base, tuned))
    p = log_p.exp()
    # A token that the base rules out (-inf) adds nothing, whatever the other says.
    kl = float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1).mean())
    if not math.isfinite(kl):
        return Effect(None, "breaks down")
    kl = max(kl, 0.0)  # rounding
    if kl < NO_EFFECT:
        return Effect(kl, "no effect")
    return Effect(kl, "breaks down" if kl > BREAKS_DOWN * math.log(base.shape[-1]) else "ok")
