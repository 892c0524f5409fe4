import dataclasses

import numpy as np
import pytest
import torch

from imagen import config as configs
from imagen.errors import ConfigError
from imagen.inputs import condition_lowres
from train.config import TrainStageConfig
from train.crops import Crops


@pytest.mark.parametrize(
    ("px", "full", "lowres", "unit", "crop"),
    [
        (16, (32, 32), (8, 8), (4, 1), (4, 4)),
        (256, (1024, 1024), (256, 256), (4, 1), (64, 64)),
        (12, (48, 24), (32, 16), (3, 2), (8, 8)),  # low resolution of two thirds
    ],
)
def test_a_crop_and_its_low_resolution_are_whole_pixels(px, full, lowres, unit, crop):
    crops = Crops(px, full, lowres)
    assert crops.unit == unit
    assert crops.lowres == crop
    assert crops.shape == (px, px)


@pytest.mark.parametrize(("full", "lowres"), [((32, 32), (8, 8)), ((24, 48), (16, 32))])
def test_the_low_resolution_crop_shows_what_the_crop_shows(full, lowres):
    crops = Crops(12, full, lowres)
    high, low = crops.unit
    y, x = np.mgrid[0 : full[0], 0 : full[1]]
    picture = (y // high * full[1] + x // high)[None]  # which unit a pixel belongs to
    y, x = np.mgrid[0 : lowres[0], 0 : lowres[1]]
    small = (y // low * full[1] + x // low)[None]
    for place in crops.places(0, range(50)):
        part, part_small = crops.cut((picture, small), place)
        assert part.shape == (1, *crops.shape)
        assert part_small.shape == (1, *crops.lowres)
        assert (part[:, ::high, ::high] == part_small[:, ::low, ::low]).all()


def test_every_place_is_drawn_alike_and_depends_on_seed_and_position_only():
    crops = Crops(16, (32, 24), (8, 6))
    places = crops.places(7, range(15_000))
    counts = {place: places.count(place) for place in set(places)}
    assert set(counts) == {(y, x) for y in range(5) for x in range(3)}
    assert all(abs(count - 1000) < 150 for count in counts.values())
    assert crops.places(7, [9, 3]) == [places[9], places[3]]
    assert crops.places(8, range(100)) != places[:100]


def test_inside_a_crop_the_network_is_conditioned_as_on_the_whole_picture():
    """Bilinear upsampling sees one pixel further than a crop, so only the rim may differ."""
    crops = Crops(16, (32, 32), (8, 8))
    torch.manual_seed(0)
    lowres, eps, level = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8), torch.tensor([0.3])
    whole, _ = condition_lowres(lowres, level, eps, (32, 32))
    part, _ = condition_lowres(lowres[..., 2:6, 1:5], level, eps[..., 2:6, 1:5], crops.shape)
    expected = whole[..., 8:24, 4:20]
    assert torch.allclose(part[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-6)
    assert not torch.allclose(part, expected, atol=1e-3)


def cropped(helpers, name: str, crop_px: int, **network: object) -> TrainStageConfig:
    config = helpers.changed(helpers.make_config("x"), name, network=network)
    train = {**config.train, name: dataclasses.replace(config.train[name], crop_px=crop_px)}
    return dataclasses.replace(config, train=train)


@pytest.mark.parametrize("crop_px", [4, 8, 12])
def test_a_super_resolution_member_without_attention_may_be_cropped(helpers, crop_px: int):
    assert cropped(helpers, "sr1", crop_px).train["sr1"].crop_px == crop_px


@pytest.mark.parametrize(
    ("name", "crop_px", "network", "text"),
    [
        ("base", 4, {}, r"train\.base\.crop_px 4: base draws whole pictures"),
        ("sr1", 8, {"self_attention": (False, True)}, "sr1 has self_attention, which sees as many"),
        ("sr1", 8, {"middle_attention": True}, "sr1 has middle_attention, which sees as many"),
        ("sr1", 8, {"linear_attention": (True, False)}, "sr1 has linear_attention, which sees"),
        ("sr1", 6, {}, "crop_px 6 is no multiple of 4, by which the network shrinks it"),
        ("sr1", 16, {}, "crop_px 16 cuts nothing out of pictures of 16x16 px"),
        ("sr1", 20, {}, "crop_px 20 cuts nothing out of pictures of 16x16 px"),
    ],
)
def test_crops_that_make_no_sense_are_refused_with_the_reason(
    helpers, name: str, crop_px: int, network: dict, text: str
):
    with pytest.raises(ConfigError, match=text):
        cropped(helpers, name, crop_px, **network)


def test_a_crop_between_low_resolution_pixels_is_refused(helpers):
    config = helpers.changed(helpers.make_config("x"), "sr1", size=40)
    train = {"sr1": dataclasses.replace(config.train["sr1"], crop_px=8)}
    with pytest.raises(ConfigError, match=r"no multiple of 5, .*: 5 pixels are 1 there") as err:
        dataclasses.replace(config, train=train)
    assert err.value.hint == "use a multiple of 20"


def test_a_negative_crop_is_refused(helpers):
    train = {"sr1": {**helpers.TREE["train"]["sr1"], "crop_px": -8}}
    with pytest.raises(ConfigError, match="crop_px -8 is negative"):
        configs.build(TrainStageConfig, {**helpers.TREE, "out": "x", "train": train})
