"""The training command, `bianlian train`; `bianlian data` is in `data_cli.py`. Torch and its kin are imported inside
the command, so that help comes at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from adapters.errors import BianlianError, Conflict, Invalid
from adapters.manifest import check_name
from adapters.settings import Device, load_settings
from training.config import TrainConfig, parse_config
from training.data.formats import FORMATS
from training.data.sources import absolute
from training.data_cli import data_cli
from training.job_cli import announce, jobs_cli
from training.jobs.queue import JobQueue
from training.quiet import silence_libraries

if TYPE_CHECKING:
    from training.runs.run import Finished, Started, Watcher
    from training.trainer import Evaluation, Progress

_FOREIGN = "training.foreign_flags"
_LISTS = ("data", "targets", "validation_data", "replay_data", "data_weights")


def _panel(panel: str) -> Callable[..., Any]:
    """An option shown in that panel of `--help`; panels come in the order in which they are first used."""
    return partial(typer.Option, rich_help_panel=panel)


_common = _panel("What, on what, and how")
_data = _panel("Data")
_adapter = _panel("Adapter and objective")
_optimizer = _panel("Steps")
_meanwhile = _panel("Meanwhile")


def register(cli: typer.Typer) -> None:
    """Add `train`, `jobs` and `data` to the command line."""
    cli.command("train", cls=_TrainCommand)(train_command)
    cli.add_typer(jobs_cli, name="jobs")
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
    context: typer.Context,
    data: Annotated[str | None, _common(help="Files to learn from, separated by commas.")] = None,
    name: Annotated[str | None, _common(help="What the adapter will be called.")] = None,
    base: Annotated[str | None, _common(help="Bundled name, directory, or hub id of the base model.")] = None,
    objective: Annotated[
        str | None,
        _common(help="sft (answers), pretrain (plain text), dpo, kto or orpo (preferences). Default: sft."),
    ] = None,
    method: Annotated[
        str | None,
        _common(help="lora, qlora (base in 4 bits), or full (all weights; makes a base of its own). Default: lora."),
    ] = None,
    epochs: Annotated[float | None, _common(help="Times each row is seen. Default: 3.")] = None,
    format: Annotated[str | None, _data(help=f"auto, {', '.join(FORMATS)}. Default: auto.")] = None,
    system: Annotated[str | None, _data(help="System prompt for rows that have none; served with the adapter.")] = None,
    max_length: Annotated[
        int | None, _data(help="Tokens a row may have. Default: the base's limit, at most 2048.")
    ] = None,
    max_samples: Annotated[int | None, _data(help="Rows taken from each file, the first ones. Default: all.")] = None,
    data_weights: Annotated[
        str | None, _data(help="Shares of the training rows, one for each file, separated by commas.")
    ] = None,
    mask_history: Annotated[
        bool | None, _data("--mask-history", help="Learn only the last answer of each conversation.")
    ] = None,
    thinking: Annotated[
        bool | None, _data("--thinking/--no-thinking", help="Learn thoughts. Default: where rows have them.")
    ] = None,
    packing: Annotated[bool | None, _data("--packing", help="Several short rows in one, each reading itself.")] = None,
    val_split: Annotated[float | None, _data(help="Share of the rows kept for validation. Default: 0.1.")] = None,
    validation_data: Annotated[
        str | None, _data(help="Files to validate on in place of a share, separated by commas.")
    ] = None,
    replay_data: Annotated[
        str | None, _data(help="Files mixed in so that the base forgets less, separated by commas.")
    ] = None,
    replay_share: Annotated[float | None, _data(help="Share of them among the training rows. Default: 0.1.")] = None,
    strict: Annotated[bool | None, _data("--strict", help="Refuse the data if one row cannot be used.")] = None,
    lora_r: Annotated[int | None, _adapter(help="Rank. Default: 16.")] = None,
    lora_alpha: Annotated[int | None, _adapter(help="Default: twice the rank.")] = None,
    lora_dropout: Annotated[float | None, _adapter(help="Default: 0.")] = None,
    targets: Annotated[
        str | None, _adapter(help="Linear layers, separated by commas. Default: all in the blocks.")
    ] = None,
    use_rslora: Annotated[bool | None, _adapter("--use-rslora", help="Divide alpha by the root of the rank.")] = None,
    use_dora: Annotated[bool | None, _adapter("--use-dora", help="Learn the length of weights apart.")] = None,
    init: Annotated[
        str | None,
        _adapter(help="default, gaussian, pissa or olora (both published as plain LoRA of twice the rank)."),
    ] = None,
    loraplus_ratio: Annotated[float | None, _adapter(help="LoRA+: learning rate of B over that of A, say 16.")] = None,
    neftune_alpha: Annotated[float | None, _adapter(help="NEFTune: noise on embeddings while training, say 5.")] = None,
    beta: Annotated[
        float | None, _adapter(help="Of dpo, kto, orpo: how much a preference may move. Default: 0.1; orpo: 1.")
    ] = None,
    learning_rate: Annotated[float | None, _optimizer(help="Default: by the base's width.")] = None,
    learning_rate_multiplier: Annotated[float | None, _optimizer(help="Of the chosen learning rate.")] = None,
    batch_size: Annotated[
        int | None, _optimizer(help="Rows an optimizer step learns from. Default: 16 or fewer.")
    ] = None,
    micro_batch_size: Annotated[
        int | None, _optimizer(help="Rows in one forward pass; gradients add up to a batch. Default: by the base.")
    ] = None,
    max_steps: Annotated[int | None, _optimizer(help="Optimizer steps, in place of epochs.")] = None,
    schedule: Annotated[
        str | None,
        _optimizer(help="cosine, cosine_with_min_lr, linear, constant or constant_with_warmup. Default: cosine."),
    ] = None,
    warmup: Annotated[
        float | None, _optimizer(help="Steps of warm-up; below 1, a share of all steps. Default: 0.05.")
    ] = None,
    weight_decay: Annotated[float | None, _optimizer(help="Default: 0.")] = None,
    max_grad_norm: Annotated[float | None, _optimizer(help="Gradients are cut to this norm. Default: 1.")] = None,
    optimizer: Annotated[
        str | None, _optimizer(help="auto, adamw, adamw_8bit, paged_adamw or paged_adamw_8bit. Default: auto.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        _optimizer(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Compute activations twice, to save memory. Default: by the base.",
        ),
    ] = None,
    seed: Annotated[int | None, _optimizer(help="Decides split, order and initial weights. Default: 0.")] = None,
    eval_steps: Annotated[int | None, _meanwhile(help="Steps between validations. Default: one an epoch.")] = None,
    save_steps: Annotated[int | None, _meanwhile(help="Steps between checkpoints. Default: one an epoch.")] = None,
    early_stopping: Annotated[
        int | None, _meanwhile(help="Stop after so many validations in a row that were no better.")
    ] = None,
    keep_best: Annotated[
        bool | None,
        _meanwhile(
            "--keep-best/--keep-last",
            help="Publish the best validation loss, or the last. Default: last; best with --early-stopping.",
        ),
    ] = None,
    resume: Annotated[str | None, _meanwhile(help="Go on with this run; needs no other option.")] = None,
    device: Annotated[str | None, _meanwhile(help="auto, cpu or cuda.")] = None,
    card: Annotated[Path | None, _meanwhile(help="JSON file with the persona's title, greeting and samples.")] = None,
    snapshot_steps: Annotated[
        int | None, _meanwhile(help="Steps between snapshots of the adapter; 0: none. Default: about eight a run.")
    ] = None,
    demo_prompts: Annotated[
        list[str] | None,
        _meanwhile(
            "--demo-prompt", help="Question put to every snapshot; repeat for several. Default: the card's samples."
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        _common("--config", help="A recipe: options as TOML or YAML, or one of LLaMA-Factory's or ms-swift's."),
    ] = None,
    detach: Annotated[
        bool, _meanwhile("--detach", help="Queue the run and return; it goes on without this terminal.")
    ] = False,
) -> None:
    """Train an adapter (or, with --method full, a base) and publish it."""
    settings = load_settings(device=device)
    console = Console()
    given = {
        key: value
        for key, value in context.params.items()
        if value not in (None, [], ()) and key in TrainConfig.model_fields
    }
    if resume:
        if given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise Invalid(f"--resume goes on with a run as it began; leave out {option}", param="resume")
        if config_file or context.meta[_FOREIGN]:
            raise Invalid(
                "--resume goes on with a run as it began; leave out --data, --name and --config", param="resume"
            )
        config = None
    else:
        lists = {key: _split(str(value)) for key, value in given.items() if key in _LISTS}
        options = {"base": settings.base, **given, **lists, "card": _read_card(card)}
        config = _prepared(options, set(given), config_file, context.meta[_FOREIGN], console)
    settings.require_home()
    if detach:
        queue = JobQueue(settings.root)
        if config is None:
            assert resume is not None
            announce(queue.resume(resume), settings)
        else:
            check_name(config.name)
            _require_good(config, settings.root, console)
            announce(queue.submit(absolute(config)), settings)
        return
    finished = _run(config, resume, settings.root, settings.device, console)
    JobQueue(settings.root).drop_snapshots(settings.snapshot_runs)
    if finished.state != "succeeded":
        console.print(finished.message, highlight=False, soft_wrap=True)
        raise typer.Exit(130)
    _print_result(console, finished)


def _require_good(config: TrainConfig, root: Path, console: Console) -> None:
    """Refuse now what the run would refuse when its turn comes."""
    with console.status("reading data"):
        silence_libraries()
        from training.combinations import check_combinations
        from training.runs.bases import check_free
        from training.runs.run_data import check_data

        check_free(root, config)
        check_combinations(config)
        check_data(config)


def _prepared(
    options: dict[str, Any], given: set[str], recipe_file: Path | None, foreign: dict[str, Any], console: Console
) -> TrainConfig:
    """The run that options and recipe ask for, its data and base on this machine.

    Options count over the recipe, and the recipe over what options are by default."""
    from training.data.hub_data import local_files

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
    if finished.state != "succeeded":
        raise Conflict(finished.message)
    _print_result(console, finished)
    return finished


def _run(config: TrainConfig | None, resume: str | None, root: Path, device: Device, console: Console) -> "Finished":
    with _watching(console) as watcher:
        from training.runs.run import resume_run, start_run

        if config is None:
            assert resume is not None
            return resume_run(resume, root, device=device, watcher=watcher)
        return start_run(config, root, device=device, watcher=watcher)


def _read_card(path: Path | None) -> dict[str, object]:
    import json

    if path is None:
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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
        silence_libraries()
        from training.runs.run import Watcher

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

    def on_evaluation(step: int, evaluation: "Evaluation") -> None:
        margin = "" if evaluation.margin is None else f", margin {evaluation.margin:.2f}"
        console.print(f"step {step}: validation loss {evaluation.loss:.3f}{margin}", highlight=False)

    def on_step(progress: "Progress") -> None:
        figures = f"loss {progress.loss:.3f} · {progress.tokens_per_s:,.0f} tokens/s"
        bar.update(task, completed=progress.step, total=progress.steps, figures=figures)
        if not console.is_terminal and _starts_a_tenth(progress.step, progress.steps):
            console.print(f"step {progress.step}/{progress.steps} · {figures} · {progress.remaining_s:.0f} s left")

    with bar:
        yield Watcher(on_stage, on_start, on_step, on_evaluation)


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
    for line in plan.lines():
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _print_result(console: Console, finished: "Finished") -> None:
    before, after = finished.before, finished.after
    if before is not None and after is not None:
        unit = " nats a learned token" if after.margin is None else ""
        console.print(f"validation loss: base {before.loss:.3f}, tuned {after.loss:.3f}{unit}", highlight=False)
    if before is not None and after is not None and before.margin is not None and after.margin is not None:
        console.print(
            f"held-out preferences: margin {before.margin:.2f} before, {after.margin:.2f} after; "
            f"reward margin {after.reward_margin:.3f}, reward accuracy {after.reward_accuracy:.0%}",
            highlight=False,
        )
    console.print(finished.message, highlight=False, soft_wrap=True)
    if finished.warning:
        console.print(f"warning: {finished.warning}", highlight=False, markup=False, soft_wrap=True)


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
