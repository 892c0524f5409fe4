import numpy as np
from PIL import Image

from runtime.terminal import UPPER_HALF, show


def test_each_character_shows_two_pixels():
    pixels = np.zeros((4, 3, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)
    pixels[1, 0] = (0, 0, 255)
    shown = show(Image.fromarray(pixels), 80)
    assert shown.plain == f"{UPPER_HALF * 3}\n{UPPER_HALF * 3}"
    style = shown.spans[0].style
    assert style.color.triplet == (255, 0, 0)
    assert style.bgcolor.triplet == (0, 0, 255)


def test_a_wide_picture_is_shrunk_to_the_terminal():
    shown = show(Image.new("L", (320, 128)), 100)
    assert [len(line) for line in shown.plain.splitlines()] == [100] * 20
