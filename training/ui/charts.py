"""Small charts as HTML: lines, bars, shares.

Not Gradio's plots: those bring Vega and pandas, redraw everything at every point, keep the old axis colours when the
theme changes, and shrink their text with the screen. Here only the lines are stretched; text is text, colours are the
theme's, and everything that is put in is escaped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from training.jobs.progress import Point

_TICKS = 4


@dataclass(frozen=True)
class Line:
    """`kind` is its CSS class: train, validation, base. Dots are drawn where `dots`."""

    name: str
    kind: str
    points: Sequence[Point]
    dots: bool = False


def line_chart(
    title: str, lines: Sequence[Line], *, spoken: str, empty: str, marks: Sequence[int] = (), steps: int = 0
) -> str:
    """Lines over steps, up to `steps` if that is more than there are. `marks` are steps with a snapshot; `spoken` tells
    those who cannot see it. `empty` stands where no point is yet."""
    drawn = [line for line in lines if line.points]
    keys = "".join(
        f'<span class="key {line.kind}">{escape(line.name)} <b>{short(line.points[-1][1])}</b></span>' for line in drawn
    )
    head = f"<figcaption><b>{escape(title)}</b>{keys}</figcaption>"
    if not drawn:
        return f'<figure class="tr-chart">{head}<div class="plot empty">{escape(empty)}</div></figure>'
    values = [value for line in drawn for _, value in line.points]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    last = max([steps, *(step for line in drawn for step, _ in line.points)], default=1) or 1

    def x(step: int) -> float:
        return round(100 * step / last, 2)

    def y(value: float) -> float:
        return round(100 * (high - value) / (high - low), 2)

    grid = "".join(f'<line class="grid" x1="0" x2="100" y1="{y(tick)}" y2="{y(tick)}"/>' for tick in ticks)
    grid += "".join(f'<line class="mark" x1="{x(step)}" x2="{x(step)}" y1="97" y2="100"/>' for step in marks)
    paths = "".join(
        f'<polyline class="{line.kind}" points="{" ".join(f"{x(step)},{y(value)}" for step, value in line.points)}"/>'
        for line in drawn
    )
    dots = "".join(
        f'<i class="dot {line.kind}" style="left:{x(step)}%;top:{y(value)}%" title="{step}: {short(value)}"></i>'
        for line in drawn
        if line.dots
        for step, value in line.points
    )
    left = "".join(f'<span style="top:{y(tick)}%">{short(tick)}</span>' for tick in ticks)
    below = "".join(f'<span style="left:{x(step)}%">{step}</span>' for step in _whole_ticks(last))
    return (
        f'<figure class="tr-chart" role="img" aria-label="{escape(spoken)}">{head}<div class="plot">'
        f'<div class="y">{left}</div><div class="area"><svg viewBox="0 0 100 100" preserveAspectRatio="none" '
        f'aria-hidden="true">{grid}{paths}</svg>{dots}</div><div class="x">{below}</div></div></figure>'
    )


def bar_chart(title: str, bars: Sequence[tuple[str, int, str]], note: str) -> str:
    """(label below, height, what it says when pointed at) of each bar."""
    most = max((height for _, height, _ in bars), default=0) or 1
    columns = "".join(
        f'<div class="col" title="{escape(told)}"><span class="n">{height or ""}</span>'
        f'<i style="height:{max(2, round(100 * height / most)) if height else 0}%"></i>'
        f'<span class="l">{escape(label)}</span></div>'
        for label, height, told in bars
    )
    spoken = f"{title}. {note}. " + ". ".join(told for _, height, told in bars if height)
    return (
        f'<figure class="tr-chart tr-bars" role="img" aria-label="{escape(spoken)}"><figcaption><b>{escape(title)}</b>'
        f'<span class="note">{escape(note)}</span></figcaption><div class="cols">{columns}</div></figure>'
    )


def share_bar(title: str, parts: Sequence[tuple[str, str, int, str]]) -> str:
    """(kind, name, amount, amount in words) of each part, side by side in one bar with a legend."""
    total = sum(amount for _, _, amount, _ in parts) or 1
    pieces = "".join(
        f'<i class="{kind}" style="width:{100 * amount / total:.1f}%" title="{escape(name)}: {escape(told)}"></i>'
        for kind, name, amount, told in parts
        if amount
    )
    keys = "".join(
        f'<span class="key {kind}">{escape(name)} <b>{100 * amount / total:.0f}%</b> {escape(told)}</span>'
        for kind, name, amount, told in parts
        if amount
    )
    spoken = f"{title}. " + ". ".join(f"{name}: {told}" for _, name, amount, told in parts if amount)
    return (
        f'<figure class="tr-chart tr-shares" role="img" aria-label="{escape(spoken)}"><figcaption>'
        f'<b>{escape(title)}</b></figcaption><div class="bar">{pieces}</div><div class="keys">{keys}</div></figure>'
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers in equal steps, the first at or below `low` and the last at or above `high`; at least two."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = (0.0, 1.0) if high == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _whole_ticks(last: int) -> list[int]:
    """Steps below the chart, from 0 to `last`, never two too close."""
    ticks = sorted({round(tick) for tick in nice_ticks(0, last) if tick <= last})
    return ticks if last - ticks[-1] < 0.12 * last else [*ticks, last]


def short(value: float) -> str:
    """At most four digits that matter."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.3g}"
