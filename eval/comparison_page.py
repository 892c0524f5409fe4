"""compare.html: two evaluations side by side, one file that needs nothing else."""

from html import escape

from eval.compare import Comparison, Pictures, Row, cells, readable_pairs
from eval.figures import headlines
from eval.history import Evaluation
from eval.page import folded, image, paragraph, section, table, tile, whole
from eval.report.images import smallest, thumbnail
from eval.report.samples import GRID, told
from imagen import picture

GRID_PX = 900


def page(found: Comparison) -> str:
    """Return the page."""
    title = f"{_name(found.a)} against {_name(found.b)}"
    lead = f"A: {found.a.folder}; B: {found.b.folder}"
    sections = [_tiles(found), _figures(found), _pictures(found), _grids(found), _settings(found)]
    return whole(title, lead, sections)


def _name(one: Evaluation) -> str:
    return f"{one.metrics.get('name', 'evaluation')}, {one.at:,} images"


def _tiles(found: Comparison) -> str:
    rows = {row.key: row for row in found.rows}
    keys = headlines(rows)[:6]
    tiles = []
    for key in keys:
        row = rows[key]
        if row.difference is None:
            continue
        title, first, second, change, span, _, verdict = cells(row)
        improved = row.how.improved(row.difference.value)
        sure = row.difference.by_chance is False and improved is not None
        kind = ("good" if improved else "bad") if sure else ""
        spread = f"{change} ({span})" if span else change
        tiles.append(tile(title, f"{first} \u2192 {second}", (spread, ""), (verdict, kind)))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _figures(found: Comparison) -> str:
    rows = [_cells(row) for row in found.rows]
    note = (
        f"{len(found.pairs):,} images of both have the same prompt and seed. Where a number of "
        "pairs is given, the difference is of these pairs (Student's t; McNemar's exact test for "
        "shares); otherwise it follows from the two intervals as if they were independent. Of 20 "
        "equal figures, one is expected to seem different."
    )
    head = ["figure", "A", "B", "B \u2212 A", ""]
    return section("Figures", paragraph(note), table(head, rows, "figures of both"))


def _cells(row: Row) -> list[str]:
    """Return the cells of one number, what is less important in small letters below."""
    title, first, second, change, span, pairs, verdict = cells(row)
    ours, theirs = (row.how.interval(interval) for interval in row.intervals)
    below = ("", ours, theirs, span, f"of {pairs} pairs" if pairs else "")
    return [
        _above(*both) for both in zip((title, first, second, change, verdict), below, strict=True)
    ]


def _above(text: str, small: str) -> str:
    more = f'<br><small class="quiet">{escape(small)}</small>' if small else ""
    return escape(text) + more


def _pictures(found: Comparison) -> str:
    pairs, why_not = readable_pairs(found)
    if not pairs:
        return section("Pictures", paragraph(why_not))
    ours, theirs = Pictures(found.a), Pictures(found.b)
    figures = []
    for apart, i, j in pairs:
        row = found.a.images[i]
        said = f"{row['prompt'] or '(no text)'}, seed {row['seed']}: {apart:.3f}"
        said += _verdicts(row, found.b.images[j])
        shown = [thumbnail(picture.exact(image)) for image in (ours(i), theirs(j))]
        images = "".join(
            image(data, f"{name}: {row['prompt']}", "thumbnail pixels")
            for data, name in zip(shown, "AB", strict=True)
        )
        figures.append(f"<figure>{images}<figcaption>{escape(said)}</figcaption></figure>")
    note = (
        f"Same prompt, same seed, A left and B right; the {len(pairs)} pairs that differ most "
        "(root mean square of pixels) first."
    )
    return section("Pictures", paragraph(note), f'<div class="pairs">{"".join(figures)}</div>')


def _verdicts(first: dict, second: dict) -> str:
    if "right" not in first or "right" not in second:
        return ""
    words = {True: "right", False: "wrong"}
    both = [words[bool(row["right"])] for row in (first, second)]
    return f"; both {both[0]}" if both[0] == both[1] else f"; A {both[0]}, B {both[1]}"


def _grids(found: Comparison) -> str:
    parts = []
    for name, one in (("A", found.a), ("B", found.b)):
        if one.has(GRID):
            data = smallest(one.file(GRID), GRID_PX)
            shown = image(data, f"grid of samples of {name}", "grid")
            parts.append(folded(f"{name}: {told(one)}", f'<div class="wide scrolls">{shown}</div>'))
    return section("Grids", *parts)


def _settings(found: Comparison) -> str:
    """Return what was set differently."""
    a, b = found.a.settings, found.b.settings
    rows = [
        [escape(key), escape(str(a[key])), escape(str(b[key]))] for key in a if a[key] != b[key]
    ]
    for key in ("cascade", "data", "environment"):
        one, other = (str(e.metrics.get(key)) for e in (found.a, found.b))
        if one != other:
            rows.append([escape(key), escape(one), escape(other)])
    if not rows:
        return section("What was set differently", paragraph("Nothing: they are of one cascade."))
    return section("What was set differently", table(["", "A", "B"], rows, "settings"))
