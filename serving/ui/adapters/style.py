"""How the Adapters tab looks. Colours are the theme's, or have 4.5:1 on both its backgrounds."""

CSS = """
#adapters-list .html-container, #adapters-detail .html-container, #adapters-summary .html-container,
#adapters-pager .html-container, #aliases-list .html-container { padding: 0 !important; }
.ad-summary { margin: 2px 2px 0 !important; color: var(--body-text-color-subdued); line-height: 1.5;
              font-variant-numeric: tabular-nums; }
.ad-empty { color: var(--body-text-color-subdued); line-height: 1.6; margin: 8px 2px !important; }
.ad-list { list-style: none !important; margin: 0 !important; padding: 0 !important; display: grid; gap: 6px; }
.ad-list li { margin: 0 !important; padding: 0 !important; list-style: none; }
.ad-list button { display: flex; align-items: center; gap: 10px; width: 100%; text-align: start; padding: 7px 10px;
  margin: 0; border: 1px solid var(--border-color-primary); border-radius: var(--radius-md); cursor: pointer;
  background: var(--background-fill-primary); color: var(--body-text-color); font-weight: 400; }
.ad-list button:hover { background: var(--background-fill-secondary); }
.ad-list button[aria-current] { border-color: var(--primary-600); box-shadow: inset 4px 0 0 var(--primary-600); }
.ad-list button:focus-visible { outline: 2px solid var(--primary-500); outline-offset: 1px; }
.ad-list button > span:not(.ad-chip):not(.ad-face) { flex: 1; min-width: 0; display: grid; }
.ad-list b, .ad-list small { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; line-height: 1.35; }
.ad-list small { color: var(--body-text-color-subdued); font-family: var(--font-mono); font-size: .82rem; }
.ad-face { flex: 0 0 auto; width: 36px; height: 36px; border-radius: 50%; margin: 0 !important; display: inline-grid;
           place-items: center; background: #5f1b13; color: white; font-weight: 600; }
.ad-chip { font-size: .8rem; line-height: 1.5; border: 1px solid currentColor; border-radius: 999px; padding: 0 9px;
           color: var(--body-text-color-subdued); white-space: nowrap; }
.ad-active { color: #15803d; } .dark .ad-active { color: #86efac; }
.ad-warm { color: #92400e; } .dark .ad-warm { color: #fcd34d; }
.ad-trouble, .ad-bad, .ad-problem { color: #b91c1c; }
.dark .ad-trouble, .dark .ad-bad, .dark .ad-problem { color: #fca5a5; }
#adapters-pager { align-items: center; flex-wrap: nowrap; }
#adapters-pager button { flex: 0 0 auto; }
.ad-pages { text-align: center; margin: 0 !important; color: var(--body-text-color-subdued); font-size: .9rem;
            font-variant-numeric: tabular-nums; }
.ad-detail { border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); padding: 14px 18px;
             background: var(--background-fill-primary); overflow-wrap: anywhere; }
.ad-head { display: flex; gap: 16px; align-items: flex-start; }
.ad-head .ad-face { width: 84px; height: 84px; font-size: 2.2rem; }
.ad-head h2 { font-size: 1.4rem; font-weight: 700; margin: 0 0 2px !important; }
.ad-head p { margin: 6px 0 0 !important; line-height: 1.6; }
.ad-chips { display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; }
.ad-detail code { font-family: var(--font-mono); font-size: .88em; padding: 1px 6px; border-radius: 4px;
  color: var(--body-text-color); background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); }
.ad-links { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 10px; }
.ad-links a { border-radius: var(--radius-md); padding: 5px 14px; text-decoration: none; color: white;
              background: var(--primary-700); }
.ad-links a + a { color: var(--body-text-color); background: none; border: 1px solid var(--border-color-primary); }
.ad-links a:hover { text-decoration: underline; }
.ad-detail dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 18px; margin: 14px 0 0; }
.ad-detail dt { color: var(--body-text-color-subdued); margin: 0; font-weight: 400; }
.ad-detail dd { margin: 0; font-variant-numeric: tabular-nums; }
.ad-places { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none !important; margin: 0 !important;
             padding: 0 !important; }
.ad-places li { margin: 0 !important; padding: 0; list-style: none; }
.ad-places .ad-on span:first-child { color: #15803d; } .dark .ad-places .ad-on span:first-child { color: #86efac; }
.ad-places .ad-off { color: var(--body-text-color-subdued); }
.ad-detail h3 { font-size: 1rem; font-weight: 600; margin: 16px 0 2px !important; }
.ad-table { overflow-x: auto; }
.ad-table table, .ad-table thead, .ad-table tbody, .ad-table tr { border: 0 !important; }
.ad-table table { border-collapse: collapse; width: 100%; margin: 0 !important; font-size: .9rem; }
.ad-table th, .ad-table td { border: 0 !important; padding: 5px 14px 5px 0 !important; text-align: start;
  white-space: nowrap; font-weight: 400; color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.ad-table thead th { color: var(--body-text-color-subdued); }
.ad-table tbody th { font-weight: 600; }
.ad-table tbody tr { border-top: 1px solid var(--border-color-primary) !important; }
.ad-table .ad-chosen { background: var(--background-fill-secondary); }
.ad-table .ad-chip { font-weight: 400; }
.ad-table td:last-child { white-space: normal; min-width: 8em; }
.ad-more { color: var(--body-text-color-subdued); font-size: .9rem; margin: 4px 0 0 !important; }
#adapters-buttons { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
#adapters-buttons button { min-width: 0; padding-left: 8px; padding-right: 8px; }
#adapters-really, #alias-really { background: #b91c1c; color: white; }
#adapters-really:hover, #alias-really:hover { background: #991b1b; }
.ad-aliases { list-style: none !important; margin: 0 !important; padding: 0 !important; display: grid; gap: 6px; }
.ad-aliases li { margin: 0 !important; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 4px 12px;
                 align-items: center; font-variant-numeric: tabular-nums; }
.ad-bar { display: inline-flex; gap: 2px; width: 180px; height: 10px; border-radius: 5px; overflow: hidden; }
.ad-bar i { background: #9d2b1d; min-width: 2px; } .ad-bar i:nth-child(even) { background: #475569; }
.ad-bar i:nth-child(3n) { background: #0f766e; }
.dark .ad-bar i { background: #ee9f91; } .dark .ad-bar i:nth-child(even) { background: #cbd5e1; }
.dark .ad-bar i:nth-child(3n) { background: #5eead4; }
.ad-note p { color: var(--body-text-color-subdued); font-size: .92rem; margin: 0; }
.sr-only { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
"""
