import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from imagen.data import shapes
from imagen.data.shape_check import check, find
from imagen.data.shapes import PAIRS, Scene, Thing, caption, draw, parse, scene

SCENES = 500
RED, BLUE = Thing("small", "red", "circle"), Thing("large", "blue", "square")


def jpeg(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "jpeg", quality=80)
    return Image.open(io.BytesIO(out.getvalue()))


def noisy(image: Image.Image) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 12, (*image.size[::-1], 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("size_px", [64, 96])
@pytest.mark.parametrize(
    "spoilt", [lambda image: image, jpeg, noisy], ids=["clean", "jpeg", "noise"]
)
def test_the_checker_finds_what_was_drawn(spoilt, size_px):
    wrong, scenes = [], SCENES if size_px == 64 else 100
    for i in range(scenes):
        said = scene(3, i)
        found = check(spoilt(draw(said, 3, i, size_px)), said)
        if not (found.all_right and found.colour and found.shape and found.size):
            wrong.append((i, said, found))
    assert len(wrong) <= 0.01 * scenes, wrong[:3]


def test_a_caption_says_its_scene_in_every_phrasing():
    said = {}
    for i in range(SCENES):
        for way in range(shapes.PHRASINGS):
            text = caption(scene(1, i), way)
            assert parse(text) == scene(1, i), text
            said[text] = scene(1, i)
    assert len(said) > 3 * SCENES  # several phrasings each


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a small red circle", Scene((RED,))),
        ("A Small RED Circle.", Scene((RED,))),
        ("three small red circles", Scene((RED,) * 3)),
        ("a picture of 2 large green crosses", Scene((Thing("large", "green", "cross"),) * 2)),
        ("a small red circle left of a large blue square", Scene((RED, BLUE), "left of")),
        ("a large blue square right of a small red circle", Scene((RED, BLUE), "left of")),
        ("a large blue square below a small red circle", Scene((RED, BLUE), "above")),
        ("a small red circle and a large blue square", Scene((RED, BLUE))),
    ],
)
def test_captions_are_understood(text, said):
    assert parse(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a handwritten seven",
        "a red circle",
        "a small red circle left of a small red circle above a small red circle",
        "a small red circle left of nothing",
        "two small red circles and a large blue square",
        "a small mauve circle",
    ],
)
def test_other_captions_are_refused(text):
    with pytest.raises(ValueError, match="no caption of shapes"):
        parse(text)


def places(*where: tuple[Thing, float, float]) -> Image.Image:
    """Draw things at places of one's own."""
    from PIL import ImageDraw

    image = Image.new("RGB", (256, 256))
    for thing, x, y in where:
        radius = 256 * sum(shapes.RADII[thing.size]) / 2
        shapes.outline(
            ImageDraw.Draw(image),
            thing.shape,
            (256 * x, 256 * y),
            (radius, radius),
            shapes.COLOURS[thing.colour],
        )
    return image.reduce(4)


SAID = Scene((RED, BLUE), "left of")
SWAPPED = (Thing("small", "blue", "circle"), Thing("large", "red", "square"))


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        ([(RED, 0.2, 0.5), (BLUE, 0.7, 0.5)], set()),
        ([(RED, 0.8, 0.5), (BLUE, 0.3, 0.5)], {"relation"}),
        ([(RED, 0.5, 0.15), (BLUE, 0.5, 0.7)], {"relation"}),
        ([(SWAPPED[0], 0.2, 0.5), (SWAPPED[1], 0.7, 0.5)], {"binding", "relation"}),
        ([(Thing("small", "green", "circle"), 0.2, 0.5), (BLUE, 0.7, 0.5)], {"colour", "binding"}),
        ([(Thing("small", "red", "diamond"), 0.2, 0.5), (BLUE, 0.7, 0.5)], {"shape", "binding"}),
        ([(Thing("large", "red", "circle"), 0.25, 0.5), (BLUE, 0.75, 0.5)], {"size", "binding"}),
        (
            [(RED, 0.2, 0.2), (BLUE, 0.7, 0.5), (RED, 0.2, 0.8)],
            {"count", "colour", "shape", "size", "binding"},
        ),
        ([(RED, 0.2, 0.5)], {"count", "colour", "shape", "size", "binding", "relation"}),
        ([], {"count", "colour", "shape", "size", "binding", "relation"}),
    ],
)
def test_what_is_wrong_in_a_picture_is_told_attribute_by_attribute(drawn, wrong):
    found = check(places(*drawn), SAID)
    names = ("count", "colour", "shape", "size", "binding", "relation")
    assert {name for name in names if getattr(found, name) is False} == wrong
    assert found.all_right is (not wrong)


def test_every_thing_is_told_from_every_other():
    things = [Thing(s, *pair) for s in shapes.RADII for pair in PAIRS]
    for thing in things:
        (found,) = find(places((thing, 0.5, 0.5)))
        assert found.thing == thing


def test_a_picture_of_noise_shows_no_scene():
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    assert not check(pixels, SAID).all_right


def test_pairs_that_are_held_out_are_never_drawn_and_all_others_are():
    held, shown = shapes.heldout_pairs(0.1), shapes.training_pairs(0.1)
    assert len(held) == 4
    assert set(held) | set(shown) == set(PAIRS)
    assert len(set(PAIRS)) == len(shapes.COLOURS) * len(shapes.SHAPES) == 40
    drawn = {(t.colour, t.shape) for i in range(SCENES) for t in scene(0, i, shown).things}
    assert drawn == set(shown)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_every_colour_and_every_shape_is_shown_whatever_is_held_out(share):
    for names in zip(*shapes.training_pairs(share), strict=True):
        counts = Counter(names)
        assert len(counts) in (len(shapes.COLOURS), len(shapes.SHAPES))
        assert max(counts.values()) - min(counts.values()) <= 2


def test_held_out_pairs_can_be_drawn_alone():
    held = shapes.heldout_pairs(0.1)
    assert {(t.colour, t.shape) for i in range(50) for t in scene(0, i, held).things} == set(held)


def test_all_kinds_of_scene_come():
    scenes = [scene(0, i) for i in range(SCENES)]
    relations = Counter(said.relation for said in scenes)
    assert relations.keys() == {None, "left of", "above"}
    assert {len(said.things) for said in scenes} == {1, 2, 3, 4}


def test_a_scene_depends_on_its_seed_and_number_alone():
    before = [scene(5, i) for i in (9, 2)]
    assert [scene(5, i) for i in (2, 9)] == before[::-1]
    assert scene(6, 9) != before[0]
    first, again = (draw(before[0], 5, 9, 64) for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_things_stay_inside_and_apart():
    for i in range(SCENES):
        said = scene(2, i)
        at = shapes.layout(said, 2, i)
        for place in at:
            assert place.radius <= min(place.x, place.y, 1 - place.x, 1 - place.y)
        for n, a in enumerate(at):
            for b in at[n + 1 :]:
                gap = max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius
                assert gap > 0.035


@pytest.mark.parametrize("size_px", [32, 64, 128])
def test_pictures_have_the_size_that_was_asked_for(size_px):
    image = draw(scene(0, 0), 0, 0, size_px)
    assert (image.mode, image.size) == ("RGB", (size_px, size_px))


def test_edges_are_antialiased():
    levels = np.unique(np.asarray(places((Thing("large", "white", "circle"), 0.5, 0.5))))
    assert len(levels) > 8
