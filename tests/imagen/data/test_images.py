import io

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.images import decode, to_uint8, to_x0
from imagen.errors import ShardError


def encoded(pixels: np.ndarray, kind: str = "png", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def test_an_image_of_the_wanted_size_is_returned_pixel_by_pixel():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert (decode(encoded(pixels), (8,), 1)[0] == pixels[None]).all()


def test_the_centre_square_is_cut():
    pixels = np.zeros((8, 12), np.uint8)
    pixels[:, 2:10] = 200
    assert (decode(encoded(pixels), (8,), 1)[0] == 200).all()


def test_the_largest_centred_part_of_the_wanted_aspect_ratio_is_cut():
    for height, width, shape in ((32, 100, (8, 16)), (100, 32, (16, 8)), (40, 64, (8, 16))):
        pixels = np.zeros((height, width), np.uint8)
        y = min(height, width * shape[0] // shape[1])
        x = min(width, height * shape[1] // shape[0])
        top, left = (height - y) // 2, (width - x) // 2
        pixels[top : top + y, left : left + x] = 200
        (plane,) = decode(encoded(pixels), (shape,), 1)
        assert plane.shape == (1, *shape)
        assert (plane == 200).all()
        pixels[top, left : left + x] = 0  # its edge is in the cut
        assert (decode(encoded(pixels), (shape,), 1)[0] != 200).any()


def test_a_number_means_a_square():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 33), np.uint8)
    assert (decode(encoded(pixels), (8,), 1)[0] == decode(encoded(pixels), ((8, 8),), 1)[0]).all()


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_sizes_that_are_no_squares_are_made_of_the_same_cut(kind: str):
    y, x = np.mgrid[0:300, 0:400]
    pixels = (127 + 60 * np.sin(x / 40) + 60 * np.cos(y / 60)).astype(np.uint8)
    large, small = decode(encoded(pixels, kind), ((24, 48), (6, 12)), 1)
    assert (large.shape, small.shape) == ((1, 24, 48), (1, 6, 12))
    blocks = large.astype(float).reshape(1, 6, 4, 12, 4).mean((2, 4))
    assert np.abs(blocks - small).max() < 4


def test_every_size_is_made_of_the_same_cut():
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    large, small = decode(encoded(ramp), (32, 8), 1)
    blocks = large.astype(float).reshape(1, 8, 4, 8, 4).mean((2, 4))
    assert np.abs(blocks - small).max() < 3


def test_downscaling_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(decode(encoded(stripes), (8,), 1)[0].astype(int) - 127).max() < 8


def test_channels_come_first_and_grey_becomes_rgb():
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 9
    assert decode(encoded(colour), (4,), 3)[0][:, 0, 0].tolist() == [9, 0, 0]
    assert decode(encoded(colour[..., 0]), (4,), 3)[0][:, 0, 0].tolist() == [9, 9, 9]


def test_transparency_is_laid_on_white():
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (decode(encoded(clear), (4,), 3)[0] == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped():
    pixels = np.full((4, 4), 0x8000, np.uint16)
    assert (decode(encoded(pixels), (4,), 1)[0] == 128).all()


def test_pictures_are_turned_upright():
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    upright = decode(encoded(pixels, exif=exif), (8,), 1)[0][0]
    assert upright[7].min() == 255
    assert upright[:7].max() == 0


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures_of_every_format_are_turned_upright(kind: str):
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    options = {"lossless": True} if kind == "webp" else {}
    upright = decode(encoded(pixels, kind, exif=exif, **options), ((16, 8),), 1)[0][0]
    assert upright[:7].min() > 200
    assert upright[9:].max() < 50


def test_pictures_are_turned_upright_where_only_xmp_says_so():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="3"></x:xmpmeta>'
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255
    for kind in ("jpeg", "webp"):
        options = {"lossless": True} if kind == "webp" else {"quality": 95}
        upright = decode(encoded(pixels, kind, xmp=xmp, **options), (8,), 1)[0][0]
        assert upright[7].min() > 200
        assert upright[0].max() < 50


def test_a_large_jpeg_decoded_at_a_smaller_scale_looks_the_same():
    y, x = np.mgrid[0:512, 0:512]
    pixels = (127 + 60 * np.sin(x / 40) + 60 * np.cos(y / 60)).astype(np.uint8)
    drafted = decode(encoded(pixels, "jpeg", quality=95), (32,), 1)[0]
    whole = decode(encoded(pixels), (32,), 1)[0]
    assert np.abs(drafted.astype(int) - whole).mean() < 1


CUT = encoded(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8))[:300]


@pytest.mark.parametrize("data", [b"", b"no image", CUT], ids=["empty", "text", "cut"])
def test_bytes_that_are_no_image_are_a_shard_error(data: bytes):
    with pytest.raises(ShardError, match="not a readable image: "):
        decode(data, (8,), 1)


def test_pictures_are_never_enlarged():
    with pytest.raises(ShardError, match="image of 7 px is smaller than 8 px"):
        decode(encoded(np.zeros((7, 30), np.uint8)), (8, 4), 1)


def test_pictures_that_are_too_small_are_told_as_height_and_width():
    with pytest.raises(ShardError, match="image of 15x30 px is smaller than 16x32 px"):
        decode(encoded(np.zeros((16, 30), np.uint8)), ((8, 16), (16, 32)), 1)


def test_pixels_survive_the_way_to_x0_and_back():
    pixels = torch.arange(256).to(torch.uint8)
    assert (to_uint8(to_x0(pixels)) == pixels).all()
    assert to_x0(pixels).min() == -1
    assert to_x0(pixels).max() == 1
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
