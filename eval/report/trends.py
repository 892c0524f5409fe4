"""Curves over images seen: training, validation, and what evaluations found."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eval.charts import Axes, Series, chart, short
from eval.figures import Figure, figure, figures, is_figure, number, told
from eval.history import Evaluation, History, Run
from eval.page import figure as titled
from eval.page import section

SEEN = "images seen"
Z95 = 1.96
CHARTS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Digit accuracy by member", (r"members\.\w+",), True),
    ("What the text is worth", (r"text_use\.(right_prompt|shuffled_prompt|chance)",), True),
    ("Scenes drawn all right", (r"shapes\.((heldout|seen)\.)?all_right",), True),
    (
        "What is right about the scenes",
        (r"shapes\.(count|colour|shape|size|binding|relation)",),
        True,
    ),
    ("Scenes and their text", (r"shapes\.text_use\.(right_prompt|shuffled_prompt)",), True),
    ("Fr\u00e9chet distance to real images", (r"distribution\.[^.]+\.(heldout\.)?fd",), False),
    ("KID", (r"distribution\.[^.]+\.(heldout\.)?kid",), False),
    ("Precision and recall", (r"distribution\.[^.]+\.(precision|recall)",), True),
    ("CLIP score", (r"clip\.(score|shuffled)",), False),
    ("Difference to the low-res input", (r"fidelity\..+\.consistency",), False),
    ("Sharpness against bicubic", (r"fidelity\..+\.sharpness_gain",), False),
    ("Colour drift", (r"fidelity\..+\.colour_drift",), False),
    ("Nearer to training than real images are", (r"memorisation\.nearer_than_heldout",), True),
)
"""Title, which figures, whether they are shares."""
WEIGHTS = (("ema", "averaged weights"), ("raw", "raw weights"))
CAPTIONS = (("without_captions", "without captions"), ("shuffled_captions", "captions shuffled"))


def evaluations(found: History) -> str:
    """Return the section of what evaluations found at each checkpoint."""
    series = _series(found.comparable)
    drawn = []
    for title, patterns, percent in CHARTS:
        keys = [key for key in series if any(re.fullmatch(p, key) for p in patterns)]
        if keys:
            axes = Axes(x=SEEN, y=title, percent=percent)
            drawn.append(titled(title, chart([series[key] for key in keys], axes), _better(keys)))
    return section("Progress", _charts(drawn))


def _charts(drawn: Iterable[str]) -> str:
    inner = "".join(drawn)
    return f'<div class="charts">{inner}</div>' if inner else ""


def _better(keys: Sequence[str]) -> str:
    ways = {told(key).better for key in keys} - {None}
    way = f"{ways.pop()} is better; " if len(ways) == 1 else ""
    return f"{way}bands: 95 %"


def _series(comparable: Sequence[Evaluation]) -> dict[str, Series]:
    """Return a curve of each figure that at least two evaluations have."""
    points: dict[str, list[tuple[float, Figure]]] = {}
    for one in comparable:
        for key, value in {**_plain(one.metrics), **figures(one.metrics)}.items():
            points.setdefault(key, []).append((float(one.at), value))
    whole = {key: [(x, f) for x, f in line if f.value is not None] for key, line in points.items()}
    return {key: _curve(told(key).title, line) for key, line in whole.items() if len(line) > 1}


def _plain(metrics: dict[str, Any]) -> dict[str, Figure]:
    """Return numbers of `text_use` that stand there without an interval."""
    found = metrics.get("text_use", {})
    plain = {key: value for key, value in found.items() if isinstance(value, float)}
    return {f"text_use.{key}": Figure(value, None) for key, value in plain.items()}


def _curve(name: str, line: Sequence[tuple[float, Figure]]) -> Series:
    points = [(x, f.value) for x, f in line if f.value is not None]
    band = [(x, *f.interval) for x, f in line if f.interval is not None]
    return Series(name=name, points=points, band=band)


def training(found: History) -> str:
    """Return the section of losses: while training, and on held-out images."""
    drawn = []
    for run in found.runs:
        drawn += [_training_loss(run), _validation(run), _by_noise(run)]
        drawn += [_level_curves(run)]
    return section("Losses", _charts(one for one in drawn if one))


def _training_loss(run: Run) -> str:
    # a resumed run logs some images again: the last word counts
    losses = {
        e["images_seen"]: e["loss"] for e in run.events if e.get("loss") is not None
    }  # null: not finite, or no image of the interval could be read
    title = f"{run.member}: training loss"
    if not losses:
        return titled(title, "", "It has no log of losses.")
    points = sorted((float(x), float(y)) for x, y in losses.items())
    curve = Series(name="training loss", points=points, marks=False)
    note = f"{number(points[-1][1])} at last"
    return titled(title, chart([curve], Axes(x=SEEN, y="loss")), note)


def _validation(run: Run) -> str:
    series = []
    for weights, name in WEIGHTS:
        series.append(_of_results(run, name, lambda r, w=weights: r.get(w, {}).get("loss")))
    for key, name in CAPTIONS:
        series.append(_of_results(run, name, lambda r, k=key: r.get("ema", {}).get(k)))
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    axes = Axes(x=SEEN, y="loss", from_zero=False)
    note = "same held-out images, same noise at every checkpoint; bands: 95 %"
    return titled(f"{run.member}: validation loss", chart(drawn, axes), note)


def _trained(run: Run) -> list[dict[str, Any]]:
    """Return the results of trained weights: that of random ones would dwarf all differences."""
    return [result for result in run.validations if result["images_seen"]]


def _of_results(run: Run, name: str, part: Callable[[dict[str, Any]], Any]) -> Series:
    line = [(float(r["images_seen"]), _as_figure(part(r))) for r in _trained(run)]
    return _curve(name, [(x, f) for x, f in line if f is not None and f.value is not None])


def _as_figure(body: Any) -> Figure | None:
    """Return a mean loss with its standard error as a figure."""
    if is_figure(body):
        return figure(body)
    if not isinstance(body, dict) or body.get("mean") is None:
        return None
    mean, sem = body["mean"], body.get("sem")
    return Figure(mean, None if sem is None else (max(0.0, mean - Z95 * sem), mean + Z95 * sem))


def _by_noise(run: Run) -> str:
    """Return the loss by noise level of the first, a middle and the newest checkpoint."""
    results = [result for result in _trained(run) if result.get("ema", {}).get("bins")]
    if not results:
        return ""
    picked = {0, len(results) // 2, len(results) - 1}
    series = []
    for i in sorted(picked):
        line = [(_centre(b["logsnr"]), _as_figure(b)) for b in results[i]["ema"]["bins"]]
        whole = [(x, f) for x, f in line if f is not None]
        series.append(_curve(f"{results[i]['images_seen']:,} images", whole))
    axes = Axes(x="log-SNR (left: mostly noise)", y="loss", x_from_zero=False)
    return titled(f"{run.member}: validation loss by noise level", chart(series, axes))


def _centre(border: Sequence[float | None]) -> float:
    """Return the middle of a bin; the outermost are open and stand as wide as the others."""
    low, high = border
    if low is None or high is None:
        return (low if low is not None else 0.0) + 1.25 if high is None else high - 1.25
    return (low + high) / 2


def _level_curves(run: Run) -> str:
    """Return the loss at four levels of noise over images seen."""
    levels: dict[tuple[Any, Any], list[tuple[float, Figure]]] = {}
    for result in _trained(run):
        for part in result.get("ema", {}).get("bins", []):
            found = _as_figure(part)
            if found is not None:
                key = (part["logsnr"][0], part["logsnr"][1])
                levels.setdefault(key, []).append((float(result["images_seen"]), found))
    lines = {key: line for key, line in levels.items() if len(line) > 1}
    if not lines:
        return ""
    keys = sorted(lines, key=_centre)
    picked = sorted({round(i * (len(keys) - 1) / 3) for i in range(4)})
    series = [
        Series(name=f"log-SNR {_span(keys[i])}", points=_curve("", lines[keys[i]]).points)
        for i in picked
    ]
    axes = Axes(x=SEEN, y="loss")
    return titled(f"{run.member}: validation loss at some levels of noise", chart(series, axes))


def _span(border: tuple[float | None, float | None]) -> str:
    low, high = border
    if low is None:
        return f"below {short(high or 0.0)}"
    return f"above {short(low)}" if high is None else f"{short(low)} to {short(high)}"
