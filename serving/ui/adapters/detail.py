"""One adapter: who it is, where it sits, what it changes, its versions. All HTML, everything escaped."""

import html
from datetime import UTC, datetime

from adapters.manifest import AdapterManifest, AdapterVersion
from adapters.ui.tab import link_to
from adapters.ui.words import Language
from serving.engine.effect import Effect
from serving.lifecycle import AdapterInfo, VersionInfo
from serving.ui.adapters.face import face
from serving.ui.adapters.words import ADAPTERS
from serving.ui.units import NONE, size

MAX_ROWS = 30  # versions listed; the others can still be chosen

say = ADAPTERS.say


def detail(
    adapter: AdapterInfo, shown: VersionInfo, version: AdapterVersion, base: str, language: Language, *, admin: bool
) -> str:
    """The whole panel. Who is no admin sees what /v1/models tells them."""
    facts = _facts(shown, version.manifest, base, language)
    if admin:
        facts += _admins_facts(shown, version.manifest, language)
    listed = "".join(
        f"<dt>{html.escape(say(language, name))}</dt><dd>{text}</dd>" for name, text in facts if text is not None
    )
    problem = f'<p class="ad-problem" role="alert">⚠ {html.escape(shown.problem)}</p>' if shown.problem else ""
    versions = _versions(adapter, shown, language) if admin else ""
    head = _head(adapter, shown, version, base, language)
    return f'<article class="ad-detail">{head}{problem}<dl>{listed}</dl>{versions}</article>'


def effect_text(effect: Effect | None, language: Language, *, admin: bool = True) -> str:
    """In one line."""
    if effect is None:
        return say(language, "effect_unknown" if admin else "effect_unknown_user")
    if effect.verdict == "no effect":
        return say(language, "effect_none", kl=effect.kl)
    return (
        say(language, "effect_broken") if effect.verdict == "breaks down" else say(language, "effect_ok", kl=effect.kl)
    )


def _head(adapter: AdapterInfo, shown: VersionInfo, version: AdapterVersion, base: str, language: Language) -> str:
    card = version.manifest.card if version.manifest else None
    title = html.escape((card.title if card else "") or adapter.name)
    chips = [f"<code>{html.escape(shown.id)}</code>"]
    chips += [
        f'<span class="ad-chip">{say(language, name)}</span>'
        for name, holds in (("current", shown.current), ("pinned", shown.pinned), ("attached", adapter.attached))
        if holds
    ]
    greeting = f"<p>{html.escape(card.greeting)}</p>" if card and card.greeting else ""
    links = ""
    if not shown.problem:
        chat, compare = link_to("chat", model=shown.id), link_to("compare", models=f"{base},{shown.id}")
        links = (
            f'<nav class="ad-links"><a href="{html.escape(chat)}">{say(language, "chat")}</a>'
            f'<a href="{html.escape(compare)}">{say(language, "compare")}</a></nav>'
        )
    return (
        f'<header class="ad-head">{face(adapter.name, version)}<div><h2>{title}</h2>'
        f'<div class="ad-chips">{"".join(chips)}</div>{greeting}{links}</div></header>'
    )


Facts = list[tuple[str, str | None]]  # name, HTML; None: not known, and left out


def _facts(shown: VersionInfo, manifest: AdapterManifest | None, base: str, language: Language) -> Facts:
    known_base = None
    if not shown.problem:
        known_base = html.escape(say(language, "fits", name=base) if manifest else say(language, "unknown_base"))
    flag = " ad-bad" if shown.effect and shown.effect.warning else ""
    return [
        ("base", known_base),
        ("where", _places(shown, language)),
        ("effect", f'<span class="ad-effect{flag}">{html.escape(effect_text(shown.effect, language))}</span>'),
        ("published", when(shown.created)),
        ("digest", f"<code>{shown.digest[:16]}</code>"),
    ]


def _admins_facts(shown: VersionInfo, manifest: AdapterManifest | None, language: Language) -> Facts:
    rank = None
    if shown.rank is not None:
        rank = say(language, "rank_value", rank=shown.rank, alpha=shown.alpha)
    training = manifest.training if manifest else None
    trained = scores = None
    if training:
        values = {"rows": training.rows, "epochs": training.epochs, "steps": training.steps, "seed": training.seed}
        trained = say(language, "training_value", **values)
        losses = (("score_base", training.base_val_loss), ("score_tuned", training.tuned_val_loss))
        scores = " → ".join(say(language, name, value=loss) for name, loss in losses if loss is not None) or None
    return [
        ("rank", rank),
        ("targets", html.escape(", ".join(shown.targets)) or None),
        ("in_memory", size(shown.bytes_in_memory) if shown.bytes_in_memory else None),
        ("leases", say(language, "lease_count", n=shown.leases)),
        ("scores", scores),
        ("training", trained),
        ("notes", html.escape(shown.notes) or None),
    ]


def _places(shown: VersionInfo, language: Language) -> str:
    """Disk, host, device: where its weights are."""
    on = {"cold": 1, "warm": 2, "active": 3}[shown.status]
    names = [say(language, "on_disk", size=size(shown.bytes)), say(language, "in_host"), say(language, "on_device")]
    steps = "".join(
        f'<li class="{"ad-on" if at < on else "ad-off"}"><span aria-hidden="true">{"●" if at < on else "○"}</span> '
        f'{name}<span class="sr-only"> {say(language, "yes" if at < on else "no")}</span></li>'
        for at, name in enumerate(names)
    )
    return f'<ul class="ad-places">{steps}</ul>'


_COLUMNS = ("version", "created", "rank", "size", "where", "leases", "effect", "notes")


def _versions(adapter: AdapterInfo, shown: VersionInfo, language: Language) -> str:
    newest = sorted(adapter.versions, key=lambda version: -version.number)
    head = "".join(f'<th scope="col">{html.escape(say(language, f"col_{name}"))}</th>' for name in _COLUMNS)
    body = "".join(_version_row(version, shown, language) for version in newest[:MAX_ROWS])
    title = say(language, "versions")
    rest = len(newest) - MAX_ROWS
    more = f'<p class="ad-more">{say(language, "more_versions", n=rest)}</p>' if rest > 0 else ""
    return (
        f'<h3>{title}</h3><div class="ad-table" role="region" aria-label="{title}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}"
    )


def _version_row(version: VersionInfo, shown: VersionInfo, language: Language) -> str:
    effect = NONE if version.effect is None or version.effect.kl is None else f"{version.effect.kl:.2f}"
    if version.effect and version.effect.warning:
        effect = f"⚠ {effect}"
    marks = [say(language, name) for name, holds in (("current", version.current), ("pinned", version.pinned)) if holds]
    chips = "".join(f' <span class="ad-chip">{mark}</span>' for mark in marks)
    state = "trouble" if version.problem else version.status
    cells = (
        when(version.created),
        NONE if version.rank is None else str(version.rank),
        size(version.bytes),
        f'<span class="ad-chip ad-{state}">{say(language, f"state_{state}")}</span>',
        str(version.leases),
        effect,
        html.escape(version.problem or version.notes) or NONE,
    )
    chosen = ' class="ad-chosen"' if version.number == shown.number else ""
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{chosen}><th scope="row">{html.escape(version.id)}{chips}</th>{body}</tr>'


def when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
