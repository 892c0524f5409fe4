import io

import numpy as np
import pytest
from PIL import Image

from imagen.data.images import decode
from preencode.sources.images import stored
from preencode.sources.rows import BadRowError


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "extension"), [("jpeg", "jpg"), ("png", "png"), ("webp", "webp"), ("mpo", "jpg")]
)
def test_formats_that_readers_know_keep_their_bytes(kind, extension):
    data = encoded(Image.new("RGB", (5, 4), "red"), kind)
    assert stored(data) == (extension, data)


@pytest.mark.parametrize("kind", ["gif", "bmp", "tiff", "ppm"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_other_formats_become_png_with_the_same_pixels(kind, mode):
    image = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5) * 12).convert(mode)
    extension, data = stored(encoded(image, kind))
    found = Image.open(io.BytesIO(data))
    assert (extension, found.format) == ("png", "PNG")
    assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(image.convert("RGB")))


def test_of_an_animation_the_first_frame_is_stored():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    found = Image.open(io.BytesIO(stored(data)[1]))
    assert found.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_modes_that_png_lacks_are_converted():
    found = Image.open(io.BytesIO(stored(encoded(Image.new("CMYK", (4, 4)), "tiff"))[1]))
    assert (found.mode, found.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_picture_whose_bytes_would_stay_is_refused_where_an_index_refuses_it():
    data = encoded(Image.new("1", (9500, 9500)), "png")
    with pytest.raises(BadRowError) as caught:
        stored(data)
    assert caught.value.args == ("image_size", "9500x9500 px")


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_as_training_scales_them(order):
    pixels = np.linspace(0, 65535, 64).reshape(8, 8).astype(order)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "tiff")
    assert Image.open(io.BytesIO(out.getvalue())).mode == ("I;16" if order == "<u2" else "I;16B")
    _, data = stored(out.getvalue())
    (found,) = decode(data, [8], 1)
    assert np.array_equal(found[0], (pixels >> 8).astype(np.uint8))


def test_a_turned_picture_is_stored_upright():
    image, exif = Image.new("RGB", (6, 4)), Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    found = Image.open(io.BytesIO(stored(encoded(image, "tiff", exif=exif))[1]))
    assert found.size == (4, 6)


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"<html>not found</html>", "not_an_image", "22 bytes"),
        (b"", "not_an_image", "0 bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image", "cannot identify"),
        (encoded(Image.new("F", (4, 4)), "tiff"), "not_an_image", "mode 'F'"),
        (b"P1 9500 9500\n", "image_size", "exceeds limit"),
        (b"P1 20000 9000\n", "image_size", "decompression bomb"),
        (encoded(Image.new("RGB", (9, 3)), "png"), "image_size", "9x3 px"),
        (encoded(Image.new("RGB", (1, 1)), "gif"), "image_size", "1x1 px"),
    ],
)
def test_what_is_no_usable_image_is_told_with_its_reason(data, reason, detail):
    with pytest.raises(BadRowError) as caught:
        stored(data)
    assert caught.value.args[0] == reason
    assert detail in caught.value.args[1]
    assert " at 0x" not in caught.value.args[1]  # a memory address would differ from run to run
