"""What runs in the browser beside Gradio: before it (language, theme, the tab to come back to) and with it (names of
icon buttons, addresses of tabs, the way to the login when a session has ended).

Choices are kept in the browser: the theme and the last tab in its storage, the language in a cookie, because the
server writes lines and the login page in it too."""

from adapters.ui.words import LANGUAGE_COOKIE

# Runs before anything else on the page. Gradio reads the language once, and knows zh-CN but neither zh nor zh-SG. It
# asks the system for light or dark; a chosen theme answers in the system's place, so that charts follow as well.
EARLY = """<script>(() => {
  const query = new URLSearchParams(location.search);
  const kept = name => { try { return localStorage.getItem('bianlian-' + name); } catch { return null; } };
  const chosen = (document.cookie.match(/(?:^|; )COOKIE=([\\w-]+)/) || [])[1];
  const mine = l => /^zh/i.test(l) ? 'zh-CN' : l;
  const list = [query.get('lang'), chosen, ...navigator.languages].filter(Boolean).map(mine);
  Object.defineProperty(navigator, 'languages', { get: () => list });
  Object.defineProperty(navigator, 'language', { get: () => list[0] });
  document.documentElement.lang = list[0] || 'en';

  const theme = kept('theme');
  if (theme === 'dark' || theme === 'light') {
    const ask = window.matchMedia.bind(window);
    const said = media => media.includes(theme) ? 'all' : 'not all';
    window.matchMedia = media => ask(/prefers-color-scheme/.test(media) ? said(media) : media);
  }
  document.documentElement.style.colorScheme = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';

  if (!query.has('tab') && kept('tab')) {
    query.set('tab', kept('tab'));
    history.replaceState(null, '', '?' + query);
  }
})();</script>""".replace("COOKIE", LANGUAGE_COOKIE)

# Gradio 6.31 leaves some icon buttons without a name, calls a group of buttons a list, and names the upload box other
# than it reads.
_NAMES = """
  const name = () => {
    document.querySelectorAll('button.icon-button[aria-label=""], button:not([aria-label])[title]')
      .forEach(b => b.setAttribute('aria-label', b.title || 'button'));
    document.querySelectorAll('button.upload-container[aria-label]').forEach(b => b.removeAttribute('aria-label'));
    document.querySelectorAll('.examples[role=list]').forEach(e => e.setAttribute('role', 'group'));
  };
  new MutationObserver(name).observe(document.documentElement, { childList: true, subtree: true });
"""

# The address names the tab, so that a reload and the Back button stay where one was. What a tab keeps in its address
# (a conversation, say) is there again when one comes back to it.
_TABS = """
  const idOf = button => (/^tab-(.+)-button$/.exec(button?.id || '') || [])[1];
  const buttonOf = id => document.getElementById(`tab-${id}-button`);
  const here = () => idOf(document.querySelector('#studio-tabs [role=tab][aria-selected=true]'));
  const addressOf = id => {
    const query = new URLSearchParams({ tab: id }), now = new URLSearchParams(location.search);
    for (const kept of ['lang', '__theme']) if (now.has(kept)) query.set(kept, now.get(kept));
    return '?' + query;
  };
  const left = {};
  let travelling = false;
  document.addEventListener('click', event => {
    const button = event.target.closest?.('#studio-tabs [role=tab]');
    const id = button && idOf(button);
    if (id) {
      try { localStorage.setItem('bianlian-tab', id); } catch { /* storage is off: the address still says it */ }
      const from = here();
      if (travelling || id === from) return;
      if (from) left[from] = location.search;
      history.pushState(null, '', left[id] || addressOf(id));
      return;
    }
    const link = event.target.closest?.('a[href^="?tab="]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const query = new URLSearchParams(link.getAttribute('href'));
    const target = query.size === 1 && buttonOf(query.get('tab'));
    if (target) { event.preventDefault(); target.click(); scrollTo(0, 0); }
  }, true);
  addEventListener('popstate', () => {
    const target = buttonOf(new URLSearchParams(location.search).get('tab') || 'home');
    travelling = true;
    try { target?.click(); } finally { travelling = false; }
  });
  document.addEventListener('keydown', event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !event.target.matches?.('#studio-tabs > .tab-wrapper [role=tab]')) return;
    const all = [...event.target.parentElement.querySelectorAll('[role=tab]')].filter(b => b.checkVisibility());
    const next = all[(all.indexOf(event.target) + step + all.length) % all.length];
    event.preventDefault(); next.focus(); next.click();
  });
"""

_CHOICES = """
  window.bianlian = {
    language: () => (document.cookie.match(/(?:^|; )COOKIE=([\\w-]+)/) || [])[1] || '',
    theme: () => { try { return localStorage.getItem('bianlian-theme') || ''; } catch { return ''; } },
    again: () => {
      const query = new URLSearchParams(location.search);
      query.delete('lang'); query.delete('__theme');
      location.replace('?' + query);
    },
    setLanguage: value => {
      document.cookie = `COOKIE=${value}; path=/; samesite=lax; max-age=${value ? 31536000 : 0}`;
      window.bianlian.again();
    },
    setTheme: value => {
      try { value ? localStorage.setItem('bianlian-theme', value) : localStorage.removeItem('bianlian-theme'); }
      catch { /* storage is off: the system's theme stays */ }
      window.bianlian.again();
    },
    logOut: () => fetch('logout', { method: 'POST' }).then(() => location.replace('.')),
  };
""".replace("COOKIE", LANGUAGE_COOKIE)

# Who has logged out elsewhere, or whose key was revoked, comes to the login with the next thing he does.
_ENDED = """
  const ask = window.fetch;
  window.fetch = async (...asked) => {
    const answer = await ask(...asked);
    if (answer.status === 401) location.reload();
    return answer;
  };
"""

HEAD = f"<script>(() => {{{_NAMES}{_TABS}{_CHOICES}{_ENDED}}})();</script>"

# A file made in the browser: nothing of it lies on the server's disk.
DOWNLOAD = """(file) => {
  if (!file) return;
  const { name, text } = JSON.parse(file);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'application/octet-stream' }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
