"""A run that has changed nothing, or for the worse, and why: said as a warning, since everything went as it was asked
for."""

from training.config import PREFERENCES, Plan, TrainConfig, chosen_learning_rate
from training.trainer import Evaluation

# Nats a learned token. An adapter that was never trained moves nothing, to the bit; roundings in bfloat16 move 3e-4,
# and the smallest that changes words 2e-3 (serving/engine/effect.py measured them).
NO_EFFECT = 1e-3
_FAR_BELOW = 0.05  # of the learning rate that would have been chosen
_FEW_STEPS = 10
_SHORT = 3  # learned tokens a row, the end of turn among them


def no_effect(
    moved: float, config: TrainConfig, plan: Plan, *, hidden_size: int, steps: int, learned_tokens: float
) -> str | None:
    """What to say of a run that moved the rows it learned from by `moved` nats a token; None when it has learned."""
    if not moved < NO_EFFECT:
        return None
    usual = chosen_learning_rate(config, hidden_size)
    if plan.learning_rate < _FAR_BELOW * usual:
        cause = (
            f"the learning rate {plan.learning_rate:g} is far below the {usual:g} that is usual for this base; leave "
            "out --learning-rate, or give a larger one"
        )
    elif steps < _FEW_STEPS:
        few = f"{steps} {'step is' if steps == 1 else 'steps are'} too few; give {_longer(config)}"
        cause = few if config.max_steps else f"{few}, or a smaller --batch-size"
    elif learned_tokens < _SHORT:
        cause = f"its rows teach {learned_tokens:.1f} tokens each; give longer answers"
    else:
        cause = f"each step changes too little; give a larger --learning-rate or --lora-alpha, or {_longer(config)}"
    return (
        f"the result has no effect: what was learned from is {moved:.1e} nats a token likelier or less likely than "
        f"before, and below {NO_EFFECT:g} that is rounding. Likely cause: {cause}"
    )


def _longer(config: TrainConfig) -> str:
    return "a larger --max-steps" if config.max_steps else "more --epochs"


def got_worse(before: Evaluation | None, after: Evaluation | None, config: TrainConfig, plan: Plan) -> str | None:
    """What to say of preferences that are kept less on held-out rows than before training; None when they are not, or
    no rows were held out."""
    if config.objective not in PREFERENCES or before is None or after is None:
        return None
    if after.reward_accuracy == 0:
        found = "not one of them has its wanted answer preferred (reward accuracy 0)"
    elif after.loss > before.loss:
        found = f"the validation loss rose from {before.loss:.3f} to {after.loss:.3f}"
    else:
        return None
    return (
        f"the result got worse on held-out rows: {found}; give {_longer(config)} or more rows, a smaller "
        f"--learning-rate (it was {plan.learning_rate:g}), or another --beta (it was {plan.beta:g})"
    )
