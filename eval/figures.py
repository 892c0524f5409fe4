"""The figures in metrics.json: where they are, what they are called, and which way is better.

A figure is a dict with `value` and `interval`, known by its dotted path. Points of sweeps are no
figures: they are of other settings.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its uncertainty."""

    value: float | None
    interval: tuple[float, float] | None
    """95 %."""
    n: int | None = None
    """What it was measured on: images, mostly."""


@dataclass(frozen=True, slots=True)
class Told:
    """How a figure is told to people."""

    title: str
    better: Better | None
    """None: neither, or it depends."""
    percent: bool = False

    def text(self, value: float | None) -> str:
        """Return a value as a person reads it."""
        if value is None:
            return "none"
        return f"{value:.1%}" if self.percent else number(value)

    def change(self, difference: float) -> str:
        """Return a difference of two values, with its sign."""
        sign, size = ("+" if difference >= 0 else "\u2212"), abs(difference)
        return f"{sign}{100 * size:.1f} points" if self.percent else sign + number(size)

    def span(self, interval: tuple[float, float] | None) -> str:
        """Return an interval of differences, "" for none."""
        if interval is None:
            return ""
        low, high = map(self.change, interval)
        return f"{low.removesuffix(' points')} to {high}"

    def interval(self, interval: tuple[float, float] | None) -> str:
        """Return an interval of values, or what stands for none."""
        return "" if interval is None else f"{self.text(interval[0])} to {self.text(interval[1])}"

    def improved(self, difference: float) -> bool | None:
        """Tell whether a difference is for the better; None where that cannot be said."""
        if self.better is None or difference == 0:
            return None
        return (difference > 0) == (self.better == "higher")


def number(value: float) -> str:
    """Return a number with three or four digits that say something."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size < 100 else f"{value:.1f}"


_SHAPES = r"shapes\.(?:(?P<split>heldout|seen)\.)?"
_TOLD: tuple[tuple[str, str, Better | None, bool], ...] = (
    (r"digit_accuracy", "Digit accuracy", "higher", True),
    (r"members\.(?P<a>\w+)", "Digit accuracy of {a}", "higher", True),
    (r"per_digit\.(?P<a>\w+)", "Accuracy on the digit {a}", "higher", True),
    (r"per_phrasing\.(?P<a>.+)", "Accuracy on \u201c{a}\u201d", "higher", True),
    (r"text_use\.right_prompt", "Accuracy with the right prompt", "higher", True),
    (r"text_use\.shuffled_prompt", "Accuracy with prompts shuffled", None, True),
    (r"text_use\.chance", "Accuracy by chance", None, True),
    (r"text_use\.gap", "Gain by the right prompt", "higher", True),
    (r"text_use\.share_of_possible_gain", "Share of the possible gain", "higher", True),
    (r"text_use\.gate_passed", "Images in which a digit is seen", "higher", True),
    (r"judge\.heldout_accuracy", "Judge's accuracy on real images", None, True),
    (r"judge\.heldout_gate_passed", "Real images that the judge is sure of", None, True),
    (_SHAPES + r"all_right", "Scenes drawn all right{split}", "higher", True),
    (_SHAPES + r"count", "Right number of objects{split}", "higher", True),
    (_SHAPES + r"colour", "Right colours{split}", "higher", True),
    (_SHAPES + r"shape", "Right shapes{split}", "higher", True),
    (_SHAPES + r"size", "Right sizes{split}", "higher", True),
    (_SHAPES + r"binding", "Colour, shape and size together{split}", "higher", True),
    (_SHAPES + r"relation", "Right places to each other{split}", "higher", True),
    (r"shapes\.text_use\.right_prompt", "Scenes right, right prompt", "higher", True),
    (r"shapes\.text_use\.shuffled_prompt", "Scenes right, prompts shuffled", None, True),
    (r"shapes\.text_use\.gap", "Gain by the right prompt", "higher", True),
    (r"shapes\.heldout_judge\.(?P<a>\w+)", "Real held-out images: {a}", None, True),
    (r"distribution\.inception\.fd", "FID", "lower", False),
    (r"distribution\.(?P<a>[^.]+)\.fd", "Fr\u00e9chet distance ({a})", "lower", False),
    (r"distribution\.(?P<a>[^.]+)\.kid", "KID ({a})", "lower", False),
    (r"distribution\.(?P<a>[^.]+)\.precision", "Precision ({a})", "higher", True),
    (r"distribution\.(?P<a>[^.]+)\.recall", "Recall ({a})", "higher", True),
    (r"distribution\.inception\.heldout\.fd", "FID of real held-out images", None, False),
    (r"distribution\.[^.]+\.heldout\.fd", "Fr\u00e9chet distance of real images", None, False),
    (r"distribution\.[^.]+\.heldout\.kid", "KID of real held-out images", None, False),
    (r"distribution\.[^.]+\.heldout\.(?P<a>\w+)", "Real held-out images: {a}", None, True),
    (r"clip\.score", "CLIP score", "higher", False),
    (r"clip\.shuffled", "CLIP score with prompts shuffled", None, False),
    (r"clip\.gap", "CLIP score gained by the right prompt", "higher", False),
    (r"fidelity\.(?P<a>\w+)\.consistency", "Difference to the low-res input ({a})", "lower", False),
    (r"fidelity\.(?P<a>\w+)\.colour_drift", "Colour drift ({a})", "lower", False),
    (r"fidelity\.(?P<a>\w+)\.psnr", "PSNR to the low-res input ({a}), dB", "higher", False),
    (r"fidelity\.(?P<a>\w+)\.sharpness_gain", "Sharpness against bicubic ({a})", None, False),
    (r"memorisation\.nearer_than_heldout", "Nearer to training than real images are", None, True),
    (r"losses\.(?P<a>\w+)\.loss", "Validation loss of {a}", "lower", False),
    (r"losses\.(?P<a>\w+)\.without_captions", "Loss of {a} without captions", None, False),
    (r"losses\.(?P<a>\w+)\.shuffled_captions", "Loss of {a}, captions shuffled", None, False),
    (r"losses\.(?P<a>\w+)\.caption_gap", "Loss that captions save {a}", "higher", False),
    (r"losses\.(?P<a>\w+)\.shuffle_gap", "Loss that the right captions save {a}", "higher", False),
)
_RULES = [
    (re.compile(pattern), Told(title, better, percent)) for pattern, title, better, percent in _TOLD
]
_SPLITS = {None: "", "heldout": ", new combinations", "seen": ", trained combinations"}
POINTS = {
    "accuracy": Told("Accuracy", "higher", True),
    "fd": Told("Fr\u00e9chet distance", "lower"),
    "kid": Told("KID", "lower"),
    "precision": Told("Precision", "higher", True),
    "recall": Told("Recall", "higher", True),
    "clip": Told("CLIP score", "higher"),
    "consistency": Told("Difference to the low-res input", "lower"),
    "colour_drift": Told("Colour drift", "lower"),
}
"""Figures of a sweep's points, by their short names."""
HEADLINES = (
    *("digit_accuracy", "shapes.all_right", "shapes.heldout.all_right", "distribution.*.fd"),
    *("clip.score", "distribution.*.kid", "distribution.*.precision", "distribution.*.recall"),
    *("text_use.gap", "shapes.text_use.gap", "clip.gap", "memorisation.nearer_than_heldout"),
)
"""What a person wants to know first, in order; `*` stands for one part."""


def figures(metrics: dict[str, Any]) -> dict[str, Figure]:
    """Return every figure of an evaluation by its dotted path."""
    return dict(_walk(metrics, ""))


def _walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, Figure]]:
    for key, value in node.items():
        if not isinstance(value, dict):
            continue
        here = f"{path}.{key}" if path else str(key)
        if is_figure(value):
            yield here, figure(value)
        else:
            yield from _walk(value, here)


def is_figure(value: Any) -> bool:
    """Tell whether a value of metrics.json is a figure."""
    return isinstance(value, dict) and "value" in value and "interval" in value


def figure(body: dict[str, Any]) -> Figure:
    """Return a figure as metrics.json has it."""
    interval = body["interval"]
    pair = None if interval is None else (float(interval[0]), float(interval[1]))
    return Figure(body["value"], pair, body.get("n"))


def told(key: str) -> Told:
    """Return how a figure is told; one that nobody knows goes by its path."""
    for pattern, how in _RULES:
        match = pattern.fullmatch(key)
        if match:
            names = match.groupdict()
            names["split"] = _SPLITS[names.get("split")]
            return replace(how, title=how.title.format(**names))
    return Told(key.replace("_", " ").replace(".", ": "), None)


def headlines(found: Iterable[str]) -> list[str]:
    """Return those keys of figures that come first, most telling first."""
    there = list(found)
    keys = []
    for wanted in HEADLINES:
        pattern = re.escape(wanted).replace(r"\*", r"[^.]+")
        keys += [key for key in there if re.fullmatch(pattern, key)]
    return keys


def jsonable(found: dict[str, Figure]) -> dict[str, dict[str, Any]]:
    """Return figures as a line of metrics.jsonl has them."""
    return {
        key: {"value": f.value, "interval": f.interval and list(f.interval), "n": f.n}
        for key, f in found.items()
    }
