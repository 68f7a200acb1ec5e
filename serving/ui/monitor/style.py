"""How the Monitor looks."""

CSS = """
#monitor-view .html-container { padding: 0 !important; }
#tab-monitor { --s0: #9d2b1d; --s1: #475569; --s2: #0f766e; --s3: #6d28d9; }
.dark #tab-monitor { --s0: #ee9f91; --s1: #cbd5e1; --s2: #5eead4; --s3: #c4b5fd; }
.mon-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(290px, 100%), 1fr)); gap: 12px; }
.mon-wide { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 12px; margin-top: 12px; }
@media (max-width: 900px) { .mon-wide { grid-template-columns: minmax(0, 1fr); } }
.mon-card { border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); padding: 10px 14px 8px;
            background: var(--background-fill-primary); min-width: 0; }
.mon-cards .mon-card { display: flex; flex-direction: column; } .mon-cards .mon-plot { margin-top: auto; }
.mon-card h3 { font-size: 1rem; font-weight: 600; margin: 0 !important; }
.mon-legend { display: flex; flex-wrap: wrap; gap: 0 12px; list-style: none; margin: 2px 0 4px !important;
              padding: 0 !important; min-height: 2em; }
.mon-legend li { margin: 0 !important; padding: 0; color: var(--body-text-color-subdued);
                 font-variant-numeric: tabular-nums; list-style: none; }
.mon-legend b { font-size: 1.1rem; white-space: nowrap; color: var(--body-text-color); }
.mon-s0 { --line: var(--s0); } .mon-s1 { --line: var(--s1); --dash: 5 3; }
.mon-s2 { --line: var(--s2); --dash: 2 3; } .mon-s3 { --line: var(--s3); --dash: 8 3 2 3; }
.mon-key { display: inline-block; width: 14px; height: 0; border-top: 3px solid var(--line); margin-right: 4px;
           vertical-align: middle; }
.mon-s1 .mon-key { border-top-style: dashed; } .mon-s2 .mon-key { border-top-style: dotted; }
.mon-s3 .mon-key { border-top-style: double; }
.mon-plot { position: relative; }
.mon-plot svg { display: block; width: 100%; height: 110px; margin: 0; overflow: visible; }
.mon-line { fill: none; stroke: var(--line); stroke-width: 2; stroke-dasharray: var(--dash, none);
            stroke-linecap: round; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.mon-dot { stroke-width: 5; stroke-dasharray: none; }
.mon-grid { fill: none; stroke: var(--border-color-primary); stroke-width: 1; vector-effect: non-scaling-stroke; }
.mon-top, .mon-ends span { font-size: .8rem; color: var(--body-text-color-subdued);
                           font-variant-numeric: tabular-nums; }
.mon-top { position: absolute; top: 3px; left: 2px; padding: 0 3px; background: var(--background-fill-primary);
           border-radius: 3px; line-height: 1.3; }
.mon-ends { display: flex; justify-content: space-between; }
.mon-table { overflow-x: auto; }
.mon-table table, .mon-table thead, .mon-table tbody, .mon-table tr { border: 0 !important; }
.mon-table table { border-collapse: collapse; width: 100%; margin: 4px 0 0 !important; font-size: .92rem; }
.mon-table th, .mon-table td { border: 0 !important; padding: 5px 14px 5px 0 !important; text-align: start;
  vertical-align: top; font-weight: 400; color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.mon-table thead th { color: var(--body-text-color-subdued); white-space: nowrap; }
.mon-table tbody tr { border-top: 1px solid var(--border-color-primary) !important; }
.mon-table tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 7em; }
.mon-table .mon-number { text-align: end; white-space: nowrap; }
.mon-table .mon-when { white-space: nowrap; }
.mon-table .mon-id { font-family: var(--font-mono); font-size: .85em; overflow-wrap: anywhere; min-width: 9em; }
.mon-share { white-space: nowrap; }
.mon-bar { display: inline-block; width: clamp(28px, 6vw, 72px); height: 8px; border-radius: 4px; margin-right: 8px;
  background: linear-gradient(to right, var(--s0) calc(var(--part) * 100%), var(--border-color-primary) 0); }
.mon-empty, .mon-totals { color: var(--body-text-color-subdued); line-height: 1.6; }
.mon-empty { margin: 6px 0 !important; }
.mon-totals { margin: 12px 2px 0 !important; font-variant-numeric: tabular-nums; }
.mon-totals b { color: var(--body-text-color); margin-right: 6px; }
"""
