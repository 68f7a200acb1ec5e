"""The table of a finished run's metrics, as OpenAI gives it out: a CSV among the uploaded files, made when it is first
asked for."""

import csv
import logging
from pathlib import Path

from adapters.errors import BianlianError
from adapters.regular import read_regular
from training.jobs.fine_tuning import Files
from training.jobs.queue import Job
from training.runs.journal import Journal, Metric

log = logging.getLogger(__name__)

COLUMNS = ("step", "train_loss", "valid_loss", "learning_rate", "epoch", "tokens_per_s")
# Of preferences, as training and held-out rows show them.
PREFERENCE_COLUMNS = (
    "train_reward_margin",
    "train_reward_accuracy",
    "valid_margin",
    "valid_reward_margin",
    "valid_reward_accuracy",
)
_NOTE = "result_file"


def result_file_ids(job: Job, files: Files) -> list[str]:
    """Of a run that has succeeded; [] of another, and once the file was deleted. Blocks. [] too, with a line in the
    log, where the run's directory is damaged: the run itself can be shown all the same."""
    if job.status.state != "succeeded":
        return []
    try:
        return _result_file_ids(job, files)
    except (OSError, BianlianError) as error:
        log.warning("the results of run %s cannot be given out: %s", job.id, error)
        return []


def _result_file_ids(job: Job, files: Files) -> list[str]:
    note = job.journal.directory / _NOTE
    with job.journal.locked():
        if not note.exists():
            with files.workspace() as workspace:
                table = workspace / "step_metrics.csv"
                write_table(job.journal, table)
                note.write_text(files.keep(table, f"{job.id}-step_metrics.csv", "fine-tune-results").id)
        file_id = read_regular(note).decode(errors="replace")
    try:
        files.get(file_id)
    except BianlianError:
        return []
    return [file_id]


def write_table(journal: Journal, target: Path) -> None:
    """One line a step; the validation loss stands where it was measured. Preferences have their margins too."""
    lines: dict[int, dict[str, float | None]] = {}
    for metric in journal.metrics():
        line = lines.setdefault(metric.step, {"step": metric.step})
        if metric.kind == "step":
            line |= {"train_loss": metric.loss, "learning_rate": metric.learning_rate, "epoch": metric.epoch}
            line["tokens_per_s"] = metric.tokens_per_s
            line |= of_preferences(metric, "train_")
        elif metric.kind.endswith("validation"):
            line["valid_loss"] = metric.loss
            line |= of_preferences(metric, "valid_")
    columns = [*COLUMNS, *(name for name in PREFERENCE_COLUMNS if any(name in line for line in lines.values()))]
    with target.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(lines[step] for step in sorted(lines))


def of_preferences(metric: Metric, prefix: str) -> dict[str, float]:
    """Margins and accuracy, as far as they were measured."""
    names = ("margin", "reward_margin", "reward_accuracy")
    return {f"{prefix}{name}": value for name in names if (value := getattr(metric, name)) is not None}
