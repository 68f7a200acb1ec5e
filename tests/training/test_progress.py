"""A run as those see it who look at it: thinned curves, and a stamp that changes when it does."""

from pathlib import Path

from training.config import TrainConfig
from training.jobs.progress import MAX_POINTS, curves_of, read_progress, stamp_of, thinned
from training.jobs.queue import JobQueue
from training.runs.journal import Journal, Metric


def begun(tmp_path: Path) -> tuple[JobQueue, Journal]:
    queue = JobQueue(tmp_path)
    return queue, queue.submit(TrainConfig(name="face", data=(tmp_path / "rows.json",))).journal


def test_curves_have_a_bounded_number_of_points_and_keep_both_ends() -> None:
    points = [(step, float(step)) for step in range(1, 10_001)]
    kept = thinned(points)
    assert len(kept) == MAX_POINTS and kept[0] == points[0] and kept[-1] == points[-1]
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    assert abs(sum(value for _, value in kept) / len(kept) - 5000) < 50  # means of stretches, not samples
    assert thinned(points[:MAX_POINTS]) == points[:MAX_POINTS] and thinned([]) == []


def test_every_kind_of_metric_is_its_own_curve() -> None:
    curves = curves_of(
        [
            Metric(kind="base_validation", step=0, loss=4.0),
            Metric(kind="step", step=1, loss=3.0, learning_rate=0.1, tokens_per_s=50.0),
            Metric(kind="validation", step=1, loss=3.5),
            Metric(kind="tuned_validation", step=1, loss=3.5),
        ]
    )
    assert (curves.loss, curves.validation) == ([(1, 3.0)], [(1, 3.5)])
    assert (curves.learning_rate, curves.tokens_per_s) == ([(1, 0.1)], [(1, 50.0)])
    assert (curves.base_validation, curves.tuned_validation) == (4.0, 3.5)


def test_a_stamp_changes_with_whatever_is_shown(tmp_path: Path) -> None:
    queue, journal = begun(tmp_path)
    stamps = [stamp_of(queue.get(journal.job_id))]
    assert stamp_of(queue.get(journal.job_id)) == stamps[0]
    for change in (
        lambda: journal.append(Metric(kind="step", step=1, loss=1.0)),
        lambda: journal.note("told"),
        lambda: journal.update(step=1, steps=2),
        lambda: (journal.directory / "probe.json").write_text("{}"),
    ):
        change()
        stamps.append(stamp_of(queue.get(journal.job_id)))
    assert len(set(stamps)) == len(stamps)


def test_a_run_is_read_at_any_age(tmp_path: Path) -> None:
    queue, journal = begun(tmp_path)
    new = read_progress(queue.get(journal.job_id))
    assert (new.share, new.remaining_s, new.plan, new.snapshots) == (0.0, None, {}, [])
    (journal.directory / "plan.json").write_text('{"format": 1, "values": {"batch_size": 4}, "reasons": {}}')
    journal.update(step=1, steps=4)
    journal.note("Step 1", type="metrics")
    older = read_progress(queue.get(journal.job_id))
    assert older.share == 0.25 and older.plan == {"batch_size": 4}
    assert [event.message for event in older.events] == ["queued"]  # figures are in the curves
