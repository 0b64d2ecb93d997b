"""How the report looks: dark text on white, system fonts, Chinese ones among them.

Source: ours.
"""

STYLE = """
:root { --text: #1f2937; --faint: #6b7280; --line: #e5e7eb; --soft: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--text); background: #fff; font: 15px/1.55 system-ui, "Segoe UI",
  Roboto, "Noto Sans", "Noto Sans CJK SC", "Noto Sans SC", "PingFang SC", "Microsoft YaHei",
  "WenQuanYi Micro Hei", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 24px; }
h2 { font-size: 18px; margin: 48px 0 12px; padding-bottom: 6px;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 15px; margin: 24px 0 8px; }
p { margin: 0 0 12px; max-width: 72ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; }
.card { background: var(--soft); border-radius: 8px; padding: 14px 16px; }
.card .name { font-size: 13px; color: var(--faint); }
.card .figure { font-size: 28px; font-weight: 650; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.card .what { font-size: 13px; color: var(--faint); line-height: 1.4; }
.charts { display: flex; flex-wrap: wrap; gap: 16px; }
.chart { width: 500px; max-width: 100%; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 16px; }
figure { margin: 0; }
.pair { border: 1px solid var(--line); border-radius: 8px; padding: 10px; }
.pair .pictures { display: flex; gap: 8px; margin-bottom: 6px; }
.pair .pictures img { width: calc(50% - 4px); border: 1px solid var(--line);
  image-rendering: pixelated; }
figcaption { font-size: 14px; line-height: 1.45; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--faint); font-size: 13px; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
td img { width: 72px; display: block; border: 1px solid var(--line); image-rendering: pixelated; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.total td { font-weight: 600; }
.cost code { font-size: 12px; overflow-wrap: anywhere; color: var(--faint); }
.right, .wrong { font-size: 13px; font-weight: 600; white-space: nowrap; }
.right { color: #047857; }
.wrong { color: #b91c1c; }
.right::before { content: "\\2713\\00a0"; }
.wrong::before { content: "\\2717\\00a0"; }
.faint { color: var(--faint); }
.wide img { width: 100%; image-rendering: pixelated; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: 16px; }
.samples img { width: 100%; border: 1px solid var(--line); }
pre { background: var(--soft); border-radius: 8px; padding: 12px 16px; overflow-x: auto; }
code { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media print { h2 { break-after: avoid; } .pair, tr, figure { break-inside: avoid; } }
"""
