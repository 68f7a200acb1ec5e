"""When a run keeps a snapshot of its adapter, and what the snapshots are asked. How they lie on disk is
adapters/snapshots.py's business."""

from adapters.errors import Invalid
from training.config import TrainConfig

SNAPSHOTS_A_RUN = 8
DEMO_PROMPTS = ("你好，你是谁？", "我今天有点累，陪我说说话吧。", "Hello! Who are you?", "Tell me about your day.")


def keeps_snapshots(config: TrainConfig) -> bool:
    """Invalid when snapshots are asked for where there is no adapter to keep."""
    if config.method == "full" and config.snapshot_steps:
        raise Invalid(
            f"snapshot-steps is {config.snapshot_steps}, but method full trains the whole base, which is no adapter to "
            "keep snapshots of; leave it out, or use --method lora",
            param="snapshot_steps",
        )
    return config.method != "full" and config.snapshot_steps != 0


def is_due(step: int, steps: int, every: int | None) -> bool:
    """Whether the state after `step` of `steps` is kept. None spreads them evenly; the last step is always kept, so
    that the series ends where the run does."""
    if every is None:
        return step * SNAPSHOTS_A_RUN // steps > (step - 1) * SNAPSHOTS_A_RUN // steps
    return step % every == 0 or step == steps


def demo_prompts(config: TrainConfig) -> tuple[str, ...]:
    """The run's own, else the persona's sample questions, else ours."""
    return config.demo_prompts or tuple(config.card.samples) or DEMO_PROMPTS
