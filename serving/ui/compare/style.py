"""How the Compare tab looks, beyond the widgets' own looks."""

CSS = """
.lane-4 { --lane: #b45309; } .lane-5 { --lane: #0369a1; }
.lane .icon-button[aria-label="Clear"], .lane .icon-button[aria-label="清空对话"] { display: none; }
.lane-remove { align-self: start; height: 42px; }
[id$="-panel"] .html-container, #compare-notice .html-container { padding: 0 !important; }
[id$="-panel"] { border: 0 !important; padding: 0 !important; }
.lane [id$="-model"] input { padding-right: 18px !important; }
#compare-replay, #compare-delete { align-self: end; min-height: 42px; }
#compare-toolbar { align-items: center; }
#compare-toolbar > button { height: 36px; }
.panel { height: 42vh; min-height: 300px; overflow: auto; padding: 12px; border-radius: var(--radius-md);
         border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
         color: var(--body-text-color); line-height: 1.75; overflow-wrap: anywhere; }
.panel .asked { color: var(--body-text-color-subdued); margin: 0 0 8px; font-size: .9rem; }
.panel .said { white-space: pre-wrap; font-size: 1.08rem; line-height: 1.9; }
.panel .hint { color: var(--body-text-color-subdued); }
.panel .legend { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; font-size: .85rem;
                 color: var(--body-text-color-subdued); margin: 0 0 10px; }
.panel ins, .legend ins { background: #bbf7d0; color: #14532d; text-decoration: none; border-radius: 3px; }
.panel del, .legend del { background: #fecaca; color: #7f1d1d; border-radius: 3px; }
.dark .panel ins, .dark .legend ins { background: #14532d; color: #dcfce7; }
.dark .panel del, .dark .legend del { background: #7f1d1d; color: #fee2e2; }
.token-panel { display: flex; flex-direction: column; padding: 0; }
.token-panel .body { overflow: auto; flex: 1; padding: 12px; }
.token-panel .tk { border-radius: 3px; padding: 2px 0; cursor: pointer; outline-offset: 1px;
                   background: color-mix(in srgb, var(--tint) calc(var(--d) * 60%), transparent); }
.token-panel .up, .ramp .up { --tint: #d9472f; } .token-panel .down, .ramp .down { --tint: #2f7fd9; }
.token-panel .tk.chosen { outline: 2px solid var(--body-text-color); }
.token-panel .tk .sign { font-size: .8em; }
.ramp { display: inline-flex; border-radius: 3px; overflow: hidden; }
.ramp i { width: 14px; height: 12px; background: color-mix(in srgb, var(--tint) calc(var(--d) * 60%), transparent); }
.token-panel .inspector { border-top: 1px solid var(--border-color-primary); padding: 8px 12px; flex: none;
                          min-height: 196px; font-size: .88rem; line-height: 1.45; font-variant-numeric: tabular-nums;
                          background: var(--background-fill-secondary); }
.inspector .row { display: grid; grid-template-columns: minmax(4.5em, 22%) 1fr 4.2em; gap: 8px; align-items: center; }
.inspector .row .name { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
.inspector .row .bar { height: 9px; border-radius: 5px; background: var(--border-color-primary); overflow: hidden; }
.inspector .row .bar b { display: block; height: 100%; width: calc(var(--p) * 100%); background: #2f7fd9; }
.inspector .row.lane-row .bar b { background: var(--lane, #d9472f); }
.inspector .row .p { text-align: right; }
.inspector h4 { margin: 5px 0 1px; font-size: .85rem; font-weight: 600; color: var(--body-text-color-subdued); }
.inspector .same .name { font-weight: 700; }
.notice { padding: 2px 4px; color: var(--body-text-color); overflow-wrap: anywhere; }
.notice.good { color: #166534; font-weight: 600; } .dark .notice.good { color: #86efac; }
.notice.bad { color: #b91c1c; } .dark .notice.bad { color: #fca5a5; }
.notice ul { margin: 2px 0 0; padding-left: 1.2em; }
.recent { list-style: none; margin: 0; padding: 0; }
.recent li { padding: 5px 4px; border-bottom: 1px solid var(--border-color-primary); display: flex; gap: 12px; }
.recent a { color: var(--primary-700); overflow-wrap: anywhere; } .dark .recent a { color: var(--primary-300); }
.recent time { color: var(--body-text-color-subdued); white-space: nowrap; margin-left: auto; }
#compare-view, #compare-base-prompt { border: 0; background: none; padding: 0; }
@media (min-width: 1000px) { /* five and six lanes in two even rows */
  #compare-lanes:has(> .lane:nth-child(5)) > .lane { flex: 1 1 30%; }
}
@media (max-width: 640px) { .panel { height: 52vh; } }
"""
