"""What the Monitor shows: a card for each figure, traffic, errors. All HTML, everything escaped."""

import html
import time
from collections.abc import Callable, Sequence

from adapters.ui.words import Language
from serving.metrics import FailedRequest
from serving.recent import Counted, Recent, Sample, Window
from serving.ui.monitor.charts import Line, chart, highest, legend
from serving.ui.monitor.words import MONITOR
from serving.ui.units import NONE, amount, duration, size

POINTS = 180  # of a chart; 15 minutes are 900 samples
NOW_S = 5.0  # "now" of a rate
TOP_ADAPTERS = 8

say = MONITOR.say
_QUANTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def view(recent: Recent, failed: Sequence[FailedRequest], seconds: int, language: Language) -> str:
    """The whole tab, for the last `seconds`."""
    cards = Cards(recent, seconds, language)
    shown = [
        cards.throughput(),
        cards.latency("first_token", lambda sample: sample.first_token_s),
        cards.latency("between", lambda sample: sample.between_tokens_s),
        cards.requests(),
        cards.blocks(),
        cards.prefix_cache(),
        cards.slots(),
        cards.memory(),
    ]
    wide = f"{_traffic(cards.window, language)}{_errors(failed, language)}"
    return f'<div class="mon-cards">{"".join(shown)}</div><div class="mon-wide">{wide}</div>{_totals(recent, language)}'


class Cards:
    def __init__(self, recent: Recent, seconds: int, language: Language):
        self.recent = recent
        self.seconds = seconds
        self.language = language
        self.window = recent.window(seconds)
        self._steps = self.window.steps(POINTS)

    def throughput(self) -> str:
        now = self.recent.window(NOW_S)
        per_s = say(self.language, "per_s")
        lines = [
            Line(
                f"{per_s} {say(self.language, name)}",
                [(self._age(step), step.rate(count)) for step in self._steps],
                amount(now.rate(count)),
            )
            for name, count in (
                ("generated", lambda sample: sample.generated_tokens),
                ("prompt", lambda sample: sample.prompt_tokens),
            )
        ]
        top = highest(lines, 1)
        return self._card("throughput", lines, top, f"{amount(top)} {per_s}")

    def latency(self, title: str, histogram: Callable[[Sample], Counted]) -> str:
        """Percentiles of the whole range as numbers; of each of its parts as lines."""
        whole = self.window.spread(histogram)
        parts = [(self._age(step), step.spread(histogram)) for step in self._steps]
        lines = [
            Line(name, [(age, part.quantile(q)) for age, part in parts], duration(whole.quantile(q)))
            for q, name in _QUANTILES
        ]
        top = highest(lines, 0.01)
        return self._card(title, lines, top, duration(top))

    def requests(self) -> str:
        lines = [
            self._level("running", lambda sample: sample.running, amount),
            self._level("waiting", lambda sample: sample.waiting, amount),
        ]
        top = highest(lines, 4)
        return self._card("requests", lines, top, amount(top))

    def blocks(self) -> str:
        total = self.recent.totals.kv_blocks
        return self._share("kv", "used", lambda sample: sample.kv_used, total)

    def prefix_cache(self) -> str:
        points = [(self._age(step), step.cached_share()) for step in self._steps]
        share = self.window.cached_share()
        line = Line(say(self.language, "found"), points, NONE if share is None else f"{share:.0%}")
        return self._card("cache", [line], 1.0, "100%")

    def slots(self) -> str:
        return self._share("slots", "taken", lambda sample: sample.active, self.recent.totals.slots)

    def memory(self) -> str:
        now, totals = self.recent.now, self.recent.totals
        lines = []
        if now.resident_bytes is not None:
            lines.append(self._level("process", lambda sample: sample.resident_bytes or 0, size))
        if now.gpu_bytes is not None:
            lines.append(self._level("gpu", lambda sample: sample.gpu_bytes or 0, size))
        lines.append(self._level("adapters_host", lambda sample: sample.host_bytes, self._out_of(totals.host_budget)))
        if now.gpu_bytes is not None:
            bound = self._out_of(totals.device_budget)
            lines.append(self._level("adapters_device", lambda sample: sample.device_bytes, bound))
        found = max((value for line in lines for _, value in line.points if value is not None), default=1.0)
        top = max(found * 1.15, 2**20)
        return self._card("memory", lines, top, size(top))

    def _share(self, title: str, name: str, value: Callable[[Sample], int], total: int) -> str:
        """How much of something there is so much of is taken."""
        line = self._level(name, value, lambda used: self._of(amount(used), f"{total:,}"))
        return self._card(title, [line], max(total, 1), f"{total:,}")

    def _level(self, name: str, value: Callable[[Sample], float], shown: Callable[[float], str]) -> Line:
        points = [(self._age(step), step.highest(value)) for step in self._steps]
        return Line(say(self.language, name), points, shown(value(self.recent.now)))

    def _out_of(self, limit: int | None) -> Callable[[float], str]:
        return size if limit is None else lambda used: self._of(size(used), size(limit))

    def _of(self, used: str, total: str) -> str:
        return say(self.language, "of", used=used, total=total)

    def _age(self, step: Window) -> float:
        return self.window.last.at_s - step.last.at_s

    def _card(self, name: str, lines: Sequence[Line], top: float, top_label: str) -> str:
        title, minutes = say(self.language, name), self.seconds // 60
        said = say(
            self.language,
            "chart",
            title=title,
            minutes=minutes,
            values=", ".join(f"{line.name} {line.now}" for line in lines),
        )
        edges = say(self.language, "ago_min", n=minutes), say(self.language, "now")
        plot = chart(lines, seconds=self.seconds, top=top, top_label=top_label, edges=edges, said=said)
        heading = f"<h3>{html.escape(title)}</h3>"
        return f'<section class="mon-card" id="monitor-{name}">{heading}{legend(lines)}{plot}</section>'


def _traffic(window: Window, language: Language) -> str:
    rows = window.tokens_by_adapter()
    total = sum(prompt + generated for _, prompt, generated in rows)
    shown = rows[:TOP_ADAPTERS]
    if rest := rows[TOP_ADAPTERS:]:
        shown.append((say(language, "other"), sum(row[1] for row in rest), sum(row[2] for row in rest)))
    body = "".join(
        f'<tr><th scope="row">{html.escape(name or say(language, "base"))}</th>'
        f'<td class="mon-number">{generated:,}</td><td class="mon-number">{prompt:,}</td>'
        f'<td class="mon-share"><span class="mon-bar" style="--part:{(prompt + generated) / total:.3f}"></span>'
        f"{(prompt + generated) / total:.0%}</td></tr>"
        for name, prompt, generated in shown
    )
    headers = [(say(language, name), name in ("generated", "prompt")) for name in _TRAFFIC]
    return _section("traffic", headers, body, say(language, "no_traffic"), language)


_TRAFFIC = ("adapter", "generated", "prompt", "share")
_ERRORS = ("when", "status", "code", "endpoint", "adapter", "key", "request_id")


def _errors(failed: Sequence[FailedRequest], language: Language) -> str:
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{html.escape(text)}</td>"
            for text, kind in (
                (_ago(time.time() - each.at, language), ' class="mon-when"'),
                (str(each.status), ""),
                (each.reason, ""),
                (f"{each.method} {each.endpoint}", ""),
                (each.model, ""),
                (each.key, ""),
                (each.id, ' class="mon-id"'),
            )
        )
        + "</tr>"
        for each in reversed(failed)
    )
    return _section(
        "errors", [(say(language, name), False) for name in _ERRORS], body, say(language, "no_errors"), language
    )


def _section(name: str, headers: Sequence[tuple[str, bool]], body: str, empty: str, language: Language) -> str:
    title = html.escape(say(language, name))
    head = "".join(
        f'<th scope="col"{" class=mon-number" if number else ""}>{html.escape(text)}</th>' for text, number in headers
    )
    inside = (
        f'<div class="mon-table" role="region" aria-label="{title}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        if body
        else f'<p class="mon-empty">{html.escape(empty)}</p>'
    )
    return f'<section class="mon-card" id="monitor-{name}"><h3>{title}</h3>{inside}</section>'


def _totals(recent: Recent, language: Language) -> str:
    totals, now = recent.totals, recent.now
    text = say(
        language,
        "totals",
        answers=f"{totals.answers:,}",
        generated=f"{now.generated_tokens:,}",
        prompt=f"{now.prompt_tokens:,}",
        refused=f"{totals.refused:,}",
        errors=f"{totals.errors:,}",
        preemptions=f"{totals.preemptions:,}",
        failed=f"{totals.failed_steps:,}",
    )
    return f'<p class="mon-totals" id="monitor-totals"><b>{say(language, "since_start")}</b> {text}</p>'


def _ago(seconds: float, language: Language) -> str:
    if seconds < 60:
        return say(language, "ago_s", n=int(seconds))
    return (
        say(language, "ago_min", n=int(seconds // 60))
        if seconds < 3600
        else say(language, "ago_h", n=int(seconds // 3600))
    )
