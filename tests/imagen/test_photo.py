import io

import numpy as np
import pytest
import torch
from PIL import Image

from imagen import photo
from imagen.errors import ConfigError

RNG = np.random.default_rng(2)


@pytest.fixture
def saved(tmp_path, png):
    """Write pixels as a picture file; return it, read."""

    def save(array, name="a.png", **options):
        kind = "JPEG" if name.endswith("jpg") else "PNG"
        (tmp_path / name).write_bytes(png(array, kind, **options))
        return photo.read(str(tmp_path / name))

    return save


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_of_the_right_size_keeps_its_pixels(saved):
    array = noise(6, 9, 3)
    x0 = photo.image(saved(array), (6, 9), 3)
    assert x0.shape == (1, 3, 6, 9)
    assert x0.dtype == torch.float32
    assert np.array_equal(((x0[0] + 1) * 127.5).round().permute(1, 2, 0).numpy(), array)


def test_the_centre_of_the_wanted_shape_is_used(saved):
    array = noise(4, 12)
    x0 = photo.image(saved(array), (4, 6), 1)
    assert np.array_equal(((x0[0, 0] + 1) * 127.5).round().numpy(), array[:, 3:9])


def test_colour_becomes_grey_and_grey_colour_as_the_cascade_draws(saved):
    assert photo.image(saved(noise(4, 4, 3)), (4, 4), 1).shape == (1, 1, 4, 4)
    x0 = photo.image(saved(noise(4, 4)), (4, 4), 3)
    assert torch.equal(x0[:, 0], x0[:, 2])


def test_what_is_transparent_is_white(saved):
    array = np.zeros((4, 4, 4), np.uint8)
    array[:, :2, 3] = 255
    x0 = photo.image(saved(array), (4, 4), 3)
    assert torch.equal(x0[0, 0], torch.tensor([[-1.0, -1, 1, 1]] * 4))


def test_a_photo_that_lies_on_its_side_is_turned_upright(saved):
    array = noise(4, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture = saved(array, exif=exif.tobytes())
    assert picture.size == (8, 4)
    x0 = photo.image(picture, (8, 4), 1)
    assert np.array_equal(((x0[0, 0] + 1) * 127.5).round().numpy(), np.rot90(array, -1))


def test_a_mask_is_cut_as_its_picture_and_covers_whatever_is_partly_white(saved):
    array = np.zeros((8, 24), np.uint8)
    array[3, 13] = 255  # the centre square begins at column 8
    array[0, 0] = 255  # cut off
    array[7, 15] = 127  # dark grey is black
    mask = photo.mask(saved(array, "mask.png"), saved(noise(8, 24), "b.png"), (4, 4))
    wanted = torch.zeros(1, 1, 4, 4)
    wanted[0, 0, 1, 2] = 1
    assert torch.equal(mask, wanted)


def test_a_mask_of_odd_size_keeps_the_pictures_own_cut(saved):
    array = np.full((11, 20), 255, np.uint8)
    mask = photo.mask(saved(array, "mask.png"), saved(noise(11, 20), "b.png"), (4, 6))
    assert torch.equal(mask, torch.ones(1, 1, 4, 6))


def test_a_mask_without_white_or_of_another_size_is_refused(saved):
    picture = saved(noise(8, 8), "b.png")
    with pytest.raises(
        ConfigError, match=r"mask `.*m\.png` has no white where(.|\n)*hint: white ="
    ):
        photo.mask(saved(np.zeros((8, 8), np.uint8), "m.png"), picture, (4, 4))
    with pytest.raises(
        ConfigError, match=r"mask `.*m\.png` is 9 x 8 px, picture `.*b.png` 8 x 8 px"
    ):
        photo.mask(saved(noise(8, 9), "m.png"), picture, (4, 4))


def test_pictures_that_are_too_small_are_never_enlarged(saved):
    with pytest.raises(
        ConfigError, match=r"picture `.*a\.png`: image of 7 px is smaller than 8 px"
    ):
        photo.image(saved(noise(7, 20)), (8, 8), 1)


def test_a_cascade_of_other_channels_takes_no_picture_file(saved):
    with pytest.raises(ConfigError, match="draws 2 channels, picture files have 1 or 3"):
        photo.image(saved(noise(8, 8)), (8, 8), 2)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ConfigError, match=r"`.*a\.png` is not a readable picture: \w+Error"):
        photo.read(str(tmp_path / "a.png"))


def test_a_picture_that_is_cut_off_is_an_error_that_names_it(tmp_path, png):
    data = png(noise(32, 32))
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"`.*a\.png`.*not a readable (picture|image)"):
        photo.image(photo.read(str(tmp_path / "a.png")), (16, 16), 1)


def test_a_picture_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match=r"picture `no\.png` does not exist"):
        photo.read("no.png")


def test_pictures_are_read_from_any_storage(png):
    from imagen import storage

    array = noise(4, 4)
    storage.put("memory://given/a.png", png(array))
    picture = photo.read("memory://given/a.png")
    assert picture.size == (4, 4)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture.data))), array)
