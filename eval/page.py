"""The look of report.html: one self-contained page for phone and desk, by day and by night."""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --ink: #1d1d1f; --quiet: #63636a;
  --rule: #dcdcd8; --fill: #2f6fab; --trough: #e9e9e5; --card: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --paper: #141416; --ink: #ececee; --quiet: #a2a2aa;
  --rule: #35353a; --fill: #6aaee8; --trough: #2a2a2e; --card: #1d1d20; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { font-size: 1.6rem; line-height: 1.25; letter-spacing: -.01em; margin: 0 0 1.2rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 44rem; margin: .5rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: .6rem;
  padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.3; font-weight: 650; }
.tile small { display: block; margin-top: .2rem; }
.tile small, figcaption, .quiet { color: var(--quiet); font-size: .82rem; line-height: 1.4; }
.wide { overflow-x: auto; margin: .8rem 0; }
img.grid { display: block; max-width: 100%; height: auto; border-radius: .5rem;
  border: 1px solid var(--rule); }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); font-size: .85rem; }
svg.bar { width: clamp(4rem, 18vw, 12rem); height: .75rem; display: block; }
.trough { fill: var(--trough); } .fill { fill: var(--fill); } .whisker { fill: var(--ink); }
svg.chart { width: 100%; max-width: 44rem; height: auto; display: block; }
svg.chart text { fill: var(--quiet); font-size: 13px; }
.rule { stroke: var(--rule); } .curve { fill: none; stroke: var(--fill); stroke-width: 2;
  stroke-linejoin: round; } .end { fill: var(--fill); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
img.thumbnail { width: 5rem; height: 5rem; image-rendering: pixelated; margin-right: .25rem;
  object-fit: contain;
  border: 1px solid var(--rule); border-radius: .25rem; }
details { margin-top: 2.6rem; } summary { cursor: pointer; font-weight: 600; font-size: 1.2rem; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: .5rem; padding: 1rem; font-size: .8rem; line-height: 1.45; }
code { font-size: .88em; }
@media (max-width: 40rem) { img.grid { max-width: 60rem; } }
@media print { body { max-width: none; } .tile, figure, tr { break-inside: avoid; } }
"""


def whole(title: str, sections: Sequence[str]) -> str:
    """Return a complete page. `sections` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def tile(name: str, value: str, note: str) -> str:
    """Return a key figure; all three are plain text."""
    return (
        f'<div class="tile"><span class="quiet">{escape(name)}</span>'
        f"<b>{escape(value)}</b><small>{escape(note)}</small></div>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; `head` is plain text and may be empty, cells are HTML."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'
