"""`bianlian bench`: a load client's figures on the terminal. httpx, rich and the client are imported inside, so that
help comes at once."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.errors import Invalid, NotFound

if TYPE_CHECKING:
    from rich.console import Console

    from serving.load_client import Load, LoadReport, Percentiles, Prompt

REQUESTS_PER_CLIENT = 8
OPEN_LOOP_REQUESTS = 64
DATASET_FIELDS = ("messages", "prompt", "instruction", "query")


def bench(
    url: Annotated[str, typer.Option(help="Server to load: ours, vLLM, llama.cpp, SGLang, ...")] = (
        "http://127.0.0.1:7860"
    ),
    api_key: Annotated[str | None, typer.Option(help="Key the server wants.")] = None,
    models: Annotated[str | None, typer.Option(help="Names separated by commas. Default: all in /v1/models.")] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Clients at once; several numbers, separated by commas, run in turn. Default: 1.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests a run. Default: 8 a client, 64 with --rate.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the random prompts.")] = 128,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer has.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    dataset: Annotated[
        Path | None, typer.Option(help="Prompts instead of random ones: JSONL of strings, prompt or messages.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides prompts, dice and arrival times.")] = 0,
    rate: Annotated[float | None, typer.Option(help="Requests a second, instead of --concurrency.")] = None,
    warm_up: Annotated[bool, typer.Option(help="One short request to every model first.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Measure a server under load: time to first token, between tokens, in all; tokens and requests a second."""
    import asyncio

    from rich.console import Console

    from serving import load_client

    levels = _levels(concurrency, rate)
    endpoint = load_client.Endpoint(url, api_key)
    console = Console()
    given = _read_prompts(dataset) if dataset else None

    async def run() -> "list[tuple[Load, LoadReport]]":
        names = _split(models) if models else await load_client.list_models(endpoint)
        if not names:
            raise NotFound(f"{url} offers no models; name some with --models", param="models")
        counts = [requests or (OPEN_LOOP_REQUESTS if rate else REQUESTS_PER_CLIENT * level) for level in levels]
        prompts = given or await load_client.prompts_of(endpoint, names[0], prompt_tokens, max(counts), seed)
        if warm_up:
            await load_client.warm_up(endpoint, names)
        runs = []
        for level, count in zip(levels, counts, strict=True):
            load = load_client.Load(
                endpoint,
                tuple(names),
                prompts,
                requests=count,
                concurrency=level,
                rate=rate,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
            )
            runs.append((load, await _with_progress(load, console)))
        return runs

    runs = asyncio.run(run())
    _print(runs, console)
    if json_file:
        _write(runs, json_file)
        console.print(f"written to {json_file}", highlight=False)
    if not all(report.completed for _, report in runs):
        raise typer.Exit(1)


async def _with_progress(load: "Load", console: "Console") -> "LoadReport":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from serving.load_client import Sample, run_load

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        task = progress.add_task(_title(load), total=load.requests)
        failures = 0

        def ended(sample: Sample) -> None:
            nonlocal failures
            failures += sample.error is not None
            progress.update(task, advance=1, description=f"{_title(load)}{f', {failures} failed' if failures else ''}")

        return await run_load(load, ended)


def _title(load: "Load") -> str:
    if load.rate:
        return f"{load.rate:g} requests/s"
    return f"{load.concurrency} client{'s' if load.concurrency > 1 else ''}"


def _print(runs: "list[tuple[Load, LoadReport]]", console: "Console") -> None:
    """A column a run; times in milliseconds, as p50 / p90 / p99."""
    from rich.table import Table

    load, _ = runs[0]
    shown = ", ".join(load.models[:4]) + (f" and {len(load.models) - 4} more" if len(load.models) > 4 else "")
    table = Table("", title=f"{load.endpoint.root}: {shown}", caption="times in ms: p50 / p90 / p99")
    for load, _ in runs:
        table.add_column(_title(load), justify="right", no_wrap=True)
    reports = [report for _, report in runs]
    table.add_row("answered", *(f"{report.completed} of {report.requests}" for report in reports))
    table.add_row("requests/s", *(f"{report.requests_per_s:.2f}" for report in reports))
    table.add_row("output tokens/s", *(f"{report.output_tokens_per_s:.1f}" for report in reports))
    table.add_row("first token", *(_milliseconds(report.ttft_s) for report in reports))
    table.add_row("between tokens", *(_milliseconds(report.inter_token_s) for report in reports))
    table.add_row("whole answer", *(_milliseconds(report.latency_s) for report in reports))
    console.print(table)
    for load, report in runs:
        for kind, count in report.errors.items():
            console.print(
                f"{_title(load)}: {count} × {kind}: {report.messages[kind]}", style="red", highlight=False, markup=False
            )
    if left_out := sorted({name for _, report in runs for name in report.left_out}):
        console.print(f"the server refuses {', '.join(left_out)}; sent without", style="yellow", highlight=False)


def _milliseconds(times: "Percentiles | None") -> str:
    if times is None:
        return "—"
    digits = 0 if times.p50 >= 0.02 else 1
    return " / ".join(f"{seconds * 1000:.{digits}f}" for seconds in (times.p50, times.p90, times.p99))


def _write(runs: "list[tuple[Load, LoadReport]]", path: Path) -> None:
    first, _ = runs[0]
    document = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": first.endpoint.root,
        "models": list(first.models),
        "max_tokens": first.max_tokens,
        "temperature": first.temperature,
        "seed": first.seed,
        "runs": [
            {"concurrency": None if load.rate else load.concurrency, "rate": load.rate} | report.as_json()
            for load, report in runs
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _levels(concurrency: str | None, rate: float | None) -> list[int]:
    if rate is not None:
        if rate <= 0:
            raise Invalid(f"--rate must be above 0 requests a second, not {rate:g}", param="rate")
        if concurrency is not None:
            raise Invalid("--rate starts requests whatever still runs; leave out --concurrency", param="rate")
        return [1]
    levels = [int(text) if text.isdecimal() else 0 for text in _split(concurrency or "1")]
    if not levels or min(levels) < 1:
        raise Invalid(
            f"--concurrency takes numbers of 1 and more, separated by commas, not '{concurrency}'", param="concurrency"
        )
    return levels


def _read_prompts(path: Path) -> "tuple[Prompt, ...]":
    """One prompt a line. Raises Invalid naming the file and line of the first that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read: {error}", param="dataset") from error
    prompts = tuple(_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    if not prompts:
        raise Invalid(f"{path} holds no prompts", param="dataset")
    return prompts


def _prompt(line: str, where: str) -> "Prompt":
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Invalid(f"{where} is not JSON: {error}", param="dataset") from error
    value = next((row[name] for name in DATASET_FIELDS if row.get(name)), None) if isinstance(row, dict) else row
    if isinstance(value, str) and value:
        return ({"role": "user", "content": value},)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    ):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise Invalid(f"{where} is neither a string nor has {', '.join(DATASET_FIELDS)}", param="dataset")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
