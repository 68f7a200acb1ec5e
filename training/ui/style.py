"""How the Train tab looks. Colours are the theme's, or have 4.5:1 on both its backgrounds."""

CSS = """
#train-side { align-self: flex-start; }
#train-notice .html-container, #train-body .html-container { padding: 0 !important; }
/* Gradio keeps the place of what is empty. */
#tab-train .block:has(> .html-container > .prose:empty), #train-stamp, #train-listed { display: none !important; }
#train-runs .wrap { display: flex; flex-direction: column; flex-wrap: nowrap; max-height: 60vh; overflow-y: auto; }
#train-runs label { width: 100%; white-space: pre-line; }
#train-runs label span { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tr-h { font-size: 1.1rem; font-weight: 600; margin: 6px 2px 0; }
.tr-empty { color: var(--body-text-color-subdued); padding: 10px 12px; line-height: 1.6; }
.tr-panel { border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); padding: 12px 14px;
            background: var(--background-fill-primary); overflow-wrap: anywhere; }
.tr-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 8px; margin: 10px 0; }
.tr-card { background: var(--background-fill-secondary); border-radius: var(--radius-md); padding: 8px 12px; }
.tr-card b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tr-card span, .tr-card small { color: var(--body-text-color-subdued); font-size: .85rem; display: block; }
.tr-verdict { font-weight: 600; font-size: 1.05rem; }
.tr-verdict.good { color: #15803d; } .dark .tr-verdict.good { color: #86efac; }
.tr-verdict.warn { color: #92400e; } .dark .tr-verdict.warn { color: #fcd34d; }
.tr-verdict.bad, .tr-trouble { color: #b91c1c; } .dark .tr-verdict.bad, .dark .tr-trouble { color: #fca5a5; }
.tr-trouble { overflow-wrap: anywhere; line-height: 1.5; margin: 4px 0; }
.tr-rows { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); gap: 10px; }
.tr-stack { display: grid; gap: 14px; align-content: start; }
.tr-two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 14px 22px; }
.tr-panel details { margin-top: 8px; } .tr-panel summary { cursor: pointer; line-height: 1.6; }
.tr-panel details ul { margin: 4px 0 4px 1.2em; padding: 0; max-height: 220px; overflow-y: auto; }
.tr-panel details li { font-size: .9rem; line-height: 1.5; }
.tr-panel code, .tr-panel .mono { font-family: var(--font-mono); font-size: .88em; }
.tr-seen { white-space: pre-wrap; line-height: 1.7; max-height: 190px; overflow-y: auto; padding: 8px 10px;
           background: var(--background-fill-secondary); border-radius: var(--radius-md); margin: 4px 0 10px;
           font-size: .95rem; color: var(--body-text-color-subdued); }
.tr-learned { color: var(--body-text-color); background: #bbf7d0; border-bottom: 2px solid #15803d; }
.dark .tr-learned { background: #14532d; border-bottom-color: #86efac; }
.tr-legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .9rem; margin-bottom: 4px; }
.tr-legend span { padding: 0 3px; }
.tr-table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
.tr-table th { text-align: left; font-weight: 600; color: var(--body-text-color-subdued); }
.tr-table, .tr-table * { border: none !important; }
.tr-table td, .tr-table th { padding: 4px 14px 4px 0 !important; vertical-align: top; line-height: 1.45; }
.tr-table tbody tr { border-top: 1px solid var(--border-color-primary) !important; }
.tr-estimate { line-height: 1.6; } .tr-estimate small { color: var(--body-text-color-subdued); display: block; }
.tr-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 14px; }
.tr-head h2 { font-size: 1.3rem; margin: 0; font-weight: 700; overflow-wrap: anywhere; }
.tr-head .mono { color: var(--body-text-color-subdued); }
.tr-chip { font-size: .88rem; font-weight: 600; border-radius: 999px; padding: 1px 11px;
           border: 1px solid currentColor; }
.tr-chip.running, .tr-chip.validating { color: var(--primary-700); }
.dark .tr-chip.running, .dark .tr-chip.validating { color: var(--primary-300); }
.tr-chip.succeeded { color: #15803d; } .dark .tr-chip.succeeded { color: #86efac; }
.tr-chip.failed { color: #b91c1c; } .dark .tr-chip.failed { color: #fca5a5; }
.tr-chip.queued, .tr-chip.paused, .tr-chip.cancelled { color: var(--body-text-color-subdued); }
.tr-run progress { width: 100%; height: 12px; margin: 10px 0 6px; display: block; appearance: none; border: none;
                   border-radius: 6px; overflow: hidden; background: var(--border-color-primary); }
.tr-run progress::-webkit-progress-bar { background: var(--border-color-primary); }
.tr-run progress::-webkit-progress-value { background: var(--primary-600); transition: width .4s; }
.tr-run progress::-moz-progress-bar { background: var(--primary-600); }
.tr-facts { display: flex; flex-wrap: wrap; gap: 2px 20px; font-variant-numeric: tabular-nums; line-height: 1.6; }
.tr-links { display: flex; flex-wrap: wrap; gap: 8px; margin: 8px 0 2px; }
.tr-links a { border: 1px solid var(--border-color-primary); border-radius: var(--radius-md); padding: 6px 14px;
              color: var(--body-text-color); background: var(--background-fill-secondary); text-decoration: none; }
.tr-links a:hover, .tr-links a:focus-visible { border-color: var(--primary-600); }
.tr-links a.first { background: var(--primary-700); color: white; border-color: var(--primary-700); }
.tr-chart { margin: 0; min-width: 0; }
.tr-chart figcaption { display: flex; flex-wrap: wrap; gap: 0 14px; align-items: baseline; margin-bottom: 6px; }
.tr-chart .note, .tr-chart .key { font-size: .88rem; color: var(--body-text-color-subdued); }
.tr-chart .key::before { content: ""; display: inline-block; width: 14px; height: 4px; border-radius: 2px;
                         margin-right: 5px; vertical-align: middle; background: var(--c); }
.tr-chart .key b { color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.tr-chart .train { --c: #9d2b1d; } .dark .tr-chart .train { --c: #ee9f91; }
.tr-chart .validation { --c: #1d4ed8; } .dark .tr-chart .validation { --c: #93c5fd; }
.tr-chart .base { --c: #78716c; } .dark .tr-chart .base { --c: #a8a29e; }
.tr-chart .plot { position: relative; height: 200px; padding: 6px 8px 22px 46px; }
.tr-small .plot { height: 120px; }
.tr-chart .plot.empty { display: grid; place-items: center; color: var(--body-text-color-subdued); padding: 0;
                        background: var(--background-fill-secondary); border-radius: var(--radius-md); }
.tr-chart .area { position: relative; width: 100%; height: 100%; }
.tr-chart svg { width: 100%; height: 100%; overflow: visible; display: block; }
.tr-chart svg * { vector-effect: non-scaling-stroke; fill: none; }
.tr-chart .grid { stroke: var(--border-color-primary); stroke-width: 1; }
.tr-chart .mark { stroke: var(--body-text-color-subdued); stroke-width: 2; }
.tr-chart polyline { stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.tr-chart polyline.base { stroke-dasharray: 5 4; stroke-width: 1.5; }
.tr-chart .dot { position: absolute; width: 8px; height: 8px; border-radius: 50%; background: var(--c);
                 transform: translate(-50%, -50%); }
.tr-chart .y, .tr-chart .x { font-size: .8rem; color: var(--body-text-color-subdued);
                             font-variant-numeric: tabular-nums; white-space: nowrap; }
.tr-chart .y { position: absolute; left: 0; top: 6px; bottom: 22px; width: 40px; }
.tr-chart .y span { position: absolute; right: 0; transform: translateY(-50%); }
.tr-chart .x { position: absolute; left: 46px; right: 8px; bottom: 0; height: 18px; }
.tr-chart .x span { position: absolute; transform: translateX(-50%); }
.tr-bars .cols { display: flex; align-items: stretch; gap: 3px; height: 150px; }
.tr-bars .col { flex: 1 1 0; min-width: 0; display: flex; flex-direction: column; justify-content: flex-end; }
.tr-bars .col i { background: var(--primary-700); border-radius: 3px 3px 0 0; flex: 0 1 auto; }
.dark .tr-bars .col i { background: var(--primary-400); }
.tr-bars .col .n, .tr-bars .col .l { font-size: .75rem; text-align: center; color: var(--body-text-color-subdued);
                                     font-variant-numeric: tabular-nums; }
.tr-shares .bar { display: flex; height: 18px; border-radius: var(--radius-md); overflow: hidden; gap: 2px; }
.tr-shares .bar i { background: var(--c); min-width: 3px; }
.tr-shares .keys { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 6px; }
.tr-shares .zh { --c: #9d2b1d; } .tr-shares .en { --c: #1d4ed8; } .tr-shares .ja { --c: #0f766e; }
.tr-shares .other, .tr-shares .given { --c: #78716c; } .tr-shares .learned { --c: #15803d; }
.dark .tr-shares .zh { --c: #ee9f91; } .dark .tr-shares .en { --c: #93c5fd; } .dark .tr-shares .ja { --c: #5eead4; }
.dark .tr-shares .learned { --c: #86efac; } .dark .tr-shares .given, .dark .tr-shares .other { --c: #a8a29e; }
.tr-answers { display: grid; gap: 12px; margin-top: 10px; }
.tr-verdict small { font-weight: 400; color: var(--body-text-color-subdued); margin-left: 12px; }
#train-publish { align-self: flex-end; height: 44px; }
.tr-q { font-weight: 600; margin-bottom: 4px; overflow-wrap: anywhere; }
.tr-pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); gap: 8px; }
.tr-cell { background: var(--background-fill-secondary); border-radius: var(--radius-md); padding: 8px 12px;
           border-left: 4px solid #64748b; min-width: 0; }
.tr-cell.tuned { border-left-color: var(--primary-600); }
.tr-cell small { color: var(--body-text-color-subdued); display: block; font-size: .82rem; }
.tr-cell p { margin: 2px 0 0; white-space: pre-wrap; line-height: 1.6; overflow-wrap: anywhere; }
.tr-cell p.none { color: var(--body-text-color-subdued); font-style: italic; }
.tr-log { max-height: 240px; overflow-y: auto; font-size: .88rem; line-height: 1.6; font-family: var(--font-mono); }
.tr-log .error { color: #b91c1c; } .dark .tr-log .error { color: #fca5a5; }
.tr-log .warn { color: #92400e; } .dark .tr-log .warn { color: #fcd34d; }
@media (max-width: 700px) {
  #train-runs .wrap { max-height: 180px; }
  .tr-panel { padding: 10px; }
  #train-go { flex-direction: column; } #train-go > * { width: 100%; }
}
"""
