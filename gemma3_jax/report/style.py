"""How the page looks: one sheet, for light, dark, phones and paper."""

LIGHT = """
  --page: #f6f7f9; --surface: #ffffff; --ink: #1b2027; --muted: #5c6672; --rule: #dfe3e8; --bad: #c22f2b;
  --series0: #2463c4; --series1: #c4620a; --series2: #128066; --series3: #a23a94; --series4: #7c6a07;
  --series5: #4f5b9e;
"""
DARK = """
  --page: #12151a; --surface: #1a1f26; --ink: #e7eaee; --muted: #9aa5b1; --rule: #323a44; --bad: #ff7a72;
  --series0: #74a9ff; --series1: #f2a557; --series2: #50c9a5; --series3: #e08fd5; --series4: #d0bd54;
  --series5: #a3b0f5;
"""
SHEET = f"""
:root {{ color-scheme: light dark; {LIGHT}
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace; }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
""" + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 var(--sans);
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
header, nav, main, footer { max-width: 1184px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 6px; font-weight: 650; }
h2 { font-size: 20px; line-height: 1.3; letter-spacing: -0.005em; margin: 44px 0 14px; font-weight: 650;
  scroll-margin-top: 12px; }
h3 { font-size: 15px; margin: 0 0 4px; font-weight: 600; }
p { margin: 0 0 12px; max-width: 72ch; }
a { color: var(--series0); text-decoration: none; }
a:hover { text-decoration: underline; }
header p, footer, .note, figcaption { color: var(--muted); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 18px 0 0; padding: 0;
  font-size: 14px; }
.cards { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; margin: 0 0 16px; }
.card { background: var(--surface); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px;
  display: flex; flex-direction: column; }
.card dt { color: var(--muted); font-size: 13px; }
.card dd { margin: 0; }
.card dd.value { font-size: 24px; line-height: 1.3; font-weight: 620; letter-spacing: -0.01em; }
.card dd.more { color: var(--muted); font-size: 13px; line-height: 1.4; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.full { grid-column: 1 / -1; }
figure, .panel { background: var(--surface); border: 1px solid var(--rule); border-radius: 8px; margin: 0;
  padding: 16px 20px; min-width: 0; }
.panel { margin-bottom: 16px; }
.grid > .panel { margin-bottom: 0; }
figcaption { font-size: 13.5px; line-height: 1.5; margin-top: 8px; max-width: 100ch; }
.drawing svg { display: block; width: 100%; height: auto; overflow: visible; }
.drawing svg * { stroke-linejoin: round; stroke-linecap: butt; }
.drawing svg text { font-family: var(--sans) !important; }
.drawing.narrow { display: none; }
.keys { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0 0 6px; padding: 0; font-size: 13px;
  color: var(--muted); }
.keys li { display: flex; align-items: center; gap: 7px; min-width: 0; }
.keys svg { flex: none; fill: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 50%; font-size: 13.5px; line-height: 1.4; overflow-wrap: normal; }
td code { overflow-wrap: anywhere; }
.grid + .note { margin-top: 14px; }
caption { text-align: left; color: var(--muted); padding: 0 0 6px; }
th, td { padding: 6px 28px 6px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
thead .number { white-space: normal; }
details { margin-top: 12px; font-size: 14px; }
.panel > details:first-child { margin-top: 0; }
summary { cursor: pointer; color: var(--muted); width: fit-content; }
summary:hover { color: var(--ink); }
details[open] > summary { margin-bottom: 10px; }
:focus-visible { outline: 2px solid var(--series0); outline-offset: 2px; border-radius: 2px; }
pre, code { font-family: var(--mono); font-size: 12.5px; }
pre { margin: 0; line-height: 1.5; white-space: pre-wrap; }
.config { max-height: 560px; overflow: auto; }
.told { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 6px 20px; margin: 0; font-size: 14px; }
.told dt { color: var(--muted); }
.told dd { margin: 0; }
.sample { margin: 0 0 16px; }
.sample:last-child { margin-bottom: 0; }
.sample h4 { margin: 0 0 2px; font-size: 13px; font-weight: 500; color: var(--muted); }
.sample p { white-space: pre-wrap; margin: 0; max-width: 86ch; }
.prompt { color: var(--muted); }
footer { padding-top: 36px; padding-bottom: 48px; font-size: 13px; }
@media (max-width: 900px) {
  .grid { grid-template-columns: minmax(0, 1fr); }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media (max-width: 560px) {
  header, nav, main, footer { padding-left: 12px; padding-right: 12px; }
  header { padding-top: 24px; }
  h1 { font-size: 24px; }
  .cards { gap: 8px; }
  .card { padding: 10px 12px; }
  .card dd.value { font-size: 20px; }
  figure, .panel { padding: 12px 10px; }
  .drawing.wide { display: none; }
  .drawing.narrow { display: block; }
  .told { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .told dd { margin-bottom: 10px; }
}
@media print {
  :root { color-scheme: light; LIGHT --page: #ffffff; }
  body { font-size: 11pt; }
  nav, details:not([open]) { display: none; }
  figure, .card, .panel { break-inside: avoid; }
  h2 { break-after: avoid; }
  .config { max-height: none; }
}
""".replace("LIGHT", LIGHT)
