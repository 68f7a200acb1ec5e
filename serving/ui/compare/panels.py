"""What stands in a lane's place in the other views: its answer with the words marked that differ from lane A's, or with
its tokens coloured by how much likelier they are here than from the base.

`asked` heads a panel: whose answer this is, and to what. Texts come into the page as HTML, so all of them pass
`escaped`."""

import html
import json
import math
from collections.abc import Sequence

import gradio as gr

from adapters.ui.words import Language
from serving.token_view import TokenScore
from serving.ui.compare.words import say
from serving.word_diff import word_diff

_TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\"})  # Gradio's templates read these
_RAMP = (1.0, 0.66, 0.33)


def view_panel(name: str) -> gr.HTML:
    """Hidden until a view has something for it."""
    return gr.HTML(
        "", visible=False, elem_id=f"{name}-panel", elem_classes="lane-panel", padding=False, js_on_load=_INSPECT
    )


def escaped(text: str) -> str:
    return html.escape(text).translate(_TEMPLATE_SIGNS)


def hint_panel(language: Language, key: str) -> str:
    return f'<div class="panel"><p class="hint">{say(language, key)}</p></div>'


def trouble_panel(message: str) -> str:
    return f'<div class="panel"><p class="trouble" role="alert">⚠ {escaped(message)}</p></div>'


def reference_panel(asked: str, text: str, language: Language) -> str:
    """The answer that the others are compared with."""
    legend = f'<p class="legend">{say(language, "diff_reference")}</p>'
    return _panel(asked, f'{legend}<div class="said">{escaped(text)}</div>')


def diff_panel(asked: str, reference: str, text: str, language: Language) -> str:
    """`text` with what it says otherwise than `reference`."""
    tags = {"deleted": "del", "inserted": "ins"}
    marked = "".join(
        f"<{tags[piece.change]}>{escaped(piece.text)}</{tags[piece.change]}>"
        if piece.change in tags
        else escaped(piece.text)
        for piece in word_diff(reference, text)
    )
    same = f"<span>✓ {say(language, 'no_difference')}</span>" if reference == text else ""
    legend = (
        f'<p class="legend"><span><del>{say(language, "deleted")}</del></span>'
        f"<span><ins>{say(language, 'inserted')}</ins></span>{same}</p>"
    )
    return _panel(asked, f'{legend}<div class="said">{marked}</div>')


def token_panel(asked: str, scores: Sequence[TokenScore], stop_texts: Sequence[str], language: Language) -> str:
    """Every token with a colour, and what it would have been as data for `_INSPECT`."""
    tokens = "".join(_token(number, score, stop_texts, language) for number, score in enumerate(scores))
    ramps = [
        "".join(f'<i class="{way}" style="--d:{depth}"></i>' for depth in depths)
        for way, depths in (("down", _RAMP), ("up", _RAMP[::-1]))
    ]
    legend = (
        f'<p class="legend"><span>{say(language, "base_likelier")}</span><span class="ramp" aria-hidden="true">'
        f"{ramps[0]}{ramps[1]}</span><span>{say(language, 'lane_likelier')}</span></p>"
    )
    words = {key: say(language, key) for key in ("lane_p", "base_p", "base_says")}
    return (
        f"<div class=\"panel token-panel\" data-words='{escaped(json.dumps(words, ensure_ascii=False))}'>"
        f'<div class="body" tabindex="0" role="region" aria-label="{escaped(asked[:80])}">'
        f'<p class="asked">{escaped(asked)}</p>{legend}<div class="said">{tokens}</div></div>'
        f'<div class="inspector" aria-live="polite"><p class="hint">{say(language, "pick_token")}</p></div></div>'
    )


def _panel(asked: str, body: str) -> str:
    return f'<div class="panel" tabindex="0"><p class="asked">{escaped(asked)}</p>{body}</div>'


def _token(number: int, score: TokenScore, stop_texts: Sequence[str], language: Language) -> str:
    difference = score.difference
    shown = escaped(score.text)
    if score.text in stop_texts:
        shown = f'<span class="sign">■ {say(language, "end_token")}</span>'
    elif score.text.strip("\n") == "":
        shown = f'<span class="sign">↵</span>{shown}'
    data = {
        "t": score.text,
        "l": _probability(score.logprob),
        "b": _probability(score.base_logprob),
        "alts": [[text, round(p, 5)] for text, p in score.base_alternatives],
    }
    way, depth = "up" if difference > 0 else "down", abs(difference)
    name = "" if score.text.strip() else ' aria-label="␣"'
    return (
        f'<span class="tk {way}" style="--d:{depth:.3f}" role="button"{name} tabindex="{-1 if number else 0}" '
        f"data-token='{escaped(json.dumps(data, ensure_ascii=False))}'>{shown}</span>"
    )


def _probability(logprob: float) -> float:
    return round(math.exp(logprob), 5)


# Delegated, because the tokens come and go with the value while this runs once.
_INSPECT = """
const chosen = () => element.querySelector('.tk.chosen');
const percent = p => p >= 0.001 || p === 0 ? (100 * p).toFixed(p > 0.1 ? 0 : 1) + '%' : '<0.1%';
const row = (name, p, kind) => {
  const line = document.createElement('div');
  line.className = 'row ' + kind;
  for (const part of ['name', 'bar', 'p']) {
    const cell = document.createElement('span');
    cell.className = part;
    if (part === 'name') cell.textContent = name;
    if (part === 'p') cell.textContent = percent(p);
    if (part === 'bar') {
      const fill = document.createElement('b');
      fill.style.setProperty('--p', p);
      cell.append(fill);
    }
    line.append(cell);
  }
  return line;
};
const spelled = text => text.replaceAll('\\n', '↵').replaceAll(' ', '␣');
const inspect = token => {
  const panel = token.closest('.token-panel');
  const inspector = panel.querySelector('.inspector');
  const words = JSON.parse(panel.dataset.words);
  const data = JSON.parse(token.dataset.token);
  chosen()?.classList.remove('chosen');
  token.classList.add('chosen');
  panel.querySelectorAll('.tk[tabindex="0"]').forEach(each => each.tabIndex = -1);
  token.tabIndex = 0;
  const title = text => Object.assign(document.createElement('h4'), { textContent: text });
  inspector.replaceChildren(
    title('“' + spelled(data.t) + '”'),
    row(words.lane_p, data.l, 'lane-row'),
    row(words.base_p, data.b, 'base-row'),
    title(words.base_says),
    ...data.alts.map(([text, p]) => row(spelled(text), p, text === data.t ? 'same' : '')));
};
const tokenOf = event => event.target.closest?.('.tk');
for (const kind of ['mouseover', 'focusin', 'click'])
  element.addEventListener(kind, event => { const token = tokenOf(event); if (token) inspect(token); });
element.addEventListener('keydown', event => {
  const token = tokenOf(event);
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!token || !step) return;
  const all = [...token.parentElement.querySelectorAll('.tk')];
  const next = all[all.indexOf(token) + step];
  if (next) { event.preventDefault(); next.focus(); }
});
"""
