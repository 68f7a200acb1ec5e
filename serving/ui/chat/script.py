"""What the transcript does in the browser: send events of its buttons, copy, scroll along, keep the address, and know
three keys."""

# For every part with buttons: `data-do` and what stands beside it is sent as a `select` event.
BUTTONS = """
const copied = (button) => {
  const before = button.textContent;
  button.textContent = button.dataset.copied;
  setTimeout(() => { button.textContent = before; }, 1500);
};
const copy = async (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = document.createElement('textarea');  // a page over plain HTTP has no clipboard
  box.value = text;
  document.body.append(box);
  box.select();
  document.execCommand('copy');
  box.remove();
};
element.addEventListener('click', (event) => {
  const copying = event.target.closest('[data-copy]');
  if (copying) return copy(copying.dataset.copy).then(() => copied(copying));
  const chosen = event.target.closest('[data-do]');
  if (!chosen || (chosen.tagName === 'A' && (event.metaKey || event.ctrlKey || event.shiftKey))) return;
  event.preventDefault();
  const { do: what, id, model, text } = chosen.dataset;
  const edited = what === 'edit' ? chosen.closest('.edit').querySelector('textarea').value : text;
  trigger('select', { do: what, id: id || '', model: model || '', text: edited || '' });
  document.querySelector('#chat-side')?.classList.remove('open');
});
"""

# For the transcript alone.
TRANSCRIPT = (
    BUTTONS
    + """
const scroller = element.closest('#chat-scroll');
let atEnd = true, shown = null;
const address = () => {
  const turns = element.querySelector('[data-conversation]');
  if (!turns || turns.dataset.conversation === shown) return;
  shown = turns.dataset.conversation;
  atEnd = true;
  const url = new URL(location);
  const before = url.search;
  if (shown) {
    url.searchParams.set('tab', 'chat');
    url.searchParams.set('c', shown);
    url.searchParams.delete('model');
  } else {
    url.searchParams.delete('c');
  }
  if (url.search !== before) history.replaceState(history.state, '', url);
};
scroller.addEventListener('scroll', () => {
  atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
});
new MutationObserver(() => {
  address();
  if (atEnd && shown) scroller.scrollTop = scroller.scrollHeight;
}).observe(scroller, { childList: true, subtree: true, characterData: true, attributes: true });
document.addEventListener('keydown', (event) => {
  if (event.isComposing || !scroller.checkVisibility()) return;
  if (event.key === 'Escape') document.querySelector('#chat-stop')?.click();
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'k') {
    event.preventDefault();
    document.querySelector('#chat-new').click();
  }
});
"""
)

TOGGLE_LIST = "() => document.querySelector('#chat-side').classList.toggle('open')"

FOCUS_QUESTION = "(...values) => { document.querySelector('#chat-question textarea')?.focus(); return values; }"
