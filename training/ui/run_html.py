"""A run as HTML: where it stands, its curves, what its snapshots answer, its settings and log."""

from collections.abc import Sequence
from datetime import datetime
from html import escape

from adapters.snapshots import snapshot_id
from adapters.ui.tab import link_to
from adapters.ui.words import Language
from training.jobs.progress import RunProgress
from training.jobs.queue import Job
from training.ui.charts import Line, line_chart, short
from training.ui.checked import duration, table
from training.ui.services import ProbeRow
from training.ui.words import LINES, say

_SIGNS = {
    "validating": "…",
    "queued": "…",
    "running": "▶",
    "paused": "‖",
    "succeeded": "✓",
    "failed": "✗",
    "cancelled": "–",
}
_GOES_ON = ("validating", "queued", "running")


def is_live(job: Job) -> bool:
    """Whether it changes by itself."""
    return job.status.state in _GOES_ON


def label(job: Job, language: Language) -> str:
    """A run in the list: what it is, how far, and when it was asked for."""
    status = job.status
    how = say(language, f"state_{status.state}")
    if status.state in ("running", "paused") and status.steps:
        how += f" {100 * status.step // status.steps}%"
    asked = job.config.created.astimezone()
    name = job.config.train.name if status.version is None else status.version
    return f"{_SIGNS[status.state]} {name} · {how}\n{asked:%m-%d %H:%M}"


def head(run: RunProgress, base: str, place: int | None, attended: bool, language: Language) -> str:
    """`base` is the one this server answers with, `place` the run's in the queue, from 1; None when it does not wait.
    `attended` is whether anybody starts runs here."""
    job, status = run.job, run.job.status
    chip = f'<span class="tr-chip {status.state}">{say(language, f"state_{status.state}")}</span>'
    parts = [
        f'<div class="tr-panel tr-run"><div class="tr-head"><h2>{escape(job.config.train.name)}</h2>{chip}'
        f'<span class="mono">{escape(job.id)}</span></div>'
    ]
    if status.state == "failed":
        parts.append(f'<div class="tr-trouble" role="alert">{escape(status.message)}</div>')
    if is_live(job) and status.state != "running" and not attended:
        parts.append(f'<div class="tr-trouble" role="alert">{escape(say(language, "unattended"))}</div>')
    percent = f"{100 * run.share:.0f}"
    parts.append(
        f'<progress max="100" value="{percent}" aria-label="{escape(say(language, "progress"))}">{percent}%</progress>'
        f'<div class="tr-facts">{"".join(f"<span>{fact}</span>" for fact in _facts(run, place, language))}</div>'
    )
    if status.version and job.config.train.method != "full":
        parts.append(_links(status.version, base, "chat_result", "compare_result", language))
    return "".join(parts) + "</div>"


def _facts(run: RunProgress, place: int | None, language: Language) -> list[str]:
    """HTML, a fact each."""
    status, curves = run.job.status, run.curves
    if place is not None:
        return [say(language, "queue_place", n=place)]
    facts = []
    if status.steps:
        facts.append(say(language, "step_of", a=status.step, b=status.steps))
    elif status.state == "running":
        facts.append(say(language, "preparing"))
    if run.remaining_s is not None:
        facts.append(say(language, "remaining", time=duration(run.remaining_s, language)))
    if status.state == "running" and curves.tokens_per_s:
        facts.append(say(language, "pace", n=f"{curves.tokens_per_s[-1][1]:,.0f}"))
    if curves.base_validation is not None and curves.tuned_validation is not None:
        facts.append(say(language, "result", a=curves.base_validation, b=curves.tuned_validation))
    return facts


def charts(run: RunProgress, language: Language) -> str:
    """Loss, learning rate and speed by step."""
    curves, steps = run.curves, run.job.status.steps
    empty = say(language, "no_points")
    validation = list(curves.validation)
    lines = [
        Line(say(language, "train_loss"), "train", curves.loss),
        Line(say(language, "validation_loss"), "validation", validation, dots=True),
    ]
    if curves.base_validation is not None and curves.loss:
        last = max(steps, curves.loss[-1][0])
        base = curves.base_validation
        lines.append(Line(say(language, "base_loss"), "base", [(0, base), (last, base)]))
    loss = line_chart(
        say(language, "loss"),
        lines,
        spoken=_spoken(say(language, "loss"), lines, language),
        empty=empty,
        marks=run.snapshots,
        steps=steps,
    )
    small = ""
    for key, points in (("rate", curves.learning_rate), ("speed", curves.tokens_per_s)):
        line = [Line("", "train", points)]
        small += line_chart(
            say(language, key), line, spoken=_spoken(say(language, key), line, language), empty=empty, steps=steps
        )
    return (
        f'<div class="tr-stack"><div class="tr-panel">{loss}</div>'
        f'<div class="tr-panel tr-small"><div class="tr-two">{small}</div></div></div>'
    )


def _spoken(title: str, lines: Sequence[Line], language: Language) -> str:
    told = [
        f"{line.name} {say(language, 'at_step', step=line.points[-1][0], value=short(line.points[-1][1]))}".strip()
        for line in lines
        if line.points
    ]
    return f"{title}. {'. '.join(told)}"


def answers(run: RunProgress, base: str, rows: Sequence[ProbeRow], chosen: int, language: Language) -> str:
    """The questions, answered by the base and by snapshot number `chosen`, from 1; 0 shows the base alone."""
    steps = run.snapshots
    if not steps:
        key = "no_snapshots_yet" if is_live(run.job) else "no_snapshots"
        return f'<div class="tr-empty">{say(language, key)}</div>'
    step = steps[chosen - 1] if chosen else 0
    heading = say(language, "snapshot_of", a=chosen, b=len(steps), step=step) if chosen else say(language, "before")
    awaited = is_live(run.job) and step in (0, steps[-1])
    answered = "".join(_answered(row, step, awaited, language) for row in rows)
    links = _links(snapshot_id(run.job.id, step), base, "chat_snapshot", "compare_snapshot", language)
    waiting = (
        "" if rows else f'<div class="tr-empty">{say(language, "awaited" if is_live(run.job) else "no_answer")}</div>'
    )
    return (
        f'<div class="tr-verdict" aria-live="polite">{heading}{_loss_at(run, step, language)}</div>{waiting}'
        f'<div class="tr-answers">{answered}</div>{links if chosen else ""}'
    )


def _answered(row: ProbeRow, step: int, awaited: bool, language: Language) -> str:
    cells = _cell(row, 0, awaited, language)
    if step:
        cells += _cell(row, step, awaited, language)
    return f'<div><div class="tr-q">{escape(row.prompt)}</div><div class="tr-pair">{cells}</div></div>'


def _cell(row: ProbeRow, step: int, awaited: bool, language: Language) -> str:
    found = next((cell for cell in row.cells if cell.step == step), None)
    name = say(language, "snapshot", step=step) if step else say(language, "base")
    if found is None:
        text = f'<p class="none">{say(language, "awaited" if awaited else "no_answer")}</p>'
    else:
        cut = " …" if found.finish_reason == "length" else ""
        text = f"<p>{escape(found.text.strip())}{cut}</p>"
    return f'<div class="tr-cell{" tuned" if step else ""}"><small>{name}</small>{text}</div>'


def _loss_at(run: RunProgress, step: int, language: Language) -> str:
    """The loss nearest to a step, behind the heading."""
    near = [point for point in run.curves.validation or run.curves.loss if point[0] <= step]
    if not near or not step:
        return ""
    name = say(language, "validation_loss" if run.curves.validation else "train_loss")
    return f"<small>{say(language, 'loss_at', name=name, value=short(near[-1][1]))}</small>"


def _links(model: str, base: str, chat: str, compare: str, language: Language) -> str:
    return (
        f'<div class="tr-links"><a class="first" href="{escape(link_to("chat", model=model))}">'
        f"{escape(say(language, chat, name=model))}</a>"
        f'<a href="{escape(link_to("compare", models=f"{base},{model}"))}">{say(language, compare)}</a></div>'
    )


def details(run: RunProgress, language: Language) -> str:
    """What was asked, what was chosen, and what happened."""
    asked = run.job.config.train.model_dump(mode="json", exclude_defaults=True, exclude={"data", "validation_data"})
    rows = [(name, _shown(value, language), say(language, "asked")) for name, value in asked.items()]
    chosen = {name: value for name, value in run.plan.items() if name in run.reasons}
    rows += [(name, _shown(value, language), _why(name, run, language)) for name, value in chosen.items()]
    lines = "".join(
        f'<div class="{event.level}">{datetime.fromtimestamp(event.time):%H:%M:%S} {escape(event.message)}</div>'
        for event in run.events
    )
    heads = [say(language, key) for key in ("knob", "value", "why")]
    return (
        f'<div class="tr-two"><div>{table(heads, rows)}</div>'
        f'<div><b>{say(language, "log")}</b><div class="tr-log" tabindex="0" role="log">{lines}</div></div></div>'
    )


def _why(name: str, run: RunProgress, language: Language) -> str:
    known = f"why_{name}" in LINES
    return say(language, f"why_{name}") if known and language == "zh" else run.reasons[name]


def _shown(value: object, language: Language) -> str:
    if isinstance(value, bool):
        return say(language, str(value).lower())
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " / ".join(map(str, value))
    return str(value)
