"""What is known of data before a run, as HTML: the verdict, figures, charts, findings, and rows as the model sees
them."""

from collections.abc import Iterable, Sequence
from html import escape

from adapters.ui.words import Language
from training.choices import Checked
from training.data.preflight import Finding, Preflight, PreviewRow, count_rows
from training.ui.charts import bar_chart, share_bar
from training.ui.words import say

_LISTED = 20  # findings of a kind


def trouble(title: str, message: str) -> str:
    return (
        f'<div class="tr-panel" role="alert"><div class="tr-verdict bad">✗ {escape(title)}</div>'
        f'<div class="tr-trouble">{escape(message)}</div></div>'
    )


def report(found: Preflight, language: Language) -> str:
    """Everything but the preview and the estimate."""
    notes = "".join(_notes(found, language))
    if found.refused:
        verdict = f'<div class="tr-verdict bad">✗ {say(language, "refused_title")}</div>'
        verdict += f'<div class="tr-trouble" role="alert">{escape(found.refused)}</div>'
    elif notes:
        verdict = f'<div class="tr-verdict warn">! {say(language, "ready_warn")}</div>'
    else:
        verdict = f'<div class="tr-verdict good">✓ {say(language, "ready")}</div>'
    return (
        f'<div class="tr-panel tr-report">{verdict}<div class="tr-cards">{_cards(found, language)}</div>'
        f'<div class="tr-two">{_lengths(found, language)}<div class="tr-stack">{_languages(found, language)}'
        f"{_learned(found, language)}</div></div>{notes}</div>"
    )


def _cards(found: Preflight, language: Language) -> str:
    rows = found.good + len(found.bad) + len(found.too_long)
    split = say(language, "split", a=found.training_rows, b=found.validation_rows)
    cards = [
        (", ".join(sorted(set(found.formats.values()))), say(language, "format"), " · ".join(found.objectives)),
        (f"{found.good:,}", say(language, "rows"), f"{say(language, 'rows_of', n=rows)} · {split}"),
        (f"{found.lengths.total:,}", say(language, "tokens"), say(language, "learned", n=f"{found.lengths.learned:,}")),
        (f"{found.end_of_turn_share:.0%}", say(language, "stops_of"), say(language, "stops")),
        (str(found.duplicates), say(language, "repeats"), say(language, "nearly", n=len(found.near_duplicates))),
    ]
    return "".join(
        f'<div class="tr-card"><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(more)}</small></div>'
        for value, name, more in cards
    )


def _lengths(found: Preflight, language: Language) -> str:
    n = found.lengths
    note = say(language, "lengths_info", a=n.shortest, m=n.median, p=n.p95, z=n.longest)
    bars = [(str(bar.end), bar.rows, say(language, "bar", a=bar.start, z=bar.end, n=bar.rows)) for bar in n.bars]
    return bar_chart(say(language, "lengths"), bars, note)


def _languages(found: Preflight, language: Language) -> str:
    parts = [
        (script, say(language, script), rows, say(language, "rows_n", n=rows))
        for script, rows in sorted(found.scripts.items(), key=lambda item: -item[1])
    ]
    return share_bar(say(language, "languages"), parts)


def _learned(found: Preflight, language: Language) -> str:
    n = found.lengths
    parts = [
        (kind, say(language, f"preview_{kind}"), count, say(language, "tokens_n", n=f"{count:,}"))
        for kind, count in (("learned", n.learned), ("given", n.total - n.learned))
    ]
    return share_bar(say(language, "tokens_shares"), parts)


def _notes(found: Preflight, language: Language) -> Iterable[str]:
    """What somebody should look at, each folded."""
    kinds: list[tuple[str, Sequence[Finding]]] = [
        ("bad", found.bad),
        ("too_long", found.too_long),
        ("shortened", found.shortened),
        ("unending", found.without_end_of_turn),
        ("private", found.private),
        ("duplicates", found.near_duplicates),
        ("short_answers", found.short_answers),
    ]
    for kind, findings in kinds:
        if findings:
            number = count_rows(findings) if kind == "private" else len(findings)
            yield _folded(say(language, kind, n=number, m=found.max_length), findings, language)
    if found.reasoning_left_out:
        yield f"<p>⚠ {escape(say(language, 'reasoning_out', n=found.reasoning_left_out))}</p>"


def _folded(heading: str, findings: Sequence[Finding], language: Language) -> str:
    listed = "".join(f"<li>{escape(str(finding))}</li>" for finding in findings[:_LISTED])
    if len(findings) > _LISTED:
        listed += f"<li>{say(language, 'more', n=len(findings) - _LISTED)}</li>"
    return f'<details><summary>⚠ {escape(heading)}</summary><ul class="mono" tabindex="0">{listed}</ul></details>'


def preview(rows: Sequence[PreviewRow], language: Language) -> str:
    """Rows with what is learned marked, by colour and by a line below it."""
    if not rows:
        return ""
    legend = (
        f'<div class="tr-legend"><b>{say(language, "preview")}</b>'
        f'<span class="tr-learned">{say(language, "preview_learned")}</span>'
        f"<span>{say(language, 'preview_given')}</span></div>"
    )
    shown = "".join(_row(row, language) for row in rows)
    return f'<div class="tr-panel">{legend}<div class="tr-rows">{shown}</div></div>'


def _row(row: PreviewRow, language: Language) -> str:
    name = f"{row.file} · {say(language, 'preview_place', line=row.line)}"
    if row.part:
        name += f" · {say(language, row.part)}"
    pieces = "".join(
        f'<span class="tr-learned">{escape(piece.text)}</span>' if piece.learned else escape(piece.text)
        for piece in row.pieces
    )
    return (
        f'<div><small class="mono">{escape(name)}</small>'
        f'<div class="tr-seen" tabindex="0" role="group" aria-label="{escape(name)}">{pieces}</div></div>'
    )


def estimate(checked: Checked, name: str, language: Language) -> str:
    """What the run will take. Nothing where no row is left."""
    found = checked.preflight
    chosen = next((one for one in found.estimates if one.method == found.method), None)
    if chosen is None:
        return ""
    line = say(
        language,
        "estimate",
        steps=f"{chosen.steps:,}",
        time=duration(chosen.seconds, language),
        memory=gigabytes(chosen.memory_total),
        millions=f"{chosen.trained_parameters / 1e6:,.1f}",
    )
    becomes = f" {escape(say(language, 'becomes', name=name))}." if name else ""
    return f'<div class="tr-estimate">{line}<small>{say(language, "estimate_by")}.{becomes}</small></div>'


_KNOBS = (
    "learning_rate",
    "batch_size",
    "micro_batch_size",
    "lora_alpha",
    "max_length",
    "optimizer",
    "gradient_checkpointing",
    "beta",
)


def plan(checked: Checked, language: Language) -> str:
    """The numbers of the run, and why those that nobody chose; and what the methods would cost."""
    found = checked.preflight
    rows: list[tuple[str, str, str]] = [(say(language, "objective"), checked.objective, say(language, "why_objective"))]
    for name in _KNOBS:
        if name == "beta" and checked.objective not in ("dpo", "kto", "orpo"):
            continue
        if name == "lora_alpha" and found.method == "full":
            continue
        value = found.plan[name]
        if isinstance(value, bool):
            shown = say(language, str(value).lower())
        else:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
        why = f"why_{name}" if name in found.reasons else "by_you"
        rows.append((say(language, name), shown, say(language, why)))
    chosen = table([say(language, key) for key in ("knob", "value", "why")], rows)
    costs = table(
        [say(language, key) for key in ("method", "time", "memory", "trained")],
        [
            (
                one.method,
                duration(one.seconds, language),
                gigabytes(one.memory_total),
                f"{one.trained_parameters / 1e6:,.1f} M",
            )
            for one in found.estimates
        ],
    )
    return f'<div class="tr-two"><div>{chosen}</div><div>{costs if found.estimates else ""}</div></div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="tr-table"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def duration(seconds: float, language: Language) -> str:
    if seconds < 90:
        return say(language, "seconds", n=max(1, round(seconds)))
    if seconds < 5400:
        return say(language, "minutes", n=round(seconds / 60))
    return say(language, "hours", n=f"{seconds / 3600:.1f}")


def gigabytes(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count < 100 * 2**30 else f"{count / 2**30:,.0f} GiB"
