"""`bianlian jobs`: what runs, waits and has ended under this home. Works beside a server and without one."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from adapters.settings import Settings, load_settings
from training.jobs.queue import LOG_FILE, Job, JobQueue, is_supervised, supervise_apart
from training.runs.journal import Event, State, told

JobArgument = Annotated[
    str,
    typer.Argument(metavar="JOB", help="A run as `bianlian jobs list` shows it, or an adapter's name: its newest run."),
]

jobs_cli = typer.Typer(help="Look at training runs, stop them, go on with them.", no_args_is_help=True)


@jobs_cli.command("list")
def list_command(
    state: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None,
) -> None:
    """All runs, the oldest first."""
    queue = _queue()
    jobs = [job for job in _watched(queue) if state in (None, job.status.state)]
    table = Table("run", "state", "step", "left", "base", "result", box=None, pad_edge=False)
    for job in jobs:
        table.add_row(
            job.id,
            job.status.state,
            f"{job.status.step}/{job.status.steps}" if job.status.steps else "",
            _left(job),
            job.config.train.base,
            job.status.version or "",
        )
    console = Console()
    # A program that reads this wants whole names, however narrow the terminal that is not there.
    Console(width=console.width if console.is_terminal else 200).print(table)
    for run, reason in sorted(queue.damaged.items()):
        typer.echo(f"damaged, and left out: {run} ({reason})", err=True)


@jobs_cli.command("show")
def show_command(job: JobArgument) -> None:
    """Where one run is, and what it was asked for."""
    queue = _queue()
    job = _found(queue, job)
    queue.note_dead([queue.get(job)])
    found = queue.get(job)
    status, config = found.status, found.config.train
    at_work = status.state in ("validating", "running")
    lines = {
        "run": found.id,
        "state": status.state,
        "code": status.code or "",
        "message": status.message,
        "step": f"{status.step} of {status.steps}" if status.steps else "",
        "left": _left(found),
        "process": f"{status.process.pid} on {status.process.host}" if status.process and at_work else "",
        "heartbeat": _ago(beat) if status.state == "running" and (beat := found.journal.last_beat()) else "",
        "tokens": f"{status.trained_tokens:,}" if status.trained_tokens else "",
        "created": f"{found.config.created.astimezone():%Y-%m-%d %H:%M:%S}",
        "finished": f"{status.finished.astimezone():%Y-%m-%d %H:%M:%S}" if status.finished else "",
        "result": status.version or "",
        "data": ", ".join(map(str, config.data)),
        "base": config.base,
        "method": f"{config.method}, {config.objective}",
        "directory": str(found.journal.directory),
    }
    console = Console()
    for name, value in lines.items():
        if value:
            console.print(f"{name:<10} {value}", highlight=False, markup=False, soft_wrap=True)


@jobs_cli.command("logs")
def logs_command(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    output: Annotated[bool, typer.Option("--output", help="What its process printed, in place of its events.")] = False,
) -> None:
    """A run's events."""
    import time

    queue = _queue()
    job = _found(queue, job)
    journal = queue.get(job).journal
    if output:
        log = journal.directory / LOG_FILE
        typer.echo(log.read_text(encoding="utf-8", errors="replace") if log.exists() else "", nl=False)
        return
    seen = 0
    while True:
        queue.note_dead([queue.get(job)])
        over = queue.get(job).status.state not in ("validating", "queued", "running")
        for event in journal.events(seen):
            _print_event(event)
            seen += 1
        if over or not follow:
            return
        time.sleep(0.5)


@jobs_cli.command("cancel")
def cancel_command(job: JobArgument) -> None:
    """Stop a run for good, after its step; its checkpoints stay."""
    queue = _queue(writable=True)
    _say(queue.cancel(_found(queue, job)), "cancelled")


@jobs_cli.command("pause")
def pause_command(job: JobArgument) -> None:
    """Stop a run after its step, with a checkpoint: its process ends, its memory is free."""
    queue = _queue(writable=True)
    _say(queue.pause(_found(queue, job)), "paused")


@jobs_cli.command("resume")
def resume_command(job: JobArgument) -> None:
    """Queue a paused, failed or cancelled run again; it goes on from its last checkpoint."""
    settings = load_settings()
    queue = JobQueue(settings.require_home())
    resumed = queue.resume(_found(queue, job))
    announce(resumed, settings)


@jobs_cli.command("remove")
def remove_command(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Runs that do not run.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete runs with their data, checkpoints and snapshots. What they published stays in the store."""
    queue = _queue(writable=True)
    wanted = list(dict.fromkeys(jobs))
    for job in wanted:
        queue.removable(job)  # all or none
    if not yes:
        typer.confirm(f"delete {', '.join(wanted)}?", abort=True)
    for job in wanted:
        queue.remove(job)
        typer.echo(f"deleted {job}")


def announce(job: Job, settings: Settings) -> None:
    """Say that `job` waits, and see to it that somebody starts it."""
    server = is_supervised(settings.root)
    if not server:
        supervise_apart(
            settings.root,
            device=settings.device,
            max_running=max(1, settings.max_running_jobs),
            snapshot_runs=settings.snapshot_runs,
        )
    by = "the server on this home starts it" if server else "a process of its own works off the queue"
    typer.echo(f"run {job.id} is queued; {by}. Follow it with: bianlian jobs logs --follow {job.id}")


def _queue(*, writable: bool = False) -> JobQueue:
    return JobQueue(load_settings().require_home(writable=writable))


def _found(queue: JobQueue, name: str) -> str:
    """The id of the run that `name` means; says so when it is another."""
    job = queue.find(name)
    if job.id != name:
        typer.echo(f"{name}: its newest run is {job.id}", err=True)
    return job.id


def _watched(queue: JobQueue) -> list[Job]:
    """All runs, the dead among them noticed: there may be no server to do it."""
    queue.note_dead(queue.all())
    return queue.all()


def _say(job: Job, wanted: State) -> None:
    state = job.status.state
    typer.echo(f"run {job.id} {told(state)}" if state == wanted else f"run {job.id} will be {wanted} after its step")


def _left(job: Job) -> str:
    end = job.status.estimated_finish
    return f"{max(0.0, (end - datetime.now(UTC)).total_seconds()):.0f} s" if end else ""


def _ago(moment: float) -> str:
    return f"{max(0.0, datetime.now(UTC).timestamp() - moment):.0f} s ago"


def _print_event(event: Event) -> None:
    moment = datetime.fromtimestamp(event.time).astimezone()
    typer.echo(f"{moment:%H:%M:%S} {'' if event.level == 'info' else event.level + ': '}{event.message}")
