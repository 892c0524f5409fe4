import dataclasses
import math

import numpy as np
import pytest
import torch

from imagen import editing, photo, storage
from imagen.cascade import Cascade, Edit, Member, SampleOptions
from imagen.data.randomness import Purpose
from imagen.diffusion.schedule import alpha_sigma, cosine_logsnr
from imagen.errors import ConfigError
from imagen.member import Given, SamplingConfig
from imagen.network.unet import resize
from imagen.sampling import draw, noise
from imagen.text.config import TextConfig
from imagen.text.encoder import load_encoder

MEAN, STD = 0.1, 0.2
GREY8 = torch.zeros(1, 1, 8, 8)
HOLE8 = torch.ones(1, 1, 8, 8)
CPU = torch.device("cpu")
PICTURE = torch.linspace(-0.9, 0.8, 256).reshape(1, 1, 16, 16)
HOLE = torch.zeros(1, 1, 16, 16)
HOLE[..., 3:11, 5:14] = 1


def ignore(step):
    pass


def best_of_gaussian(x, alpha, sigma, _):
    """The optimal estimate for images of independent pixels N(MEAN, STD^2)."""
    gain = STD**2 * alpha / (alpha.square() * STD**2 + sigma.square())
    return MEAN + gain * (x - alpha * MEAN)


def best_of_flat(x, alpha, sigma, _):
    """The optimal estimate for images of one grey value, N(0, 1)."""
    total, pixels = x.sum(dim=(1, 2, 3), keepdim=True), x[0].numel()
    return (alpha * total / (alpha.square() * pixels + sigma.square())).expand_as(x)


def show_lowres(x, alpha, sigma, conditions):
    return conditions.lowres


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TextConfig())


@pytest.fixture
def configs(toy):
    """Members without text: base of 8 px and sr1 of 16 px."""
    quiet = SamplingConfig(steps=8, threshold="none", aug_level=0.0)
    sr = toy.with_network(toy.SR, text_dim=0, cross_attention=(False, False))
    return {
        name: dataclasses.replace(m, sampling=quiet)
        for name, m in (("base", toy.BARE), ("sr1", sr))
    }


@pytest.fixture
def cascade_of(toy, configs, encoder):
    """Return a cascade whose members know the answer."""

    def make(*best):
        nets = [toy.Oracle("v", b) for b in best]
        pairs = zip(configs.items(), nets, strict=True)
        return Cascade({n: Member(c, net, {}) for (n, c), net in pairs}, encoder, "")

    return make


def variation(toy, net, strength, seeds=(1,), image=PICTURE, **keys):
    keys = {"sampler": "dpmpp_2m", "steps": 40, "threshold": "none"} | keys
    config = dataclasses.replace(toy.BARE, size=16, sampling=SamplingConfig(**keys))
    first = "sr1" if strength == 1 else "base"  # an edit from noise alone has no picture
    edit = Edit(image=image, strength=strength, first=first)
    canvas = editing.canvas(edit, (16, 16), len(seeds), CPU)
    with torch.inference_mode():
        return draw(net, config, 0, Given(), seeds, ignore, canvas)


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.9])
def test_a_variation_starts_from_the_image_at_exactly_the_noise_level_of_its_time(toy, strength):
    net = toy.Oracle("v", lambda x, *_: torch.zeros_like(x))
    variation(toy, net, strength, seeds=[7])
    x, conditions = net.calls[0]
    logsnr = cosine_logsnr(torch.tensor(strength))
    alpha, sigma = (z.item() for z in alpha_sigma(logsnr))
    expected = alpha * PICTURE + sigma * noise([7], Purpose.SAMPLE, (1, 16, 16))
    torch.testing.assert_close(x, expected)
    assert toy.logsnr_of(conditions.time).item() == pytest.approx(logsnr.item(), abs=2e-3)


@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_a_variation_follows_the_exact_flow_of_gaussian_images(toy, strength):
    found = variation(toy, toy.Oracle("v", best_of_gaussian), strength, seeds=[7], steps=80)
    alpha, sigma = (z.item() for z in alpha_sigma(cosine_logsnr(torch.tensor(strength))))
    xt = alpha * PICTURE + sigma * noise([7], Purpose.SAMPLE, (1, 16, 16))
    exact = MEAN + STD * (xt - alpha * MEAN) / math.hypot(alpha * STD, sigma)
    torch.testing.assert_close(found, exact.clamp(-1, 1), atol=0.02, rtol=0)


def test_more_strength_keeps_less_of_the_image(toy):
    net = toy.Oracle("v", best_of_gaussian)
    far = [
        (variation(toy, net, s, steps=10) - PICTURE).square().mean().item()
        for s in (0.05, 0.3, 0.6, 1)
    ]
    assert far == sorted(far)
    assert far[0] < 0.1 * far[-1]


def test_strength_one_starts_from_noise_alone(toy):
    net = toy.Oracle("v", best_of_gaussian)
    variation(toy, net, 1.0, seeds=[7])
    assert torch.equal(net.calls[0][0], noise([7], Purpose.SAMPLE, (1, 16, 16)))


def test_variations_of_one_image_differ_by_seed_and_by_nothing_else(toy):
    net = toy.awake(toy.BARE)
    keys = {"steps": 4, "sampler": "ddpm"}
    both = variation(toy, net, 0.6, seeds=[1, 2], **keys)
    assert (both[0] - both[1]).abs().max() > 1e-2
    alone = variation(toy, net, 0.6, seeds=[2], **keys)
    torch.testing.assert_close(alone[0], both[1], atol=1e-5, rtol=0)


def test_image_to_image_starts_every_member_from_the_image_at_its_size(cascade_of):
    cascade = cascade_of(lambda x, *_: torch.zeros_like(x), show_lowres)
    images = cascade.sample([""], [3], edit=Edit(image=PICTURE, strength=0.4))
    assert list(images) == ["base", "sr1"]
    alpha, sigma = (z.item() for z in alpha_sigma(cosine_logsnr(torch.tensor(0.4))))
    for index, (name, px) in enumerate((("base", 8), ("sr1", 16))):
        eps = noise([3], Purpose.SAMPLE + index, (1, px, px))
        started = alpha * resize(PICTURE, (px, px)) + sigma * eps
        torch.testing.assert_close(cascade.members[name].net.calls[0][0], started)


@pytest.mark.parametrize("count", [1, 3])
def test_outside_the_mask_the_last_picture_is_the_given_one_exactly(cascade_of, count):
    cascade = cascade_of(best_of_gaussian, best_of_gaussian)
    edit = Edit(image=PICTURE, mask=HOLE, resample=2)
    images = cascade.sample([""] * count, range(count), edit=edit)
    hole = HOLE.bool().expand(count, -1, -1, -1)
    assert torch.equal(images["sr1"][~hole], PICTURE.expand(count, -1, -1, -1)[~hole])
    assert (images["sr1"] - PICTURE)[hole].abs().mean() > 0.1
    small = editing.canvas(edit, (8, 8), count, CPU)
    assert torch.equal(images["base"][~small.mask], small.image[~small.mask])


@pytest.mark.parametrize(
    ("keys", "start", "rounds"),
    [
        ({}, 0.6, None),
        ({"strength": 0.3}, 0.3, None),
        ({"first": "sr1"}, 1.0, None),
        ({"mask": HOLE}, 1.0, 4),
        ({"mask": HOLE, "strength": 0.8, "resample": 2}, 0.8, 2),
    ],
)
def test_an_edit_keeps_of_the_picture_what_its_kind_needs(keys, start, rounds):
    edit = Edit(image=PICTURE, **keys)
    canvas = editing.canvas(edit, (8, 8), 1, CPU)
    assert edit.start == canvas.start == start
    assert rounds in (None, canvas.resample)


def test_an_edit_by_default_starts_from_the_picture(cascade_of):
    cascade = cascade_of(lambda x, *_: torch.zeros_like(x), show_lowres)
    cascade.sample([""], [3], edit=Edit(image=PICTURE))
    cascade.sample([""], [3], edit=Edit(image=-PICTURE))
    for member in cascade.members.values():
        first, *_, other = [x for x, _ in member.net.calls[:: len(member.net.calls) // 2]]
        assert (first - other).abs().max() > 0.3


def test_what_is_painted_fits_to_what_is_kept_in_every_member(cascade_of):
    """Images of one grey value: the hole has to be painted in the grey around it."""
    cascade = cascade_of(best_of_flat, best_of_flat)
    grey = torch.full((1, 1, 16, 16), 0.6)
    images = cascade.sample([""], [5], SampleOptions(steps=10), edit=Edit(image=grey, mask=HOLE))
    for image in images.values():
        assert (image - 0.6).abs().max() < 0.08


def test_known_pixels_enter_the_network_at_the_noise_level_that_it_is_told(cascade_of, toy):
    cascade = cascade_of(best_of_flat, best_of_flat)
    image = PICTURE.expand(24, -1, -1, -1)
    cascade.sample([""] * 24, range(24), edit=Edit(image=image, mask=HOLE, resample=1))
    net, known = cascade.members["sr1"].net, ~HOLE.bool().expand(24, -1, -1, -1)
    assert len(net.calls) == 8
    for x, conditions in net.calls:
        alpha, sigma = (z.item() for z in alpha_sigma(toy.logsnr_of(conditions.time)[0]))
        left = (x - alpha * image)[known]
        assert left.std().item() == pytest.approx(sigma, rel=0.03)


def test_an_inpainted_image_does_not_depend_on_its_batch(toy):
    config = dataclasses.replace(toy.BARE, size=16, sampling=SamplingConfig(steps=4))
    net, edit = toy.awake(toy.BARE), Edit(image=PICTURE, mask=HOLE)

    def painted(seeds):
        canvas = editing.canvas(edit, (16, 16), len(seeds), CPU)
        with torch.inference_mode():
            return draw(net, config, 0, Given(), seeds, ignore, canvas)

    together = painted([4, 5, 6])
    torch.testing.assert_close(painted([5])[0], together[1], atol=1e-5, rtol=0)


def test_a_picture_is_upscaled_from_its_size_of_the_member_before(cascade_of):
    cascade = cascade_of(best_of_gaussian, show_lowres)
    images = cascade.sample([""], [3], edit=Edit(image=PICTURE, first="sr1"))
    assert list(images) == ["sr1"]
    assert cascade.members["base"].net.calls == []
    small = resize(PICTURE, (8, 8))
    up = torch.nn.functional.interpolate(small, (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(images["sr1"], up, atol=5e-3, rtol=0)


def test_an_upscaled_base_image_is_what_the_whole_cascade_draws(cascade_of):
    cascade = cascade_of(best_of_gaussian, show_lowres)
    whole = cascade.sample([""], [3])
    again = cascade.sample([""], [3], edit=Edit(image=whole["base"], first="sr1"))
    assert torch.equal(again["sr1"], whole["sr1"])


def test_a_pixel_that_covers_any_part_to_paint_is_painted():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 6] = 1
    edit = Edit(image=torch.zeros(1, 1, 8, 8), mask=mask)
    small = editing.canvas(edit, (4, 4), 2, CPU).mask
    assert small.shape == (2, 1, 4, 4)
    assert small.nonzero().tolist() == [[0, 0, 1, 3], [1, 0, 1, 3]]
    assert torch.equal(editing.canvas(edit, (8, 8), 1, CPU).mask, mask.bool())


def test_stripes_of_one_pixel_become_grey_when_they_shrink():
    stripes = torch.ones(1, 1, 16, 16)
    stripes[..., ::2] = -1
    seen = editing.given_at(Edit(image=stripes), (4, 4), 1, CPU)
    assert seen.abs().max() < 0.15


BAD = [
    ({"image": torch.zeros(1, 8, 8)}, r"edit.image is \(1, 8, 8\), not \(b, c, h, w\)"),
    ({"image": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)}, r"edit.image is uint8, .*floats"),
    ({"image": torch.full((1, 1, 8, 8), 200.0)}, r"edit.image has values .*\n\nhint: these"),
    ({"image": torch.full((1, 1, 8, 8), torch.nan)}, "edit.image has values that are not finite"),
    ({"strength": 0.0}, r"edit.strength 0.0 is not in \(0, 1\]"),
    ({"strength": 1.5}, r"edit.strength 1.5 is not in \(0, 1\]"),
    ({"strength": math.nan}, "edit.strength nan"),
    ({"mask": torch.full((1, 1, 8, 8), 0.5)}, "edit.mask has values from 0.5 .* 0 or 1"),
    ({"mask": torch.ones(1, 1, 4, 8)}, r"edit.mask is \(1, 1, 4, 8\), not \(1, 1, 8, 8\)"),
    ({"mask": torch.ones(8, 8)}, r"edit.mask is \(8, 8\)"),
    ({"mask": torch.ones(1, 3, 8, 8)}, r"edit.mask is \(1, 3, 8, 8\)"),
    ({"resample": 0}, "edit.resample 0 is less than 1"),
    ({"resample": 4}, "edit.resample 4 has no effect: the edit has no mask\n\nhint: leave it out"),
    ({"resample": 1.0, "mask": HOLE8}, r"edit.resample is 1.0 \(float\), not a whole number"),
    ({"strength": 1}, r"edit.strength 1 without a mask starts from noise (.|\n)*hint: 0.6 draws"),
    ({"strength": "0.5"}, r"edit.strength is '0.5' \(str\), not a number"),
    ({"image": [[0.0]]}, "edit.image is a list, not a torch tensor"),
    ({"mask": [[1]]}, r"edit.mask is \[\[1\]\] \(list\), not a torch tensor"),
    ({"mask": 0 * HOLE8}, "edit.mask is 0 everywhere in row 0: nothing would be painted"),
    ({"mask": torch.cat([HOLE8, 0 * HOLE8])}, "edit.mask is 0 everywhere in row 1"),
    ({"mask": HOLE8, "first": "sr1"}, r"mask with edit.first 'sr1'(.|\n)*hint: .*at the base"),
    ({"first": None}, r"edit.first is None \(NoneType\), not a member's name"),
]  # fmt: skip
MISFITS = [
    ({"first": "sr2"}, "edit.first 'sr2' is no member of the cascade\n\nhint: members: base, sr1"),
    ({"image": torch.zeros(1, 3, 8, 8)}, "edit.image has 3 channels, member base 1"),
    ({"image": torch.zeros(1, 1, 8, 16)}, "edit.image is 8 x 16 pixels, .*8 x 8\n\nhint: crop"),
    ({"image": torch.zeros(3, 1, 8, 8)}, "edit.image has 3 rows for 2 images"),
    ({"mask": torch.ones(3, 1, 8, 8)}, "edit.mask has 3 rows for 2 images"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), BAD)
def test_edits_that_mean_nothing_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        Edit(**{"image": GREY8} | keys)


@pytest.mark.parametrize(("keys", "message"), MISFITS)
def test_edits_that_do_not_fit_the_cascade_are_refused(configs, keys, message):
    edit = Edit(**{"image": GREY8} | keys)
    with pytest.raises(ConfigError, match=message):
        editing.check(edit, configs, 2)


@pytest.fixture
def files(tmp_path, png):
    """A picture of 24 x 48 pixels and a mask with a white block in its centre."""
    rng = np.random.default_rng(3)
    white = np.zeros((24, 48), np.uint8)
    white[6:12, 18:30] = 255
    paths = [str(tmp_path / name) for name in ("picture.png", "mask.png")]
    for path, array in zip(paths, (rng.integers(0, 256, (24, 48), np.uint8), white), strict=True):
        storage.put(path, png(array))
    return paths


def test_an_edit_is_opened_from_files_at_the_size_that_it_needs(files, configs, cascade_of):
    path, mask = files
    members = configs | {"sr2": dataclasses.replace(configs["sr1"], size=24)}
    wanted = [({}, 24), ({"first": "sr1"}, 8), ({"first": "sr2"}, 16), ({"last": "sr1"}, 16)]
    for keys, size in wanted:
        assert Edit.open(path, members, **keys).image.shape == (1, 1, size, size)
    half = Edit.open(path, members, first="sr2", strength=0.5)
    assert (half.image.shape[2], half.start) == (24, 0.5)
    cascade = cascade_of(best_of_gaussian, best_of_gaussian)
    masked = Edit.open(path, cascade, mask)
    assert masked.image.shape == masked.mask.shape == (1, 1, 16, 16)
    assert masked.mask.sum() == 4 * 8
    picture = photo.image(photo.read(path), (16, 16), 1)
    assert torch.equal(masked.image, picture)
    assert set(cascade.sample([""], [1], edit=masked)) == {"base", "sr1"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"first": "sr2"}, "edit.first 'sr2' is no member of the cascade\n\nhint: members: base"),
        ({"last": "sr2"}, "last 'sr2' is no member of the cascade"),
        ({"first": "sr1", "mask": True}, "edit.mask with edit.first 'sr1'"),
        ({"strength": 1.0}, "edit.strength 1.0 without a mask starts from noise alone"),
        ({"strength": 2.0}, r"edit.strength 2.0 is not in \(0, 1\]"),
    ],
)
def test_files_of_an_edit_that_means_nothing_are_refused(files, configs, keys, message):
    keys = keys | ({"mask": files[1]} if "mask" in keys else {})
    with pytest.raises(ConfigError, match=message):
        Edit.open(files[0], configs, **keys)


def test_a_file_that_is_too_small_for_the_members_is_refused(files, configs):
    large = configs | {"sr1": dataclasses.replace(configs["sr1"], size=32)}
    with pytest.raises(
        ConfigError, match=r"image of 24 px is smaller than 32 px(.|\n)*never enlarg"
    ):
        Edit.open(files[0], large)
    assert Edit.open(files[0], large, first="sr1").image.shape[2] == 8
