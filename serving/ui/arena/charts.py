"""The leaderboard as a picture, a matrix and a table. Plain HTML: a dot with a bar is what Gradio's plots lack, and
this one needs no script."""

from collections.abc import Mapping
from html import escape

from adapters.ui.words import Language
from serving.arena import Arena, Duel, Standing
from serving.ui.arena.drawing import votes_said
from serving.ui.arena.words import say

_STEPS = (25, 50, 100, 200, 250, 500, 1000)
_MOST_TICKS = 6


def chart(arena: Arena, language: Language, *, filtered: bool) -> str:
    """Dots with bars, the best first; what to do when there is nothing to show yet."""
    if not arena.standings:
        return f'<p class="empty">{say(language, "no_votes_here" if filtered else "no_votes")}</p>'
    head = say(language, "chart", votes=votes_said(arena.votes, language))
    ticks = _ticks(arena.standings)
    low, high = ticks[0], ticks[-1]

    def place(score: float) -> str:
        return f"{(score - low) / (high - low):.2%}"

    rows = "".join(
        _bar(standing, place(standing.low), place(standing.score), place(standing.high), language)
        for standing in arena.standings
    )
    grid = "".join(f'<i style="left:{place(tick)}"></i>' for tick in ticks)
    axis = "".join(f'<span style="left:{place(tick)}">{tick}</span>' for tick in ticks)
    apart = "" if arena.connected else f'<p class="apart">{say(language, "apart")}</p>'
    return (
        f'<figure class="forest"><figcaption>{head}</figcaption><div class="plot">'
        f'<div class="grid" aria-hidden="true"><div>{grid}</div></div>{rows}'
        f'<div class="axis" aria-hidden="true"><div>{axis}</div></div></div>{apart}</figure>'
    )


def matrix(arena: Arena, met: Mapping[tuple[str, str], Duel], language: Language) -> str:
    """Everybody against everybody, in the order of the chart; "" when nobody has met anybody."""
    names = [standing.contestant for standing in arena.standings]
    if not names:
        return ""
    head = say(language, "matrix")
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{escape(one)}</th>{"".join(_duel(one, other, met, language) for other in names)}</tr>'
        for one in names
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{head}"><table class="duels">'
        f"<caption>{head}</caption><thead><tr><td></td>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def table(arena: Arena, language: Language) -> str:
    if not arena.standings:
        return ""
    titles = ("rank", "contestant", "score", "interval", "comparisons", "wins", "ties")
    head = "".join(f'<th scope="col">{say(language, title)}</th>' for title in titles)
    rows = "".join(
        f'<tr><td>{rank}</td><th scope="row">{escape(s.contestant)}</th><td>{s.score:.0f}</td>'
        f"<td>{s.low:.0f} – {s.high:.0f}</td><td>{s.comparisons}</td><td>{s.wins}</td><td>{s.ties}</td></tr>"
        for rank, s in enumerate(arena.standings, 1)
    )
    name = say(language, "table")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table class="standings">'
        f"<caption>{name}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _bar(standing: Standing, low: str, at: str, high: str, language: Language) -> str:
    name = escape(standing.contestant)
    said = f"{say(language, 'interval')} {standing.low:.0f} – {standing.high:.0f}"
    return (
        f'<div class="row"><span class="name" title="{name}">{name}</span>'
        f'<span class="track" title="{said}"><i class="bar" style="left:{low};right:calc(100% - {high})"></i>'
        f'<i class="dot" style="left:{at}"></i></span><span class="score">{standing.score:.0f}</span></div>'
    )


def _duel(one: str, other: str, met: Mapping[tuple[str, str], Duel], language: Language) -> str:
    duel = met.get((one, other))
    if duel is None:
        return '<td class="none">–</td>'
    said = say(language, "duel", one=one, other=other, wins=duel.wins, defeats=duel.defeats, ties=duel.ties)
    tint = "good" if duel.share >= 0.5 else "bad"
    return (
        f'<td class="{tint}" style="--d:{abs(duel.share - 0.5) * 2:.2f}" title="{escape(said)}">{duel.share:.0%}'
        f"<small>{votes_said(duel.votes, language)}</small></td>"
    )


def _ticks(standings: tuple[Standing, ...]) -> list[int]:
    """Round scores around all intervals."""
    low, high = min(s.low for s in standings), max(s.high for s in standings)
    step = next((step for step in _STEPS if (high - low) / step <= _MOST_TICKS), _STEPS[-1])
    first, last = int(low // step) * step, int(-(-high // step)) * step
    return list(range(first, max(last, first + step) + 1, step))
