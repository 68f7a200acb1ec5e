"""What keys have used: a chart of tokens a day and the sums behind it."""

from datetime import date
from typing import Any

import gradio as gr

from adapters.ui.tab import Viewer
from adapters.ui.words import Language
from serving.ui.settings.words import SETTINGS
from serving.ui.tables import table
from serving.usage import KEYLESS, UsageBook, period

t, say = SETTINGS.t, SETTINGS.say
COLOURS = ["#bb3726", "#0f766e", "#6d28d9", "#b45309", "#1d4ed8", "#64748b"]
Update = Any


def usage_chart() -> gr.BarPlot:
    return gr.BarPlot(
        x="day",
        y="tokens",
        color="key",
        x_title=" ",
        y_title="tokens",
        color_title="",
        height=240,
        label=t("usage_chart"),
        buttons=[],
        visible=False,
        elem_id="settings-usage",
    )


async def used(book: UsageBook, viewer: Viewer, language: Language) -> list[Update]:
    """[chart, table] of the viewer's own key, for an admin of all."""
    import pandas  # Gradio's charts take nothing else

    start, end = period(None, None)
    key = None if viewer.admin else viewer.key
    by_day = await book.database.call(book.report, start, end, ("key", "day"), key)
    if not by_day:
        return [gr.BarPlot(visible=False), f'<p class="empty">{say(language, "no_usage")}</p>']
    names = list(dict.fromkeys(_name(row["key"], language) for row in by_day))
    days = [date.fromordinal(day) for day in range(start.toordinal(), end.toordinal() + 1)]
    spent = {(row["day"], _name(row["key"], language)): row for row in by_day}
    points = [(_short(day), names[0], 0) for day in days if (day, names[0]) not in spent]  # so that no day is left out
    points += [
        (_short(day), name, row["prompt_tokens"] + row["completion_tokens"]) for (day, name), row in spent.items()
    ]
    frame = pandas.DataFrame(points, columns=["day", "key", "tokens"])
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(names)}
    chart = gr.BarPlot(
        frame, x="day", y="tokens", color="key", color_map=colours, sort=[*map(_short, days)], visible=True
    )
    by_model = await book.database.call(book.report, start, end, ("key", "model"), key)
    counted = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    rows = [
        [_name(row["key"], language), row["model"], *(f"{row[column]:,}" for column in counted)] for row in by_model
    ]
    headers = [say(language, key) for key in ("key", "model", "requests", "prompt", "cached", "completion")]
    return [chart, table(headers, rows, say(language, "key"), numbers_from=2)]


def _name(key: str, language: Language) -> str:
    return say(language, "nobody") if key == KEYLESS else key


def _short(day: date) -> str:
    return day.strftime("%m-%d")
