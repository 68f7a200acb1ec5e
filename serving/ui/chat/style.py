"""How the Chat tab looks."""

CSS = """
#chat-scroll { height: max(320px, calc(100dvh - 300px)); overflow-y: auto; flex-wrap: nowrap; padding: 4px 12px;
               border: 1px solid var(--border-color-primary); border-radius: var(--block-radius);
               background: var(--background-fill-primary); }
#chat-scroll .html-container { padding: 0 !important; }
#chat-log, #chat-live { border: 0; overflow: visible; }
#chat-faces { display: none; }
#chat-scroll button, #chat-scroll img { margin: 0; }
#chat-scroll button { font-weight: 400; }
#chat-scroll .message { display: flex; gap: 10px; margin: 14px 0; }
#chat-scroll .message.user { justify-content: flex-end; }
#chat-scroll .body { min-width: 0; max-width: min(80ch, 100%); }
#chat-scroll .message.user .body { max-width: min(70ch, 88%); display: flex; flex-direction: column;
                                   align-items: flex-end; }
#chat-scroll .said { overflow-wrap: anywhere; font-size: 1.05rem; line-height: 1.6; }
#chat-scroll .said > :first-child { margin-top: 0; } #chat-scroll .said > :last-child { margin-bottom: 2px; }
#chat-scroll .said pre { overflow-x: auto; padding: 10px; border-radius: 6px;
    background: var(--background-fill-secondary); }
#chat-scroll .said table { display: block; overflow-x: auto; }
#chat-scroll .message.user .said { white-space: pre-wrap; padding: 8px 14px; border-radius: 14px 14px 4px 14px;
                                   background: var(--color-accent-soft); color: var(--body-text-color); }
#chat-scroll .avatar { flex: 0 0 36px; width: 36px; height: 36px; border-radius: 50%; background-size: cover; }
#chat-scroll .stats { padding: 0; } #chat-scroll .bot .tools > :first-child { padding-left: 0; }
#chat-scroll .silent { color: var(--body-text-color-subdued); }
#chat-scroll .tools { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: center; min-height: 1.6em; }
#chat-scroll .tools button, #chat-scroll .tools summary { font-size: .85rem; padding: 2px 4px; border-radius: 4px;
    color: var(--body-text-color-subdued); background: none; border: 0; cursor: pointer; list-style: none; }
#chat-scroll .tools button:hover, #chat-scroll .tools summary:hover { color: var(--body-text-color);
    text-decoration: underline; }
#chat-scroll .tools button:disabled { opacity: .35; cursor: default; text-decoration: none; }
#chat-scroll .versions { display: inline-flex; align-items: center; font-variant-numeric: tabular-nums;
                         font-size: .85rem; color: var(--body-text-color-subdued); }
#chat-scroll .versions button { font-size: 1.1rem; line-height: 1; padding: 2px 8px; }
#chat-scroll .message.user .tools { justify-content: flex-end; }
#chat-scroll .edit { text-align: right; } #chat-scroll .edit[open] { flex-basis: 100%; min-width: min(60ch, 72vw); }
#chat-scroll .edit textarea { width: 100%; margin-top: 4px; font: inherit; padding: 8px; border-radius: 6px;
    color: var(--body-text-color);
    background: var(--input-background-fill); border: 1px solid var(--border-color-primary); }
#chat-scroll .edit button { display: block; margin: 4px 0 0 auto; padding: 4px 14px; color: white;
    background: var(--primary-700); }
#chat-scroll .edit button:hover { color: white; text-decoration: none; background: var(--primary-800); }
#chat-scroll .thoughts { margin-bottom: 6px; color: var(--body-text-color-subdued); font-size: .95rem; }
#chat-scroll .thoughts summary { cursor: pointer; }
#chat-scroll .thoughts div { white-space: pre-wrap; border-left: 3px solid var(--border-color-primary);
    padding-left: 10px; }
.sr-only { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

#chat-scroll .welcome { display: flex; flex-direction: column; align-items: center; gap: 8px; text-align: center;
                        padding: 18px 0; }
#chat-scroll .welcome .portrait { width: 112px; height: 112px; margin: 0; }
#chat-scroll .welcome h2 { margin: 4px 0 0; font-size: 1.4rem; }
#chat-scroll .welcome p { margin: 0; font-size: 1.1rem; }
#chat-scroll .welcome h3 { margin: 22px 0 4px; font-size: .95rem; font-weight: 600;
    color: var(--body-text-color-subdued); }
#chat-scroll .chips { display: flex; flex-wrap: wrap; justify-content: center; gap: 8px; margin-top: 8px; }
#chat-scroll .chip { padding: 7px 16px; border-radius: 999px; font-size: 1rem; cursor: pointer;
    color: var(--body-text-color); background: var(--background-fill-secondary);
    border: 1px solid var(--border-color-primary); }
#chat-scroll .chip:hover, #chat-scroll .card:hover { border-color: var(--primary-500); }
#chat-scroll .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(240px, 100%), 1fr)); gap: 10px;
                      width: 100%; max-width: 860px; }
#chat-scroll .card { display: flex; align-items: center; gap: 10px; padding: 8px 12px; border-radius: 10px;
    text-align: left;
    cursor: pointer; color: var(--body-text-color); background: var(--background-fill-primary);
    border: 1px solid var(--border-color-primary); }
#chat-scroll .card[aria-pressed="true"] { border-color: var(--primary-600);
    box-shadow: inset 0 0 0 1px var(--primary-600); }
#chat-scroll .card img { width: 44px; height: 44px; margin: 0; flex: none; }
#chat-scroll .card span { min-width: 0; display: grid; }
#chat-scroll .card b, #chat-scroll .card small { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#chat-scroll .card small { color: var(--body-text-color-subdued); font-size: .85rem; }

#chat-list { max-height: max(180px, calc(100dvh - 430px)); overflow-y: auto; }
#chat-list .html-container { padding: 0 !important; }
#chat-list h3 { margin: 8px 4px 2px; font-size: .8rem; font-weight: 600; color: var(--body-text-color-subdued); }
#chat-list ul { list-style: none; margin: 0; padding: 0; }
#chat-list li { margin: 0; }
#chat-list a { display: grid; text-align: left; padding: 6px 8px; border-radius: 6px; text-decoration: none;
    color: var(--body-text-color); }
#chat-list a:hover { background: var(--background-fill-secondary); }
#chat-list a[aria-current] { background: var(--color-accent-soft); }
#chat-list a span, #chat-list a small { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#chat-list a small { color: var(--body-text-color-subdued); font-size: .8rem; }
#chat-list .empty, #chat-note, #chat-own-prompt { color: var(--body-text-color-subdued); font-size: .9rem; }
#chat-title textarea, #chat-title input { font-weight: 600; font-size: 1.05rem; }
#chat-save-prompt, #chat-delete-prompt { align-self: center; }
#chat-list-toggle { display: none; }
@media (max-width: 767px) {
  #chat-list-toggle { display: block; }
  #chat-side:not(.open) > :not(#chat-list-toggle) { display: none !important; }
  #chat-list { max-height: 40dvh; }
  #chat-scroll { height: max(300px, calc(100dvh - 390px)); padding: 4px 8px; }
  #chat-scroll .avatar { flex-basis: 28px; width: 28px; height: 28px; }
}
"""
