"""What the Arena tab does in the browser."""

# The address names the battle on screen, so that a reload finds it.
ADDRESS = """(id) => {
  const address = new URL(location.href);
  if (!id && !address.searchParams.has('battle')) return;
  address.searchParams.delete('battle');
  if (id) { address.searchParams.set('tab', 'arena'); address.searchParams.set('battle', id); }
  history.replaceState(history.state, '', address);
}"""

# 1 2 3 4 vote, and 0 as 4 does, unless somebody is typing or there is nothing to vote on.
KEYS = """() => {
  if (window.bianlianArenaKeys) return;
  window.bianlianArenaKeys = true;
  const buttons = { 1: 'left', 2: 'right', 3: 'tie', 4: 'bad', 0: 'bad' };
  const typing = (element) => element.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName);
  document.addEventListener('keydown', (event) => {
    const { key, target } = event;
    if (event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey || typing(target)) return;
    const button = key in buttons && document.getElementById('arena-vote-' + buttons[key]);
    if (!button || button.disabled || !button.checkVisibility()) return;
    event.preventDefault();
    button.click();
  });
}"""

# Whoever has asked with Enter votes with a key next, and does not type it.
STOP_TYPING = "() => document.activeElement && document.activeElement.blur()"

FOCUS_NEXT = """() => {
  const next = document.getElementById('arena-next');
  if (next && next.checkVisibility()) next.focus({ preventScroll: true });
}"""
