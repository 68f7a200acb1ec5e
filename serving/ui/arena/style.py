"""How the Arena tab looks, beyond the widgets' own looks."""

CSS = """
#arena .html-container { padding: 0 !important; }
#arena-state .state { display: flex; flex-wrap: wrap; gap: 2px 16px; justify-content: space-between; padding: 2px 4px;
                      min-height: 1.6em; color: var(--body-text-color); }
#arena-state .of-set { color: var(--body-text-color-subdued); }
.arena-side { border-top: 4px solid var(--neutral-400) !important; }
.arena-side .top-panel { display: none; }
#arena-votes { gap: 10px; }
#arena-votes button { font-weight: 600; border: 1px solid var(--border-color-primary); }
#arena-vote-left, #arena-vote-right { border-color: var(--primary-700) !important; }
.reveal { display: grid; grid-template-columns: 1fr 1fr; gap: 6px 10px; }
.reveal .verdict { grid-column: 1 / -1; margin: 0; padding: 0 4px; color: var(--body-text-color); }
.reveal .card { border: 1px solid var(--border-color-primary); border-radius: var(--radius-md); padding: 10px 14px;
                background: var(--background-fill-primary); min-width: 0; }
.reveal .card.crowned { border: 2px solid var(--primary-700); padding: 9px 13px; }
.dark .reveal .card.crowned { border-color: var(--primary-400); }
.reveal h3 { margin: 0 0 2px; font-size: 1.1rem; display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: baseline;
             color: var(--body-text-color); overflow-wrap: anywhere; }
.reveal .side { font-weight: 400; font-size: .9rem; color: var(--body-text-color-subdued); }
.reveal .won { font-size: .85rem; font-weight: 600; padding: 0 8px; border-radius: 99px; color: white;
               background: var(--primary-700); }
.reveal .card p { margin: 0; font-size: .92rem; color: var(--body-text-color-subdued);
                  font-variant-numeric: tabular-nums; }
#arena a { color: var(--primary-700); text-decoration: underline; } .dark #arena a { color: var(--primary-300); }
#arena code { font-family: var(--font-mono); font-size: .9em; padding: 1px 5px; border-radius: 4px;
              color: var(--body-text-color); background: var(--background-fill-secondary);
              border: 1px solid var(--border-color-primary); }
#arena-board-head { align-items: end; margin-top: 14px; border-top: 1px solid var(--border-color-primary);
                    padding-top: 10px; }
#arena-board-title { flex: 3; } #arena-board-title p { font-size: 1.3rem; font-weight: 700; margin: 0; }
#arena .empty { padding: 26px 12px; text-align: center; color: var(--body-text-color-subdued); margin: 0; }
.forest { margin: 0; } .forest figcaption, #arena caption { text-align: left; padding: 0 0 8px; font-size: .92rem;
          color: var(--body-text-color-subdued); caption-side: top; }
.forest { --names: minmax(6em, 11em); }
.forest .plot { position: relative; }
.forest .row, .forest .axis, .forest .grid { display: grid; gap: 0 14px;
                                             grid-template-columns: var(--names) 1fr 3.2em; }
.forest .row { height: 36px; align-items: center; position: relative; }
.forest .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-weight: 600;
                color: var(--body-text-color); }
.forest .score { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600;
                 color: var(--body-text-color); }
.forest .track { position: relative; height: 100%; display: block; }
.forest .bar { position: absolute; top: 50%; height: 6px; margin-top: -3px; border-radius: 3px;
               background: var(--primary-200); border: 1px solid var(--primary-400); }
.dark .forest .bar { background: var(--primary-800); border-color: var(--primary-400); }
.forest .dot { position: absolute; top: 50%; width: 14px; height: 14px; margin: -7px 0 0 -7px; border-radius: 50%;
               background: var(--primary-700); border: 2px solid var(--background-fill-primary); }
.dark .forest .dot { background: var(--primary-300); }
.forest .grid { position: absolute; inset: 0 0 24px; } .forest .grid div { grid-column: 2; position: relative; }
.forest .grid i { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--border-color-primary); }
.forest .axis div { grid-column: 2; position: relative; height: 24px; }
.forest .axis span { position: absolute; transform: translateX(-50%); top: 4px; font-size: .8rem;
                     font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); }
.forest .apart { margin: 6px 0 0; font-size: .9rem; color: var(--body-text-color-subdued); }
#arena .scroll { overflow-x: auto; max-width: 100%; }
#arena table { border: 0; border-collapse: collapse; font-variant-numeric: tabular-nums;
               color: var(--body-text-color); }
#arena .standings { width: 100%; }
#arena th, #arena td { padding: 6px 10px; border: 1px solid var(--border-color-primary); text-align: right;
                       white-space: nowrap; font-weight: 400; }
#arena th[scope=row] { text-align: left; font-weight: 600; }
#arena thead th { background: var(--background-fill-secondary); }
#arena .duels td, #arena .duels thead th { text-align: center; line-height: 1.25; padding: 5px 6px; }
#arena .duels td { min-width: 4.4em; } #arena .duels thead th { white-space: normal; max-width: 8em; }
#arena .duels small { display: block; font-size: .78rem; }
#arena thead tr { border: 0; }
#arena .duels thead td { border: 0; background: none; }
#arena .standings th:nth-child(2) { text-align: left; }
#arena .duels .good { background: color-mix(in srgb, #2f9e5b calc(var(--d) * 40%), transparent); }
#arena .duels .bad { background: color-mix(in srgb, #d9472f calc(var(--d) * 40%), transparent); }
#arena .duels .none { color: var(--body-text-color-subdued); }
.questions { max-height: 300px; overflow: auto; padding: 2px 10px; border: 1px solid var(--border-color-primary);
             border-radius: var(--radius-md); color: var(--body-text-color); }
.questions h4 { margin: 6px 0; font-size: 1rem; }
.questions ol { margin: 0 0 6px; padding-left: 2em; list-style: decimal; }
#arena .counts { margin: 0; color: var(--body-text-color-subdued); } #arena .counts b { color: var(--body-text-color); }
#arena-note p { margin: 0; color: var(--body-text-color); }
@media (max-width: 640px) {
  .reveal { grid-template-columns: 1fr; }
  #arena-board-title { flex: 1 1 100%; }
  #arena-votes button { min-width: 0 !important; flex: 1 1 calc(50% - 10px); font-size: 1rem; padding: 10px 4px; }
  .forest .axis span:nth-child(even) { display: none; }
  .forest { --names: minmax(4.5em, 6.5em); }
  .forest .row, .forest .axis, .forest .grid { gap: 0 8px; }
}
"""
