"""A run as somebody looks at it who may have come late: where it stands, its curves thinned out to what a screen can
show, and the snapshots it left. Read from the run's directory; nothing is remembered here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from adapters.snapshots import RunSnapshots
from training.jobs.queue import Job
from training.runs.journal import EVENTS_FILE, METRICS_FILE, PLAN_FILE, STATUS_FILE, Event, Metric

MAX_POINTS = 400  # of a curve; more cannot be told apart on a screen
_SHOWN_EVENTS = 200

Point = tuple[int, float]  # step, value


@dataclass(frozen=True)
class Curves:
    """Each by step. Losses are nats a learned token, or of preferences their objective's."""

    loss: list[Point]
    validation: list[Point]
    learning_rate: list[Point]
    tokens_per_s: list[Point]
    base_validation: float | None  # of the base, before the first step
    tuned_validation: float | None  # of what was published


@dataclass(frozen=True)
class RunProgress:
    job: Job
    curves: Curves
    snapshots: list[int]  # steps
    plan: dict[str, object]  # the numbers it trains with; empty before it has begun
    reasons: dict[str, str]
    events: list[Event]  # those for people, the latest last

    @property
    def share(self) -> float:
        """Of the steps, those that are done."""
        if self.job.status.state == "succeeded":
            return 1.0
        return self.job.status.step / self.job.status.steps if self.job.status.steps else 0.0

    @property
    def remaining_s(self) -> float | None:
        """None when nobody can say."""
        finish = self.job.status.estimated_finish
        return max(0.0, (finish - datetime.now(UTC)).total_seconds()) if finish else None


def read_progress(job: Job) -> RunProgress:
    """Blocks. A run that is being deleted looks as one that has not begun."""
    plan, reasons = _plan(job)
    told = [event for event in job.journal.events() if event.type == "message"]
    return RunProgress(
        job=job,
        curves=curves_of(job.journal.metrics()),
        snapshots=RunSnapshots(job.journal.directory).steps(),
        plan=plan,
        reasons=reasons,
        events=told[-_SHOWN_EVENTS:],
    )


def stamp_of(job: Job) -> str:
    """Changes when anything about the run does that is shown of it; nothing is read."""
    directory = job.journal.directory
    found = []
    for name in (STATUS_FILE, METRICS_FILE, EVENTS_FILE, PLAN_FILE, "probe.json", "snapshots"):
        try:
            stat = (directory / name).stat()
        except OSError:
            found.append("-")
        else:
            found.append(f"{stat.st_mtime_ns:x}.{stat.st_size:x}")
    return f"{job.id} {' '.join(found)}"


def curves_of(metrics: Sequence[Metric]) -> Curves:
    steps = [metric for metric in metrics if metric.kind == "step"]

    def last(kind: str) -> float | None:
        return next((metric.loss for metric in reversed(metrics) if metric.kind == kind), None)

    return Curves(
        loss=thinned([(metric.step, metric.loss) for metric in steps]),
        validation=thinned([(metric.step, metric.loss) for metric in metrics if metric.kind == "validation"]),
        learning_rate=thinned([(m.step, m.learning_rate) for m in steps if m.learning_rate is not None]),
        tokens_per_s=thinned([(m.step, m.tokens_per_s) for m in steps if m.tokens_per_s is not None]),
        base_validation=last("base_validation"),
        tuned_validation=last("tuned_validation"),
    )


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points: means of stretches of equal length, each at its last step. The first and last steps
    stay."""
    if len(points) <= most:
        return list(points)
    inner = points[1:-1]
    stretches = most - 2
    kept = [points[0]]
    for number in range(stretches):
        part = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        kept.append((part[-1][0], sum(value for _, value in part) / len(part)))
    return [*kept, points[-1]]


def _plan(job: Job) -> tuple[dict[str, object], dict[str, str]]:
    try:
        document = json.loads((job.journal.directory / PLAN_FILE).read_text(encoding="utf-8"))
        return dict(document["values"]), dict(document["reasons"])
    except (OSError, ValueError, KeyError, TypeError):  # not begun, or written by a program that is not this one
        return {}, {}
