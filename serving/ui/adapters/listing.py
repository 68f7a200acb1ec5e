"""The list of adapters: one row of a page each, as buttons. All HTML, everything escaped."""

import html

from adapters.ui.words import Language
from serving.lifecycle import AdapterInfo, AdapterLifecycle, Found
from serving.ui.adapters.face import face
from serving.ui.adapters.words import ADAPTERS
from serving.ui.units import size

PAGE = 10

say = ADAPTERS.say

# Rows are buttons, so that keys reach them. The address follows, so that a reload shows the same adapter.
CHOOSING = """element.addEventListener('click', event => {
  const row = event.target.closest('button[data-name]');
  if (!row) return;
  const url = new URL(location.href);
  url.searchParams.set('tab', 'adapters'); url.searchParams.set('adapter', row.dataset.name);
  history.replaceState(history.state, '', url);
  trigger('select', { name: row.dataset.name });
});"""


def summary(lifecycle: AdapterLifecycle, total: int, language: Language, *, admin: bool) -> str:
    """How many there are, and how full the memories are."""
    if not admin:
        return f'<p class="ad-summary">{say(language, "count", total=total)}</p>'
    figures = lifecycle.figures
    text = say(
        language,
        "summary",
        total=f"{total:,}",
        host=figures.host,
        host_bytes=size(figures.host_bytes),
        host_budget=size(figures.host_budget),
        active=figures.active,
        slots=lifecycle.num_slots,
        leases=lifecycle.registry.total_leases,
    )
    return f'<p class="ad-summary">{text}</p>'


def pages(total: int) -> int:
    return max(1, -(-total // PAGE))


def pager(total: int, page: int, language: Language) -> str:
    said = say(language, "pages", page=page, pages=pages(total), total=f"{total:,}")
    return f'<p class="ad-pages" aria-live="polite">{said}</p>'


def rows(
    lifecycle: AdapterLifecycle, found: Found, chosen: str, language: Language, *, admin: bool, searched: bool
) -> str:
    if not found.adapters:
        why = "none_found" if searched else "empty" if admin else "empty_user"
        return f'<p class="ad-empty">{html.escape(say(language, why))}</p>'
    body = "".join(f"<li>{_row(lifecycle, adapter, chosen, language)}</li>" for adapter in found.adapters)
    return f'<ul class="ad-list" aria-label="{say(language, "list")}">{body}</ul>'


def _row(lifecycle: AdapterLifecycle, adapter: AdapterInfo, chosen: str, language: Language) -> str:
    now = adapter.now
    version = lifecycle.registry.current(adapter.name)
    title = version.manifest.card.title if version and version.manifest else ""
    state = now.status if now else "trouble"
    flag = " ⚠" if now and now.effect and now.effect.warning else ""
    below = f"{adapter.name}@{now.number}" if now else adapter.name
    here = ' aria-current="true"' if adapter.name == chosen else ""
    pinned = f'<span class="ad-chip">{say(language, "pinned")}</span>' if now and now.pinned else ""
    return (
        f'<button type="button" data-name="{html.escape(adapter.name)}"{here}>{face(adapter.name, version)}'
        f"<span><b>{html.escape(title or adapter.name)}{flag}</b><small>{html.escape(below)}</small></span>"
        f'{pinned}<span class="ad-chip ad-{state}">{say(language, f"state_{state}")}</span></button>'
    )
