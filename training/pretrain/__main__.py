"""`python -m training.pretrain COMMAND`: the steps that make the bundled base model, and those that judge it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import BianlianError, Invalid

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
HERE = Path(__file__).parent  # where the everyday dialogues lie
RECIPES = HERE / "recipes"


@cli.command()
def make(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of one of ours: two-cores, gpu.")],
    data: Annotated[list[Path], typer.Option(help="Directory of corpus files; repeat for several.")],
    run: Annotated[Path, typer.Option(help="Directory to work in. The same command again goes on where it stopped.")],
    device: str = "cpu",
    compiled: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
) -> None:
    """Make a base from nothing: tokenizer, stages, model. Stop it whenever you like."""
    from training.pretrain.recipe import follow, read_recipe

    path = RECIPES / f"{recipe}.toml" if (RECIPES / f"{recipe}.toml").exists() else Path(recipe)
    model = follow(read_recipe(path), [*data, HERE], run, device=device, compiled=compiled)
    typer.echo(f"the model is in {model}")


@cli.command()
def bits(
    models: Annotated[list[Path], typer.Argument(help="Model directories.", metavar="MODEL")],
    data: Annotated[Path, typer.Option(help="Directory of corpus files, all of which are read.")],
    limit: Annotated[int | None, typer.Option("--bytes", help="Held-out text read from each file, at most.")] = None,
    ngram_bytes: Annotated[
        int | None,
        typer.Option(help="Text the n-gram learns from each file, at most. All of 90 MB takes about 4 GB of memory."),
    ] = None,
    to_json: Annotated[Path | None, typer.Option("--json", help="File to write the figures to as well.")] = None,
    device: str = "cpu",
) -> None:
    """Bits per byte of the documents that training never saw, for each model and an n-gram, file by file."""
    from rich.console import Console
    from rich.progress import Progress

    from training.pretrain.bits_table import bits_table, measure
    from training.quiet import silence_libraries

    silence_libraries()
    with Progress(console=Console(stderr=True)) as progress:
        figures = measure(models, data, limit=limit, ngram_limit=ngram_bytes, device=device, progress=progress)
    Console().print(bits_table(figures))
    _write_json(figures, to_json)


@cli.command()
def ask(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write.")],
    markdown: Annotated[Path | None, typer.Option(help="Page to write, with the answers in full.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call the model. Default: its directory.")] = None,
    seed: int = 1,
    device: str = "cpu",
) -> None:
    """Ask a model the hundred demo questions, sampling as its generation_config says."""
    from rich.console import Console
    from rich.progress import Progress

    from training.pretrain.demo import answers_of, ended, in_language, markdown_page, read_questions, write_answers
    from training.quiet import silence_libraries

    silence_libraries()
    questions = read_questions()
    with Progress(console=Console(stderr=True)) as progress:
        answering = answers_of(model, questions, name=name or model.resolve().name, seed=seed, device=device)
        answers = list(progress.track(answering, len(questions), description="asking"))
    write_answers(answers, out)
    typer.echo(
        f"{len(answers)} answers: {ended(answers):.1%} ended by themselves, "
        f"{in_language(answers):.1%} in the language of the question"
    )
    if markdown:
        markdown.write_text(markdown_page(answers), encoding="utf-8")


@cli.command()
def blind(
    a: Annotated[Path, typer.Argument(help="Answers of one model, as `ask` writes them.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Answers of another.", metavar="B")],
    out: Annotated[Path, typer.Option(help="Sheet to write; its key goes beside it, to NAME.key.jsonl.")],
    seed: int = 1,
) -> None:
    """Mix two models' answers into a sheet without names. A reader writes {"id", "fluent", "on_topic"} for each row."""
    from training.pretrain.blind import sheet
    from training.pretrain.demo import read_answers, write_lines

    rows, key = sheet(read_answers(a), read_answers(b), seed)
    write_lines(rows, out)
    write_lines(key, out.with_suffix(".key.jsonl"))
    typer.echo(f"{len(rows)} answers in {out}; whose they are is in {out.with_suffix('.key.jsonl')}")


@cli.command()
def judged(
    sheet: Annotated[Path, typer.Argument(help="Sheet that `blind` wrote.")],
    key: Annotated[Path, typer.Argument(help="Its key.")],
    readers: Annotated[list[Path], typer.Argument(help="What each reader found.", metavar="READER")],
    to_json: Annotated[Path | None, typer.Option("--json", help="File to write the figures to as well.")] = None,
) -> None:
    """Shares fluent and on topic by reader, how far readers agree, and what needs no reader: end and language."""
    from itertools import combinations

    from rich.console import Console

    from training.pretrain.blind import ASKED, agreement, judge, read_reader, verdicts_table
    from training.pretrain.demo import read_lines

    if len({path.stem for path in readers}) < len(readers):
        raise Invalid(
            "two readers' files have the same name; rename one, or nobody could tell them apart", param="readers"
        )
    rows = read_lines(sheet)
    found = {path.stem: read_reader(path, rows) for path in readers}
    verdicts = judge(rows, read_lines(key), found)
    kappas = {
        f"{asked}: {one} and {other}": agreement(found[one], found[other], asked)
        for one, other in combinations(found, 2)
        for asked in ASKED
    }
    Console().print(verdicts_table(verdicts))
    for between, kappa in kappas.items():
        typer.echo(f"Cohen's kappa, {between}: {'undefined' if kappa is None else f'{kappa:.2f}'}")
    _write_json({"models": [asdict(row) for row in verdicts], "kappa": kappas}, to_json)


def _write_json(figures: object, path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """A BianlianError is one line."""
    try:
        cli()
    except BianlianError as error:
        typer.echo(f"training.pretrain: {error.message}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
