import io

import numpy as np
import pytest
from PIL import Image

from imagen.data import jpeg
from imagen.data.images import TooSmallError, decode
from imagen.errors import ShardError

pytest.importorskip("simplejpeg", reason="an optional extra")


def picture(height: int, width: int, mode: str = "RGB", **options: object) -> bytes:
    """Return a JPEG of waves and grain: no flat parts that any decoder gets right."""
    y, x = np.mgrid[0:height, 0:width]
    waves = 127 + 60 * np.sin(x / 7) + 50 * np.cos(y / 5)
    grain = np.random.default_rng(height * width).normal(0, 12, (height, width, 3))
    pixels = (waves[..., None] + grain).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "jpeg", **options)
    return out.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(40, 60, exif=exif)


def with_profile() -> bytes:
    return picture(40, 60, icc_profile=bytes(500))


def outcome(data: bytes, sizes: tuple, channels: int) -> list:
    """Return the pixels, or what is said of an image that cannot be used."""
    try:
        return [plane.tolist() for plane in decode(data, sizes, channels)]
    except ShardError as err:
        return [type(err), err.message]


def both(monkeypatch: pytest.MonkeyPatch, data: bytes, sizes: tuple, channels: int) -> list:
    """Return what simplejpeg gives, compared with what Pillow gives."""
    found = outcome(data, sizes, channels)
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "simplejpeg", None)
        assert outcome(data, sizes, channels) == found
    return found


SHAPES = [(8, 8), (64, 64), (63, 65), (17, 200), (131, 100), (257, 255), (511, 300)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_pixels_are_those_of_pillow(monkeypatch, shape, mode):
    for options in ({"subsampling": 0}, {"subsampling": 2}, {"progressive": True, "quality": 60}):
        if mode == "L":
            options.pop("subsampling", None)
        height, width = shape
        data = picture(height, width, mode, **options)
        for sizes in ((8,), (min(shape),), ((16, 8), (8, 4)), (4, 2)):
            for channels in (1, 3):
                both(monkeypatch, data, sizes, channels)


@pytest.mark.parametrize("least", [4, 16, 32, 64, 500])
def test_a_picture_is_decoded_at_the_scale_of_pillows_draft(least: int):
    for height, width in SHAPES:
        data = picture(height, width)
        image = Image.open(io.BytesIO(data))
        image.draft(None, (least, least))
        found = jpeg.decode(data, least)
        assert found is not None
        assert (found == np.asarray(image)).all()


@pytest.mark.parametrize(
    "data",
    [
        picture(40, 60, "CMYK"),
        turned(),
        picture(40, 60)[:-2],
        picture(40, 60)[:900],
        picture(40, 60)[:30],
        picture(40, 60)[:400] + bytes(200) + picture(40, 60)[600:],
        picture(40, 60).replace(b"JFIF", b"JFXX"),
        b"\xff\xd8",
        b"\xff\xd8" + bytes(40),
        b"",
        b"no image at all",
    ],
    ids=lambda data: f"{len(data)}-{data[2:4].hex()}",
)
def test_what_is_no_plain_jpeg_is_what_pillow_says_it_is(monkeypatch, data):
    both(monkeypatch, data, (16, 8), 3)


def test_what_turns_or_converts_a_picture_is_left_to_pillow():
    assert jpeg.decode(turned(), 64) is None
    assert jpeg.decode(picture(40, 60, "CMYK"), 64) is None
    assert jpeg.decode(picture(40, 60)[:-20], 64) is None


def test_plain_pictures_are_not(monkeypatch):
    assert jpeg.is_there()
    for data in (picture(40, 60), picture(40, 60, "L"), with_profile()):
        assert jpeg.decode(data, 64) is not None
        both(monkeypatch, data, (16, 8), 3)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert jpeg.decode(picture(40, 60), 64) is None


def test_a_picture_that_is_too_small_is_refused_by_either_alike(monkeypatch):
    assert both(monkeypatch, picture(40, 60), (64,), 3)[0] is TooSmallError


def test_a_picture_of_too_many_pixels_is_left_to_pillow():
    data = bytearray(picture(40, 60))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert jpeg.decode(bytes(data), 64) is None
