"""When a run keeps a snapshot, and what the snapshots are asked."""

from pathlib import Path
from typing import Any

import pytest

from adapters.errors import Invalid
from adapters.manifest import PersonaCard, digest_of
from adapters.snapshots import RunSnapshots
from adapters.store import AdapterStore
from tests.training.test_run import config, go, interrupt_at
from training.config import TrainConfig
from training.runs.run import resume_run
from training.runs.snapshots import DEMO_PROMPTS, demo_prompts, is_due, keeps_snapshots


def due(steps: int, every: int | None) -> list[int]:
    return [step for step in range(1, steps + 1) if is_due(step, steps, every)]


def test_a_run_keeps_about_eight_snapshots_the_last_step_among_them() -> None:
    assert due(80, None) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert due(5, None) == [1, 2, 3, 4, 5]
    assert len(due(1003, None)) == 8 and due(1003, None)[-1] == 1003
    assert due(25, 10) == [10, 20, 25]


def test_demo_prompts_are_the_runs_own_or_the_cards_or_ours() -> None:
    plain = TrainConfig(name="x")
    card = TrainConfig(name="x", card=PersonaCard(samples=["你是谁？"]))
    own = card.model_copy(update={"demo_prompts": ("what?",)})
    assert [demo_prompts(asked) for asked in (plain, card, own)] == [DEMO_PROMPTS, ("你是谁？",), ("what?",)]


def test_full_fine_tuning_has_no_adapter_to_keep() -> None:
    full: dict[str, Any] = {"name": "x", "method": "full"}
    assert not keeps_snapshots(TrainConfig(**full)) and not keeps_snapshots(TrainConfig(**full, snapshot_steps=0))
    with pytest.raises(Invalid, match="snapshot-steps is 5") as refused:
        keeps_snapshots(TrainConfig(**full, snapshot_steps=5))
    assert refused.value.param == "snapshot_steps"


def test_the_last_snapshot_is_what_was_published(tiny_base: Path, tmp_path: Path) -> None:
    finished = go(config(tiny_base, tmp_path, snapshot_steps=4), tmp_path / "home")
    run = RunSnapshots(tmp_path / "home" / "runs" / finished.job_id)
    assert run.steps() == [4, 6]
    first, last = run.all()
    assert last.digest == digest_of(last.directory) == finished.version.digest != first.digest
    assert first.manifest is not None and first.manifest.training is not None
    assert (first.manifest.training.steps, first.manifest.system_prompt) == (4, "You count.")
    assert run.series() is not None and run.series().prompts == DEMO_PROMPTS


def test_a_run_asked_for_none_keeps_none(tiny_base: Path, tmp_path: Path) -> None:
    finished = go(config(tiny_base, tmp_path, snapshot_steps=0), tmp_path / "home")
    assert not (tmp_path / "home" / "runs" / finished.job_id / "snapshots").exists()
    assert AdapterStore(tmp_path / "home" / "store").names() == ["counter"]


def test_a_resumed_run_has_the_snapshots_of_one_that_never_stopped(tiny_base: Path, tmp_path: Path) -> None:
    asked = config(tiny_base, tmp_path, snapshot_steps=1)
    whole = go(asked, tmp_path / "whole")
    cancelled = go(asked, tmp_path / "home", watcher=interrupt_at(3))
    run = RunSnapshots(tmp_path / "home" / "runs" / cancelled.job_id)
    assert run.steps()[:3] == [1, 2, 3]
    resume_run(cancelled.job_id, tmp_path / "home", device="cpu")
    expected = RunSnapshots(tmp_path / "whole" / "runs" / whole.job_id).all()
    assert [(s.step, s.digest) for s in run.all()] == [(s.step, s.digest) for s in expected]
