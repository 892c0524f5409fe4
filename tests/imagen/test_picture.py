import io

import numpy as np
import pytest
from PIL import Image

from imagen import picture


def gradient(side, channels=1):
    rng = np.random.default_rng(side)
    return rng.integers(0, 256, (side, side, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_written_picture_has_exactly_the_given_pixels(channels):
    image = gradient(9, channels)
    read = np.asarray(Image.open(io.BytesIO(picture.png(picture.exact(image)))))
    assert np.array_equal(read.reshape(image.shape), image)


def test_enlarging_repeats_each_pixel_and_mixes_none():
    image = gradient(8)
    shown = np.asarray(picture.enlarge(image, 96))
    assert np.array_equal(shown, np.kron(image[:, :, 0], np.ones((12, 12), np.uint8)))


def test_images_of_different_members_are_shown_equally_large():
    rows = [[gradient(8), gradient(32)]]
    layout = picture._layout(
        rows,
        [[("x", picture.INK)]],
        ["base", "sr1"],
        picture.ImageFont.load_default(15),
        picture.GridStyle(),
    )
    assert layout.side == 96
    shown = np.asarray(picture.grid(rows, ["x"], ["base", "sr1"]))
    for x, image in zip(layout.xs, rows[0], strict=True):
        cell = shown[layout.top : layout.top + 96, x : x + 96, 0]
        assert np.array_equal(cell, np.asarray(picture.enlarge(image, 96)))


def test_a_cell_is_a_whole_multiple_of_the_widest_image():
    rows = [[gradient(40)]]
    shown = picture.grid(rows, [""], [""], picture.GridStyle(cell=96))
    assert shown.width >= 120
    assert np.asarray(shown).std() > 0


def test_labels_take_room_and_leave_ink():
    rows = [[gradient(8)], [gradient(16)]]
    bare = picture.grid(rows, ["", ""], [""])
    labelled = picture.grid(rows, ["a handwritten seven", "the digit 3"], ["sr1"])
    assert labelled.width > bare.width
    assert labelled.height > bare.height
    left = np.asarray(labelled)[:, : labelled.width - bare.width + picture.MARGIN]
    assert (left.min(axis=2) < 100).sum() > 100, "no dark letters where the labels are"


def test_long_labels_are_broken_into_lines_and_never_cover_an_image():
    label = "a very long prompt that goes on and on " * 6
    shown = picture.grid([[gradient(8)]], [label], ["sr1"])
    short = picture.grid([[gradient(8)]], ["x"], ["sr1"])
    assert shown.width < 600
    assert shown.height > short.height


@pytest.mark.parametrize("shape", [(32, 8, 1), (8, 32, 3)])
def test_labels_stand_at_the_middle_of_images_that_are_no_squares(shape):
    rows = [[np.full(shape, 250, np.uint8)]] * 2
    shown = np.asarray(picture.grid(rows, ["M", "M"], [""]).convert("L"))
    ink = np.flatnonzero((shown[:, : picture.MARGIN + 16] < 128).any(axis=1))
    frames = np.flatnonzero(shown[:, -picture.MARGIN - 10] < 230)
    middles = [
        (ink[0] + ink[ink < ink[0] + 20][-1]) / 2,
        (ink[-1] + ink[ink > ink[-1] - 20][0]) / 2,
    ]
    wanted = [(frames[0] + frames[1]) / 2, (frames[2] + frames[3]) / 2]
    assert np.abs(np.subtract(middles, wanted)).max() <= 4


def test_a_label_of_many_lines_stays_in_its_row():
    rows, labels = [[gradient(8)]] * 2, ["", "many words in one label " * 20]
    shown = np.asarray(picture.grid(rows, labels, [""]).convert("L"))
    ink = np.flatnonzero((shown[:, : picture.MARGIN + 100] < 128).any(axis=1))
    assert ink[0] > shown.shape[0] / 2


def test_what_follows_a_line_break_is_grey():
    shown = np.asarray(picture.grid([[gradient(8)]], ["\n" + "M" * 20], [""]))
    letters = shown[:, : 8 * 20]
    assert letters.min() >= min(picture.QUIET)
    assert (letters < 200).any()


def test_wide_column_labels_do_not_run_into_each_other():
    rows = [[gradient(8)] * 3]
    labels = ["a column label that is wide"] * 3
    font = picture.ImageFont.load_default(15)
    layout = picture._layout(rows, [[("", picture.INK)]], labels, font, picture.GridStyle())
    assert layout.xs[1] - layout.xs[0] >= font.getlength(labels[0])


def test_rows_may_be_shorter_than_the_header():
    shown = picture.grid([[gradient(8)] * 2, [gradient(8)]], ["a", "b"], ["1", "2"])
    assert shown.height > 200


def test_a_grid_with_a_label_too_few_is_refused():
    with pytest.raises(AssertionError, match="2 rows, 1 labels"):
        picture.grid([[gradient(8)], [gradient(8)]], ["a"], ["1"])


def test_float_images_are_refused():
    with pytest.raises(AssertionError, match="uint8, not float32"):
        picture.exact(np.zeros((4, 4, 1), np.float32))
