"""The head of the page: what a person wants to know first, and how it has changed."""

from eval.differences import difference
from eval.figures import Figure, figures, headlines, told
from eval.history import Evaluation, History
from eval.page import tile

MOST_TILES = 8


def tiles(found: History) -> str:
    """Return the key figures of the newest evaluation with their change since the one before."""
    newest = found.newest
    assert newest is not None, "a page is of at least one evaluation"
    before = previous(found, newest)
    own = figures(newest.metrics)
    earlier = {} if before is None else figures(before.metrics)
    keys = [key for key in headlines(own) if own[key].value is not None][:MOST_TILES]
    html = [_tile(key, own[key], earlier.get(key), newest, before) for key in keys]
    seen = ", ".join(f"{name} {count:,}" for name, count in newest.images_seen.items())
    html.append(tile("Images seen in training", f"{newest.at:,}", (seen, "")))
    return f'<div class="tiles">{"".join(html)}</div>'


def previous(found: History, newest: Evaluation) -> Evaluation | None:
    """Return the evaluation before the newest one, of the same members and settings."""
    others = [e for e in found.comparable if e.members == newest.members and e.at < newest.at]
    return others[-1] if others else None


def _tile(
    key: str, now: Figure, then: Figure | None, newest: Evaluation, before: Evaluation | None
) -> str:
    how = told(key)
    notes = [(_uncertainty(key, now), "")]
    if then is not None and then.value is not None and before is not None:
        notes.append(_change(key, now, then, newest, before))
    return tile(how.title, how.text(now.value), *notes)


def _uncertainty(key: str, now: Figure) -> str:
    if now.interval is None:
        return "" if now.n is None else f"of {now.n:,}"
    on = "" if now.n is None else f", {now.n:,} images"
    return f"{told(key).interval(now.interval)} (95 %){on}"


def _change(
    key: str, now: Figure, then: Figure, newest: Evaluation, before: Evaluation
) -> tuple[str, str]:
    """Return how a figure has changed, in words, and whether that is good or bad."""
    how, found = told(key), difference(key, (before, then), (newest, now))
    if found is None:
        return "", ""
    since = f"since {before.at:,} images"
    if found.value == 0:
        return f"unchanged {since}", ""
    text = f"{how.change(found.value)} {since}"
    if found.by_chance is not False:
        return f"{text}, within chance", ""
    improved = how.improved(found.value)
    if improved is None:
        return text, ""
    word, kind = ("better", "good") if improved else ("worse", "bad")
    return f"{text}: {word}", kind
