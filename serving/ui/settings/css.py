"""How the Settings tab looks, and tables that are read."""

CSS = """
#tab-settings .html-container { padding: 0 !important; }
#tab-settings h2 { font-size: 1.25rem; font-weight: 700; margin: 6px 0; }
#settings-facts dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 18px;
  margin: 12px 0 0; }
#settings-facts dt { color: var(--body-text-color-subdued); }
#settings-facts dd { margin: 0; overflow-wrap: anywhere; }
#settings-facts a { color: var(--primary-700); text-decoration: underline; margin: 0 14px 0 0; }
.dark #settings-facts a { color: var(--primary-300); }
.table { overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.table table { border-collapse: collapse; width: 100%; margin: 0; font-size: .95rem; }
.table caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.table table, .table thead, .table tbody, .table tr { border: 0 !important; }
.table th, .table td { padding: 7px 12px; text-align: start; border: 0 !important; color: var(--body-text-color);
  border-top: 1px solid var(--border-color-primary) !important; overflow-wrap: anywhere; }
.table thead th { border-top: 0 !important; font-weight: 600; background: var(--background-fill-secondary);
  white-space: nowrap; }
.table .number { text-align: end; font-variant-numeric: tabular-nums; white-space: nowrap; }
.empty { color: var(--body-text-color-subdued); margin: 0; }
#key-revoking { align-items: end; } #key-revoking button { flex-grow: 0; height: 46px; }
#key-made textarea, #key-made input { font-family: var(--font-mono); }
"""
