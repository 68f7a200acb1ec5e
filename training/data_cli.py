"""The `bianlian data` commands: look at data before training on it, and change its shape."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from adapters.errors import Invalid
from adapters.settings import load_settings
from training.config import TrainConfig, parse_config
from training.data.formats import FORMATS
from training.quiet import silence_libraries

if TYPE_CHECKING:
    from training.data.preflight import Preflight, PreviewRow

_LISTED = 10  # findings of a kind shown on a terminal; --json has all

FilesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Data files, dataset_info.json:NAME, or hub ids as --data takes them (hf:owner/name).",
        metavar="FILE",
        show_default=False,
    ),
]
FormatOption = Annotated[str, typer.Option(help=f"auto, {', '.join(FORMATS)}.")]
BaseOption = Annotated[str | None, typer.Option(help="Bundled name, directory, or hub id of the base model.")]
SystemOption = Annotated[
    str | None, typer.Option(help="System prompt for rows that have none; served with the adapter.")
]
LengthOption = Annotated[
    int | None, typer.Option(help="Tokens a row may have. Default: the base's limit, at most 2048.")
]
DatasetOption = Annotated[
    str | None, typer.Option(help="Names in DATASET_DIR/dataset_info.json, separated by commas, as LLaMA-Factory has.")
]
DirectoryOption = Annotated[Path | None, typer.Option(help="Where that dataset_info.json is.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Refuse the data if a single row cannot be used.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Everything that was found, as JSON.")]

data_cli = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)


@data_cli.command("check")
def check_command(
    files: FilesArgument = None,
    dataset: DatasetOption = None,
    dataset_dir: DirectoryOption = None,
    base: BaseOption = None,
    format: FormatOption = "auto",
    system: SystemOption = None,
    max_length: LengthOption = None,
    method: Annotated[str, typer.Option(help="lora, qlora or full: whose cost is shown first.")] = "lora",
    objective: Annotated[
        str | None, typer.Option(help="sft, pretrain, dpo, kto or orpo. Default: what the rows are for.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Times each row is seen; for the estimate.")] = 3.0,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Report on data files: formats, bad rows, lengths, duplicates, personal data, and what a run would cost.

    Exit code 2 when training would refuse them."""
    values: dict[str, object] = {
        "format": format,
        "system": system,
        "max_length": max_length,
        "method": method,
        "epochs": epochs,
        "strict": strict,
    }
    if objective:
        values["objective"] = objective
    config = _config(files, dataset, dataset_dir, base, values)
    found = _preflight(config, preview_rows=0)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print_findings(Console(), found)
    if found.refused:
        raise Invalid(found.refused, param="data")


@data_cli.command("preview")
def preview_command(
    files: FilesArgument = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 3,
    dataset: DatasetOption = None,
    dataset_dir: DirectoryOption = None,
    base: BaseOption = None,
    format: FormatOption = "auto",
    system: SystemOption = None,
    max_length: LengthOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show rows as the model will see them, learned tokens in colour (between ⟦ and ⟧ without a terminal)."""
    import json

    config = _config(files, dataset, dataset_dir, base, {"format": format, "system": system, "max_length": max_length})
    console = Console()
    with console.status("reading"):
        silence_libraries()
        from training.data.preflight import preview_of

        shown = preview_of(config, rows)
    if as_json:
        typer.echo(json.dumps([row.model_dump() for row in shown], ensure_ascii=False, indent=2))
        return
    for row in shown:
        _print_preview(console, row)


@data_cli.command("convert")
def convert_command(
    to: Annotated[str, typer.Option(help="messages, alpaca or sharegpt.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write: .jsonl, or .json.", show_default=False)],
    files: FilesArgument = None,
    format: FormatOption = "auto",
    dataset: DatasetOption = None,
    dataset_dir: DirectoryOption = None,
) -> None:
    """Write files of any format as one file of another. Rows the other format has no place for are named, and left out.

    Exit code 2 when no row is left."""
    from training.data.convert import convert_files

    converted = convert_files(_config(files, dataset, dataset_dir, None, {"format": format}), to, out)
    for row in converted.bad:
        typer.echo(f"left out: {row}", err=True)
    typer.echo(f"{out}: {converted.written} rows, {len(converted.bad)} left out")
    for line in converted.kept:
        typer.echo(f"  {line}")


@data_cli.command("split")
def split_command(
    file: Annotated[str, typer.Argument(help="A data file, or hf:owner/name.", show_default=False)],
    share: Annotated[float, typer.Option(help="Of the rows, for validation.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides which.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory to write to.")] = Path("."),
) -> None:
    """Write a file's rows as two files, for training and validation. Equal rows stay together, unchanged."""
    from training.data.convert import split_file
    from training.data.hub_data import local_files

    for local in local_files([file]):
        for path, rows in split_file(local, share, seed, out):
            typer.echo(f"{path}: {rows} rows")


def _config(
    files: list[str] | None, dataset: str | None, dataset_dir: Path | None, base: str | None, values: dict[str, object]
) -> TrainConfig:
    from training.data.hub_data import local_files

    # One argument may name several, as --data does.
    named = {
        "data": local_files([part for file in files or () for part in file.split(",") if part]),
        "dataset": [part.strip() for part in (dataset or "").split(",") if part.strip()],
        "dataset_dir": dataset_dir,
    }
    return parse_config({**named, "name": "check", "base": base or load_settings().base, **values})


def _preflight(config: TrainConfig, preview_rows: int) -> "Preflight":
    with Console(stderr=True).status("reading"):
        silence_libraries()
        from training.data.preflight import preflight

        return preflight(config, device=load_settings().device, preview_rows=preview_rows)


def _print_findings(console: Console, found: "Preflight") -> None:
    from training.data.preflight import count_rows

    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def some(heading: str, findings: Sequence[object]) -> None:
        if findings:
            line(heading)
            for finding in findings[:_LISTED]:
                line(f"  {finding}")
            if len(findings) > _LISTED:
                line(f"  and {len(findings) - _LISTED} more (--json lists all)")

    for path, format in found.formats.items():
        line(f"{path}: {format}")
    bad_share = len(found.bad) / max(1, found.good + len(found.bad) + len(found.too_long))
    line(
        f"rows: {found.good} good, {len(found.bad)} bad ({bad_share:.1%}), {found.duplicates} duplicates, "
        f"{len(found.near_duplicates)} nearly; for {' or '.join(found.objectives)}"
    )
    some("bad rows:", found.bad)
    n = found.lengths
    line(
        f"tokens a row: {n.shortest} to {n.longest}, median {n.median}, 95% up to {n.p95}; "
        f"{n.total:,} in all, {n.learned:,} learned"
    )
    most = max((bar.rows for bar in n.bars), default=0)
    for bar in n.bars:
        width = round(40 * bar.rows / most) if most else 0
        filled = "█" * max(width, 1 if bar.rows else 0)
        console.print(f"  {bar.start:>6}–{bar.end:<6} [cyan]{filled}[/] {bar.rows}", highlight=False)
    some(f"shortened: {len(found.shortened)} rows lose turns beyond {found.max_length} tokens", found.shortened)
    some(f"too long: {len(found.too_long)} rows left out", found.too_long)
    line(f"end of turn learned in {found.end_of_turn_share:.1%} of conversations")
    some("without a learned end of turn:", found.without_end_of_turn)
    some("nearly the same:", found.near_duplicates)
    some(f"very short answers: {len(found.short_answers)}", found.short_answers)
    line("languages, by script: " + ", ".join(f"{script} {rows}" for script, rows in sorted(found.scripts.items())))
    if found.system_prompt is not None:
        line(f"system prompt: {found.system_prompt}")
    if found.with_tools:
        line(f"tools: {found.with_tools} rows, as the base's chat template shows them")
    if found.with_reasoning:
        line(f"reasoning: {found.with_reasoning} rows learned with thoughts")
    if found.reasoning_left_out:
        line(
            f"reasoning: the thoughts of {found.reasoning_left_out} rows are left out, since the base's chat template "
            "has no place for them; the answers are learned"
        )
    private = count_rows(found.private)
    some(
        f"privacy: {private} row{' holds' if private == 1 else 's hold'} what may be personal data "
        f"({len(found.private)} found); make sure it may be used",
        found.private,
    )
    _print_estimates(console, found)


def _print_estimates(console: Console, found: "Preflight") -> None:
    from rich.table import Table

    if not found.estimates:
        return
    table = Table("method", "steps", "trained", "time", "memory", title_justify="left", box=None, pad_edge=False)
    for one in sorted(found.estimates, key=lambda one: one.method != found.method):
        table.add_row(
            one.method,
            f"{one.steps:,}",
            f"{one.trained_parameters / 1e6:,.1f} M",
            _duration(one.seconds),
            f"{one.memory_total / 2**30:,.2f} GiB",
        )
    console.print(f"a run: {found.training_rows} rows, {found.validation_rows} for validation; about", highlight=False)
    console.print(table)
    console.print(f"  time {found.estimates[0].seconds_by}; memory by formula", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print_preview(console: Console, row: "PreviewRow") -> None:
    from rich.text import Text

    text = Text()
    for piece in row.pieces:
        if not piece.learned:
            text.append(piece.text, style="dim")
        elif console.is_terminal:
            text.append(piece.text, style="bold green")
        else:
            text.append(f"⟦{piece.text}⟧")
    console.rule(f"{row.file}:{row.line} {row.part}".strip(), align="left", style="dim")
    console.print(text, soft_wrap=True)
