"""The page as a whole: which sections, in which order."""

import re

from eval.history import History
from eval.page import whole
from eval.report import copying, head, origin, samples, sweeps, tables, trends


def page(found: History) -> str:
    """Return report.html of a project with at least one finished evaluation."""
    newest = found.newest
    assert newest is not None, "a page is of at least one evaluation"
    sections = [
        samples.samples(found),
        trends.evaluations(found),
        trends.training(found),
        sweeps.sweeps(newest),
        tables.fits_text(newest),
        copying.memorisation(newest),
        origin.failures(found),
        origin.damaged(found),
        origin.others(found),
        origin.origin(newest),
        origin.cost(found),
    ]
    rest = [tables.every(newest), origin.config(newest)]
    shown = [section for section in sections if section]
    lead = f"{_count(len(found.evaluations))}; the newest is of {samples.told(newest)}"
    top = [head.tiles(found), _contents(shown)]
    return whole(f"{found.config.name}: evaluation", lead, [*top, *shown, *rest])


def _count(evaluations: int) -> str:
    return f"{evaluations} evaluation{'s' if evaluations > 1 else ''}"


def _contents(shown: list[str]) -> str:
    """Return links to the sections."""
    heads = [re.match(r'<section id="([^"]+)"><h2>(.*?)</h2>', section) for section in shown]
    links = [f'<a href="#{match[1]}">{match[2]}</a>' for match in heads if match]
    return f'<nav aria-label="sections">{"".join(links)}</nav>'
