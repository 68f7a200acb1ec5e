"""Small charts as SVG, drawn on the server. They take the theme's colours live and cost the browser next to nothing,
where gr.LinePlot draws everything anew with Vega and keeps the colours of the theme it was born under."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float | None]]  # seconds before now, value; None: nothing was measured

_WIDTH, _HEIGHT = 600.0, 100.0


@dataclass(frozen=True)
class Line:
    """One series, and what it says now."""

    name: str
    points: Points
    now: str


def chart(
    lines: Sequence[Line], *, seconds: float, top: float, top_label: str, edges: tuple[str, str], said: str
) -> str:
    """A plot of `lines` from `seconds` ago to now and from 0 to `top`; `edges` label the ends of time, and `said` is
    read instead of it."""
    drawn = "".join(_path(number, line.points, seconds, top) for number, line in enumerate(lines))
    grid = "".join(f'<path class="mon-grid" d="M0 {y}H{_WIDTH:.0f}"/>' for y in (0, 50, 100))
    start, end = edges
    return (
        f'<div class="mon-plot"><span class="mon-top">{html.escape(top_label)}</span>'
        f'<svg viewBox="0 -2 {_WIDTH:.0f} {_HEIGHT + 4:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(said)}">{grid}{drawn}</svg>'
        f'<div class="mon-ends"><span>{html.escape(start)}</span><span>{html.escape(end)}</span></div></div>'
    )


def legend(lines: Sequence[Line]) -> str:
    """What each line is, and its value now."""
    items = "".join(
        f'<li class="mon-s{number}"><span class="mon-key" aria-hidden="true"></span><b>{html.escape(line.now)}</b> '
        f"{html.escape(line.name)}</li>"
        for number, line in enumerate(lines)
    )
    return f'<ul class="mon-legend">{items}</ul>'


def highest(lines: Sequence[Line], least: float) -> float:
    """A round number no value is above, and at least `least`."""
    found = max((value for line in lines for _, value in line.points if value is not None), default=0.0)
    top = max(found, least)
    scale = 1.0
    while scale * 10 <= top:
        scale *= 10
    while scale > top:
        scale /= 10
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= top * 0.9999)


def _path(number: int, points: Points, seconds: float, top: float) -> str:
    pieces: list[list[str]] = [[]]
    for age, value in points:
        if value is None:
            pieces.append([])
            continue
        x = _WIDTH * (1 - min(age / seconds, 1.0))
        y = _HEIGHT * (1 - min(value / top, 1.0))
        pieces[-1].append(f"{x:.1f} {y:.1f}")
    lines = "".join(f"M{'L'.join(piece)}" for piece in pieces if len(piece) > 1)
    dots = "".join(f"M{piece[0]}h.1" for piece in pieces if len(piece) == 1)  # no length, but round ends
    return "".join(
        f'<path class="mon-line{kind} mon-s{number}" d="{path}"/>'
        for kind, path in (("", lines), (" mon-dot", dots))
        if path
    )
