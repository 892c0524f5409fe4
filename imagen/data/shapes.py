"""Generated scenes of coloured shapes with compositional captions, and what their captions say.

A scene is one thing, two things (side by side, or one above the other), or two to four of one
thing. It is drawn on black, so that colour and outline can be measured again (shape_check.py). Some
(colour, shape) pairs can be held out: a model that draws them has composed what it saw apart.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (32, 64, 255),
    "yellow": (255, 255, 0),
    "purple": (170, 0, 255),
    "cyan": (0, 255, 255),
    "orange": (255, 128, 0),
    "white": (255, 255, 255),
}
OUTLINES = {
    "circle": (),
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 1), (-1, 1)),
    "diamond": ((0, -1), (1, 0), (0, 1), (-1, 0)),
    "cross": tuple(
        (x / 3, y / 3)
        for x, y in (
            *((-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1)),
            *((1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)),
        )
    ),
}
"""Shape -> corners in a square of [-1, 1], y down; a circle has none."""
SHAPES = tuple(OUTLINES)
RADII = {"small": (0.11, 0.14), "large": (0.19, 0.22)}
"""Size -> half of a thing's side, as a share of the picture's."""
RELATIONS = {"left of": "right of", "above": "below"}
"""Relation -> the same said from the other thing."""
NUMBERS = {2: "two", 3: "three", 4: "four"}
PAIRS = tuple((tuple(COLOURS)[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i in range(40))
"""All (colour, shape) pairs; any few in a row differ in both, because 8 and 5 are coprime."""

_ONE = ("a {a}", "one {a}", "a picture of a {a}", "there is a {a}")
_MANY = ("{n} {a}", "{n} {a} on black", "a picture of {n} {a}", "there are {n} {a}")
_TWO = ("a {a} and a {b}", "a {a} with a {b}", "a picture of a {a} and a {b}")
_RELATED = ("a {a} {r} a {b}", "a {b} {i} a {a}", "there is a {a} {r} a {b}", "one {b} {i} one {a}")
PHRASINGS = 12
"""A multiple of the number of ways to say each kind of scene."""
_FINER = 4
_GAP = 0.04


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption says: the things, and how the first stands to the second."""

    things: tuple[Thing, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        assert 1 <= len(self.things) <= 4, "a scene has one to four things"
        assert self.relation is None or self.relation in RELATIONS, "the first thing comes first"


def heldout_pairs(share: float) -> tuple[tuple[str, str], ...]:
    """Return the (colour, shape) pairs that training does not show."""
    return PAIRS[: round(share * len(PAIRS))]


def training_pairs(share: float) -> tuple[tuple[str, str], ...]:
    """Return the (colour, shape) pairs that training shows."""
    return PAIRS[round(share * len(PAIRS)) :]


class _Draws:
    """Numbers that depend on (seed, purpose, index) alone: SHA-256, which no library changes."""

    def __init__(self, seed: int, purpose: str, index: int) -> None:
        self._name, self._count = f"shapes {seed} {purpose} {index}", 0

    def below(self, bound: int) -> int:
        self._count += 1
        hashed = hashlib.sha256(f"{self._name} {self._count}".encode()).digest()
        return int.from_bytes(hashed[:8], "big") % bound

    def within(self, low: float, high: float) -> float:
        return low + (high - low) * self.below(1 << 32) / (1 << 32)


def scene(seed: int, index: int, pairs: Sequence[tuple[str, str]] = PAIRS) -> Scene:
    """Return scene `index`, whose things have the given (colour, shape) pairs alone."""
    draws = _Draws(seed, "scene", index)

    def thing() -> Thing:
        return Thing(tuple(RADII)[draws.below(len(RADII))], *pairs[draws.below(len(pairs))])

    kind, first = draws.below(8), thing()
    if kind < 2:
        return Scene((first,))
    if kind < 4:
        return Scene((first,) * (2 + draws.below(3)))
    second = thing()
    while second == first:  # `a red circle and a red circle` are two of one thing
        second = thing()
    return Scene((first, second), (None, None, "left of", "above")[draws.below(4)])


def phrasing(seed: int, index: int) -> int:
    """Return how scene `index` is said."""
    return _Draws(seed, "phrasing", index).below(PHRASINGS)


def _ways(said: Scene) -> tuple[str, ...]:
    if len(said.things) == 1:
        return _ONE
    if said.things[0] == said.things[-1]:
        return _MANY
    return _TWO if said.relation is None else _RELATED


def caption(said: Scene, way: int) -> str:
    """Return how phrasing `way` says a scene."""
    ways, first = _ways(said), said.things[0]
    number = NUMBERS.get(len(said.things), "")
    return ways[way % len(ways)].format(
        n=number if way % 2 else len(said.things),
        a=_plural(first) if ways is _MANY else first,
        b=said.things[-1],
        r=said.relation,
        i=RELATIONS.get(said.relation or ""),
    )


def _plural(thing: Thing) -> str:
    return f"{thing}es" if thing.shape == "cross" else f"{thing}s"


_THING = re.compile(
    rf"\b({'|'.join(RADII)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:s|es)?\b", re.IGNORECASE
)
_COUNT = {word: n for n, words in NUMBERS.items() for word in (words, str(n))}
_SAID = {**{r: (r, False) for r in RELATIONS}, **{i: (r, True) for r, i in RELATIONS.items()}}


def parse(text: str) -> Scene:
    """Return the scene that a caption says. Raises ValueError when it is none of ours."""
    things = tuple(Thing(*(word.lower() for word in found)) for found in _THING.findall(text))
    relations = [said for said in _SAID if f" {said} " in text.lower()]
    counts = [_COUNT[word] for word in text.lower().split() if word in _COUNT]
    if len(things) == 1 and len(counts) <= 1 and not relations:
        return Scene(things * (counts[0] if counts else 1))
    if len(things) != 2 or counts or len(relations) > 1:
        raise ValueError(f"no caption of shapes: {text!r}")
    if not relations:
        return Scene(things)
    relation, turned = _SAID[relations[0]]
    return Scene(things[::-1] if turned else things, relation)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thing is, in shares of the picture's side."""

    x: float
    y: float
    radius: float


def layout(said: Scene, seed: int, index: int) -> list[Place]:
    """Return places that fit what a scene says: inside, apart, in the right order."""
    draws = _Draws(seed, "layout", index)
    radii = [draws.within(*RADII[thing.size]) for thing in said.things]
    if len(radii) == 1:
        room = radii[0] + _GAP
        return [Place(draws.within(room, 1 - room), draws.within(room, 1 - room), radii[0])]
    if said.things[0] == said.things[-1]:
        return _in_cells(radii, draws)
    return _side_by_side(radii, said.relation or ("left of", "above")[draws.below(2)], draws)


def _in_cells(radii: list[float], draws: _Draws) -> list[Place]:
    """Put each thing into a quarter of its own."""
    cells = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)]
    places = []
    for radius in radii:
        left, top = cells.pop(draws.below(len(cells)))
        room = radius + _GAP / 2
        places.append(
            Place(
                left + draws.within(room, 0.5 - room), top + draws.within(room, 0.5 - room), radius
            )
        )
    return places


def _side_by_side(radii: list[float], relation: str, draws: _Draws) -> list[Place]:
    """Put the first thing before the second, along x or y, further apart than across."""
    a, b = radii
    apart = a + b + _GAP
    first = draws.within(a + _GAP / 2, 1 - apart - b - _GAP / 2)
    second = draws.within(first + apart, 1 - b - _GAP / 2)
    across_a = draws.within(a + _GAP / 2, 1 - a - _GAP / 2)
    most = (second - first) / 2
    low, high = max(b + _GAP / 2, across_a - most), min(1 - b - _GAP / 2, across_a + most)
    across_b = draws.within(min(low, high), max(low, high))
    if relation == "left of":
        return [Place(first, across_a, a), Place(second, across_b, b)]
    return [Place(across_a, first, a), Place(across_b, second, b)]


def draw(said: Scene, seed: int, index: int, size_px: int) -> Image.Image:
    """Return the antialiased RGB picture of scene `index`."""
    side = size_px * _FINER
    image = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(image)
    for thing, place in zip(said.things, layout(said, seed, index), strict=True):
        outline(
            pen,
            thing.shape,
            (place.x * side, place.y * side),
            2 * (place.radius * side,),
            COLOURS[thing.colour],
        )
    return image.reduce(_FINER)


def outline(
    pen: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radii: tuple[float, ...],
    colour: tuple[int, ...] | int,
) -> None:
    """Fill one shape; `radii` along x and y."""
    (x, y), (rx, ry) = centre, radii
    if shape == "circle":
        pen.ellipse((x - rx, y - ry, x + rx - 1, y + ry - 1), fill=colour)
    else:
        corners = [(x + cx * rx - 0.5, y + cy * ry - 0.5) for cx, cy in OUTLINES[shape]]
        pen.polygon(corners, fill=colour)
