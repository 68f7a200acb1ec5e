"""The login page: one field, in the visitor's language, in the colours of the rest."""

import html
import math

from starlette.requests import Request
from starlette.responses import HTMLResponse

from adapters.ui.words import language_of
from serving.ui.texts import say

_PAGE = """<!doctype html><html lang="{lang}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>变脸 Bianlian</title>
<script>(() => {{ let theme = null; try {{ theme = localStorage.getItem('bianlian-theme'); }} catch {{ }}
if (theme) document.documentElement.style.colorScheme = theme; }})();</script>
<style>
:root {{ color-scheme: light dark; --face: light-dark(#9d2b1d, #e37261); --paper: light-dark(#fff, #1c1917);
  --ink: light-dark(#1c1917, #f5f5f4); --soft: light-dark(#57534e, #d6d3d1); --line: light-dark(#a8a29e, #78716c);
  --alarm: light-dark(#b91c1c, #fca5a5) }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; color: var(--ink);
  background: light-dark(#fafaf9, #0c0a09); font: 16px/1.6 system-ui, "PingFang SC", "Noto Sans CJK SC", sans-serif }}
main {{ width: min(24rem, 100vw - 48px); box-sizing: border-box; padding: 28px; background: var(--paper);
  border-top: 5px solid var(--face); border-radius: 10px; box-shadow: 0 8px 30px rgb(0 0 0 / .12) }}
h1 {{ margin: 0 0 2px; font-size: 1.7rem }} h1 span {{ color: var(--face) }}
p {{ margin: 0; color: var(--soft) }} form {{ display: grid; gap: 10px; margin-top: 20px }}
input, button {{ font: inherit; padding: 10px 12px; border-radius: 6px }}
input {{ border: 1px solid var(--line); background: transparent; color: inherit; min-width: 0 }}
button {{ border: 0; background: #9d2b1d; color: #fff; font-weight: 600; cursor: pointer }}
button:hover {{ background: #7f2318 }} :focus-visible {{ outline: 3px solid var(--face); outline-offset: 2px }}
[role=alert] {{ color: var(--alarm) }} [role=alert]:empty {{ display: none }} small {{ color: var(--soft) }}
</style></head><body><main><h1><span>变脸</span> Bianlian</h1><p>{subtitle}</p>
<form method="post" action="login{query}"><label for="key">{asks}</label>
<input id="key" name="password" type="password" autocomplete="current-password" required autofocus
 aria-describedby="hint"><p role="alert">{trouble}</p><button>{enter}</button><small id="hint">{hint}</small>
</form></main></body></html>"""


def login_page(request: Request, status: int, trouble: str = "", wait_s: float = 0.0) -> HTMLResponse:
    """`trouble` names a line; `wait_s` says when to try again."""
    language = language_of(request)
    seconds = math.ceil(wait_s)
    page = _PAGE.format(
        lang="zh-CN" if language == "zh" else "en",
        subtitle=say(language, "login_subtitle"),
        asks=say(language, "login"),
        enter=say(language, "enter"),
        hint=say(language, "login_hint"),
        trouble=say(language, trouble, seconds=seconds) if trouble else "",
        query=html.escape(f"?{request.url.query}") if request.url.query else "",
    )
    return HTMLResponse(page, status, {"Retry-After": str(seconds)} if seconds else None)
