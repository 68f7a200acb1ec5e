"""`python -m training.data.datasets_table DIR [PAGE]`: what becomes of every file under DIR, as a table. With PAGE,
the table between that Markdown page's marks is replaced.

The table in docs/datasets.md is made by this; names and counts are in it, nothing of the rows."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import BianlianError, Invalid
from training.data.formats import DataFile, Document, Example, read_data

BEGIN, END = "<!-- table begins -->", "<!-- table ends -->"
_HEADER = "| file | format | rows | bad rows | what is in it, or why it is refused |\n|---|---|--:|--:|---|\n"


@dataclass(frozen=True)
class Line:
    """One file: read, or refused."""

    path: str  # below the directory
    format: str  # "" when refused
    rows: int
    bad: int
    remark: str

    def __str__(self) -> str:
        if not self.format:
            return f"| {self.path} | refused | | | {self.remark} |"
        return f"| {self.path} | {self.format} | {self.rows:,} | {self.bad:,} | {self.remark} |"


def describe(directory: Path) -> list[Line]:
    """Every file under `directory`, in the order of its path. None raises: a refusal is a line. Blocks."""
    return [_line(path, directory) for path in sorted(directory.rglob("*")) if path.is_file()]


def _line(path: Path, directory: Path) -> Line:
    name = str(path.relative_to(directory))
    try:
        file = read_data(path)
    except BianlianError as error:
        # Of where it lies, the line alone matters here.
        return Line(name, "", 0, 0, error.message.replace(f"{path}:", "line ").replace(str(path), path.name))
    return Line(name, file.format, len(file.rows), len(file.bad), "; ".join(_remarks(file)))


def _remarks(file: DataFile) -> Iterator[str]:
    """Counts of what rows carry beside questions and answers, and the first bad row of each reason."""
    examples = [row for row in file.rows if isinstance(row, Example)]
    counted = {
        "with a system message": sum(row.messages[0]["role"] == "system" for row in examples),
        "of several turns": sum(sum(m["role"] == "user" for m in row.messages) > 1 for row in examples),
        "with tools": sum(bool(row.tools) for row in examples),
        "with calls": sum(any("tool_calls" in message for message in row.messages) for row in examples),
        "with thoughts": sum(row.has_reasoning for row in examples),
    }
    yield from (f"{count:,} {what}" for what, count in counted.items() if count)
    if documents := sum(isinstance(row, Document) for row in file.rows):
        yield f"{documents:,} documents"
    for (field, reason), count in Counter((row.field, row.reason) for row in file.bad).items():
        first = next(row.place for row in file.bad if (row.field, row.reason) == (field, reason))
        where = f"line {first.line}" + (f" (row {first.row})" if first.row else "")
        yield f"bad: {where}: {field + ': ' if field else ''}{reason}" + (f", {count} so" if count > 1 else "")


def table(lines: list[Line]) -> str:
    return _HEADER + "".join(f"{line}\n" for line in lines)


def write_table(page: Path, lines: list[Line]) -> None:
    """Replace what stands between the marks of `page`. Raises Invalid when it has none."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise Invalid(f"{page} has no {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{table(lines)}{END}{after}", encoding="utf-8")


def main(arguments: list[str]) -> None:
    if not 1 <= len(arguments) <= 2 or not Path(arguments[0]).is_dir():
        raise SystemExit(__doc__)
    lines = describe(Path(arguments[0]))
    if len(arguments) == 2:
        write_table(Path(arguments[1]), lines)
    else:
        sys.stdout.write(table(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
