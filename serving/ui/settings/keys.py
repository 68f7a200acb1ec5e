"""Keys: made, listed, revoked. For admins; the rules are those of `serving/keys.py`."""

from dataclasses import dataclass
from datetime import UTC, datetime

import gradio as gr

from adapters.ui.words import Language
from serving.keys import ApiKey
from serving.ui.settings.words import SETTINGS
from serving.ui.tables import table

t, say = SETTINGS.t, SETTINGS.say


@dataclass(frozen=True)
class NewKey:
    """The form of a new key, and where its text is shown, once."""

    name: gr.Textbox
    scope: gr.Radio
    rpm: gr.Number
    tpm: gr.Number
    expires: gr.Number
    create: gr.Button
    made: gr.Textbox

    @property
    def inputs(self) -> list[gr.Component]:
        return [self.name, self.scope, self.rpm, self.tpm, self.expires]


@dataclass(frozen=True)
class Revoking:
    """Two steps: choose and ask, then say yes. `asked` is the name the second step is about."""

    row: gr.Row
    which: gr.Dropdown
    asked: gr.Textbox
    ask: gr.Button
    really: gr.Button
    keep: gr.Button


def new_key_form() -> NewKey:
    with gr.Group():
        with gr.Row():
            name = gr.Textbox(
                label=t("name"), placeholder=t("name_hint"), max_length=64, scale=2, min_width=180, elem_id="key-name"
            )
            scope = gr.Radio(
                [(t("scope_user"), "user"), (t("scope_admin"), "admin")],
                value="user",
                label=t("scope"),
                scale=3,
                min_width=220,
                elem_id="key-scope",
            )
        with gr.Row():
            rpm, tpm, expires = (_limit("rpm"), _limit("tpm"), _limit("expires"))
    create = gr.Button(t("create"), variant="primary", elem_id="key-create")
    made = gr.Textbox(label=t("made"), buttons=["copy"], interactive=False, visible=False, elem_id="key-made")
    return NewKey(name, scope, rpm, tpm, expires, create, made)


def revoking_row() -> Revoking:
    with gr.Row(visible=False, elem_id="key-revoking") as row:
        which = gr.Dropdown([], value=None, label=t("revoke_which"), scale=3, min_width=180, elem_id="key-which")
        asked = gr.Textbox("", label=t("revoke_which"), visible=False, elem_id="key-asked")
        ask = gr.Button(t("revoke"), min_width=100, elem_id="key-revoke")
        really = gr.Button("", variant="stop", visible=False, min_width=100, elem_id="key-really")
        keep = gr.Button(t("keep"), visible=False, min_width=100, elem_id="key-keep")
    return Revoking(row, which, asked, ask, really, keep)


def key_table(keys: list[ApiKey], language: Language) -> str:
    if not keys:
        return f'<p class="empty">{say(language, "no_keys")}</p>'
    headers = [say(language, column) for column in ("name", "key", "scope", "limits", "made_on", "state")]
    rows = [
        [
            key.name,
            f"{key.prefix}-…",
            say(language, "admin" if key.admin else "user"),
            _limits(key, language),
            _day(key.created_at),
            _state(key, language),
        ]
        for key in sorted(keys, key=lambda key: not key.live)
    ]
    return table(headers, rows, say(language, "key"))


def live_names(keys: list[ApiKey]) -> list[str]:
    return [key.name for key in keys if key.revoked_at is None]


def _limit(label: str) -> gr.Number:
    # Gradio sends 0 for an empty number.
    return gr.Number(0, label=t(label), info=t("no_limit"), precision=0, min_width=130, elem_id=f"key-{label}")


def _limits(key: ApiKey, language: Language) -> str:
    if key.requests_per_minute is None and key.tokens_per_minute is None:
        return say(language, "unset")
    requests, tokens = (
        "∞" if limit is None else f"{limit:,}" for limit in (key.requests_per_minute, key.tokens_per_minute)
    )
    return say(language, "limits_value", requests=requests, tokens=tokens)


def _state(key: ApiKey, language: Language) -> str:
    if key.revoked_at is not None:
        return say(language, "ended", day=_day(key.revoked_at))
    if key.expires_at is None:
        return say(language, "in_use")
    return say(language, "expired" if key.expired else "until", day=_day(key.expires_at))


def _day(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
