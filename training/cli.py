"""The training commands: `bianlian train` and `bianlian data check`. Torch and its kin are imported inside the
commands, so that help comes at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from adapters.errors import BianlianError, Conflict, Invalid
from adapters.settings import Device, load_settings
from training.config import TrainConfig, parse_config
from training.formats import FORMATS

if TYPE_CHECKING:
    from training.run import Finished, Started, Watcher
    from training.trainer import Progress

FormatOption = Annotated[str, typer.Option(help=f"auto, {', '.join(FORMATS)}.")]
BaseOption = Annotated[str | None, typer.Option(help="Bundled name, directory, or hub id of the base model.")]
SystemOption = Annotated[
    str | None, typer.Option(help="System prompt for rows that have none; served with the adapter.")
]
LengthOption = Annotated[
    int | None, typer.Option(help="Tokens a row may have. Default: the base's limit, at most 2048.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Refuse the data if a single row cannot be used.")]

_FOREIGN = "training.foreign_flags"

data_cli = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add `train` and `data` to the command line."""
    cli.command("train", cls=_TrainCommand)(train_command)
    cli.add_typer(data_cli, name="data")


class _TrainCommand(TyperCommand):
    """Takes the flags of other trainers (`--lora_rank`) out before ours are parsed; `train_command` finds them in
    the context."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from training.recipes.flags import split_flags
        from training.recipes.read import foreign_names

        ours = {name.lstrip("-") for parameter in self.params for name in [*parameter.opts, *parameter.secondary_opts]}
        kept, ctx.meta[_FOREIGN] = split_flags(args, ours, foreign_names())
        return super().parse_args(ctx, kept)


def train_command(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(help="Files to learn from, separated by commas; or hf:owner/name, modelscope:owner/name."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the adapter will be called.")] = None,
    base: BaseOption = None,
    format: FormatOption = "auto",
    method: Annotated[str, typer.Option(help="lora, or qlora (base in 4 bits).")] = "lora",
    system: SystemOption = None,
    epochs: Annotated[float, typer.Option(help="Times each row is seen.")] = 3.0,
    learning_rate: Annotated[float | None, typer.Option(help="Default: by the base's width.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows an optimizer step learns from. Default: 16 or fewer.")
    ] = None,
    lora_r: Annotated[int, typer.Option(help="Rank.")] = 16,
    lora_alpha: Annotated[int | None, typer.Option(help="Default: twice the rank.")] = None,
    lora_dropout: Annotated[float, typer.Option()] = 0.0,
    targets: Annotated[
        str | None, typer.Option(help="Linear layers, separated by commas. Default: all in the blocks.")
    ] = None,
    max_length: LengthOption = None,
    val_split: Annotated[float, typer.Option(help="Share of the rows kept for validation.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides split, order and initial weights.")] = 0,
    save_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints. Default: one an epoch.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    card: Annotated[Path | None, typer.Option(help="JSON file with the persona's title, greeting and samples.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run; needs no other option.")] = None,
    strict: StrictOption = False,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="A recipe: options as TOML or YAML, or one of LLaMA-Factory's or ms-swift's."),
    ] = None,
) -> None:
    """Train an adapter and publish it. Flags of ms-swift and LLaMA-Factory (--lora_rank 8) are understood, too."""
    settings = load_settings(device=device)
    console = Console()
    if resume:
        if data or name or config_file or ctx.meta[_FOREIGN]:
            raise Invalid(
                "--resume goes on with a run as it began; leave out --data, --name and --config", param="resume"
            )
        config = None
    else:
        options: dict[str, Any] = {
            "data": _split(data),
            "name": name,
            "base": base or settings.base,
            "format": format,
            "method": method,
            "system": system,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "lora_r": lora_r,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "targets": _split(targets),
            "max_length": max_length,
            "val_split": val_split,
            "seed": seed,
            "strict": strict,
            "save_steps": save_steps,
            "card": _read_card(card),
        }
        config = _prepared(options, _given(ctx), config_file, ctx.meta[_FOREIGN], console)
    finished = _run(config, resume, settings.root, settings.device, console)
    if finished.state == "cancelled":
        console.print(finished.message, highlight=False, soft_wrap=True)
        raise typer.Exit(130)
    _print_result(console, finished)


def _given(ctx: typer.Context) -> set[str]:
    """The options that stand on the command line."""
    return {name for name in ctx.params if (source := ctx.get_parameter_source(name)) and source.name == "COMMANDLINE"}


def _prepared(
    options: dict[str, Any], given: set[str], recipe_file: Path | None, foreign: dict[str, Any], console: Console
) -> TrainConfig:
    """The run that options and recipe ask for, its data and base on this machine.

    Options count over the recipe, and the recipe over what options are by default."""
    from training.hub_data import local_files

    recipe = None
    if recipe_file or foreign:
        from training.recipes.prepare import fit_length, with_recipe

        options, recipe = with_recipe(options, given, recipe_file, foreign)
        for line in recipe.report():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        recipe.refuse()
    data, name = options.get("data") or options.get("dataset"), options.get("name")
    if not data or not name:
        raise Invalid(
            "--data FILE and --name NAME are needed (or --config RECIPE, or --resume RUN)",
            param="name" if data else "data",
        )
    options |= {name: local_files(options[name]) for name in ("data", "validation_data") if options.get(name)}
    config = parse_config(options)

    from adapters.base_model import locate_base

    base = locate_base(config.base)  # downloads before the progress bar of the run begins
    if recipe and not recipe.is_ours and "max_length" not in given and config.max_length:
        length = fit_length(config.max_length, base)
        if length < config.max_length:
            console.print(f"max_length {length}, all that {config.base} reads", highlight=False, soft_wrap=True)
            config = config.model_copy(update={"max_length": length})
    return config


def train_with_progress(config: TrainConfig, root: Path, device: Device = "auto") -> "Finished":
    """Train and publish under `root`, drawing progress on the terminal. Raises Conflict when it was interrupted."""
    console = Console()
    finished = _run(config, None, root, device, console)
    if finished.state == "cancelled":
        raise Conflict(finished.message)
    _print_result(console, finished)
    return finished


def _run(config: TrainConfig | None, resume: str | None, root: Path, device: Device, console: Console) -> "Finished":
    with _watching(console) as watcher:
        from training.run import resume_run, start_run

        if config is None:
            assert resume is not None
            return resume_run(resume, root, device=device, watcher=watcher)
        return start_run(config, root, device=device, watcher=watcher)


@data_cli.command("check")
def check_command(
    files: Annotated[list[Path], typer.Argument(help="Data files.")],
    base: BaseOption = None,
    format: FormatOption = "auto",
    system: SystemOption = None,
    max_length: LengthOption = None,
    strict: StrictOption = False,
) -> None:
    """Report on data files: formats, bad rows, duplicates, lengths. Exit code 2 when training would refuse them."""
    settings = load_settings()
    config = parse_config(
        {
            "data": files,
            "name": "check",
            "base": base or settings.base,
            "format": format,
            "system": system,
            "max_length": max_length,
            "strict": strict,
        }
    )
    console = Console()
    with console.status("reading"):
        _silence_libraries()
        from training.run import read_dataset

        report = read_dataset(config).report
    for line in report.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    report.refuse(strict=strict)


def _read_card(path: Path | None) -> dict[str, object]:
    import json

    if path is None:
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Invalid(f"{path} is no persona card: {error}", param="card") from error
    if not isinstance(card, dict):
        raise Invalid(f"{path} is no persona card: it must hold an object with title, greeting, samples", param="card")
    return card


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


@contextmanager
def _watching(console: Console) -> "Iterator[Watcher]":
    """A Watcher that draws: stages as a line, steps as a bar (or, without a terminal, a line every tenth)."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with console.status("starting"):
        _silence_libraries()
        from training.run import Watcher

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("starting", total=None, figures="")

    def on_stage(stage: str) -> None:
        bar.update(task, description=stage)

    def on_start(started: "Started") -> None:
        _print_start(console, started)
        bar.update(task, description="training", completed=started.resumed_at)

    def on_step(progress: "Progress") -> None:
        figures = f"loss {progress.loss:.3f} · {progress.tokens_per_s:,.0f} tokens/s"
        bar.update(task, completed=progress.step, total=progress.steps, figures=figures)
        if not console.is_terminal and _starts_a_tenth(progress.step, progress.steps):
            console.print(f"step {progress.step}/{progress.steps} · {figures} · {progress.remaining_s:.0f} s left")

    with bar:
        yield Watcher(on_stage, on_start, on_step)


def _silence_libraries() -> None:
    """Their loading bars and deprecation notes would tear our lines apart; what matters is raised, not logged."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _starts_a_tenth(step: int, steps: int) -> bool:
    return step * 10 // steps != (step - 1) * 10 // steps


def _print_start(console: Console, started: "Started") -> None:
    for line in started.report.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    plan = started.plan
    console.print(
        f"run {started.job_id}: {started.rows} rows, {started.validation_rows} for validation, "
        f"learning rate {plan.learning_rate:g}, batch size {plan.batch_size}"
        + (f", resumed at step {started.resumed_at}" if started.resumed_at else ""),
        highlight=False,
        soft_wrap=True,
    )


def _print_result(console: Console, finished: "Finished") -> None:
    record = finished.record
    assert record is not None
    if record.base_val_loss is not None and record.tuned_val_loss is not None:
        console.print(
            f"validation loss: base {record.base_val_loss:.3f}, tuned {record.tuned_val_loss:.3f} nats a learned token",
            highlight=False,
        )
    console.print(finished.message, highlight=False, soft_wrap=True)


def _main() -> None:
    """`python -m training.cli`: these commands alone."""
    cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    register(cli)
    try:
        cli()
    except BianlianError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    _main()
