"""Tables that are read: plain HTML, which screen readers know and phones can scroll. Gradio's Dataframe is a grid to
work in, and draws only the rows in sight."""

import html
from collections.abc import Iterable, Sequence


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], caption: str, numbers_from: int | None = None) -> str:
    """An HTML table, everything escaped. Columns from `numbers_from` on are numbers, set to the right."""

    def line(cell: str, values: Sequence[str]) -> str:
        def one(at: int, value: str) -> str:
            side = ' class="number"' if numbers_from is not None and at >= numbers_from else ""
            scope = ' scope="col"' if cell == "th" else ""
            return f"<{cell}{side}{scope}>{html.escape(value)}</{cell}>"

        return "<tr>" + "".join(one(at, value) for at, value in enumerate(values)) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    label = html.escape(caption)
    return (
        f'<div class="table" role="region" aria-label="{label}" tabindex="0"><table><caption>{label}</caption>'
        f"<thead>{line('th', headers)}</thead><tbody>{body}</tbody></table></div>"
    )
