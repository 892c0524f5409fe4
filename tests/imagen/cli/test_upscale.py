import numpy as np
import pytest
import torch

from imagen import cascade
from imagen.data.images import decode, to_uint8, to_x0

RNG = np.random.default_rng(1)
SMALL = RNG.integers(0, 256, (8, 8), dtype=np.uint8)


@pytest.fixture
def upscale(imagen, tmp_path, png):
    """Run `imagen upscale small.png …` in a folder with a picture of 8 x 8 pixels."""
    (tmp_path / "small.png").write_bytes(png(SMALL))
    return lambda *words, **keys: imagen("upscale", "small.png", *words, **keys)


def upscaled(folder, pixels, seed=0, **options):
    edit = cascade.Edit(image=to_x0(torch.tensor(pixels[None])), first="sr1")
    made = cascade.Cascade.load(folder).sample(
        ["seven"], [seed], cascade.SampleOptions(**options), edit=edit
    )
    assert list(made) == ["sr1"]
    return to_uint8(made["sr1"])[0, 0].numpy()


def test_a_small_picture_becomes_large_and_its_record_says_how(upscale, folder, pixels, record):
    assert upscale("seven", "--seed", "4", "--out", "large.png") == (0, ["large.png"], "")
    assert np.array_equal(pixels("large.png"), upscaled(folder, SMALL[None], 4))
    facts = record("large.json")
    assert facts["edit"]["first"] == "sr1"
    assert facts["edit"]["image"]["path"] == "small.png"
    assert list(facts["sampling"]) == ["sr1"]


def test_the_picture_decides_what_is_drawn(upscale, imagen, tmp_path, png, pixels):
    upscale("seven", "--out", "a.png")
    (tmp_path / "other.png").write_bytes(png(255 - SMALL))
    imagen("upscale", "other.png", "seven", "--out", "b.png")
    assert not np.array_equal(pixels("a.png"), pixels("b.png"))


def test_the_augmentation_level_is_chosen(upscale, folder, pixels):
    upscale("seven", "--aug-level", "0.9", "--out", "a.png")
    assert np.array_equal(pixels("a.png"), upscaled(folder, SMALL[None], aug_level=0.9))
    assert not np.array_equal(pixels("a.png"), upscaled(folder, SMALL[None]))


def test_a_larger_picture_is_scaled_down_as_training_scales_it(
    imagen, folder, tmp_path, png, pixels
):
    data = png(RNG.integers(0, 256, (40, 48), dtype=np.uint8))
    (tmp_path / "large.png").write_bytes(data)
    imagen("upscale", "large.png", "seven", "--out", "a.png")
    assert np.array_equal(pixels("a.png"), upscaled(folder, decode(data, (8,), 1)[0]))


@pytest.mark.parametrize("first", ["base", "sr2"])
def test_it_starts_at_a_super_resolution_member_of_the_cascade(upscale, first, monkeypatch):
    monkeypatch.setattr(cascade.Cascade, "load", None)  # would raise TypeError
    code, _, err = upscale("x", "--from", first, "--out", "a.png")
    assert code == 2
    assert err.startswith(f"error: --from {first} is no super-resolution member of the cascade")
    assert "which has base, sr1\n\nhint: `imagen edit`" in err


def test_it_cannot_stop_before_it_starts(upscale):
    code, _, err = upscale("x", "--until", "base", "--out", "a.png")
    assert code == 2
    assert err.startswith("error: --until base stops before --from sr1 starts\n\nhint: members, in")


def test_a_picture_below_the_input_size_is_refused(imagen, tmp_path, png):
    (tmp_path / "tiny.png").write_bytes(png(SMALL[:, :5]))
    code, _, err = imagen("upscale", "tiny.png", "x", "--out", "a.png")
    assert code == 2
    assert err.startswith("error: picture `tiny.png`: image of 5 px is smaller than 8 px")


def test_an_augmentation_level_without_effect_is_refused(upscale, imagen):
    code, _, err = imagen("sample", "x", "--until", "base", "--aug-level", "0.3", "--out", "a.png")
    assert code == 2
    assert err.startswith("error: aug_level 0.3 has no effect on base, which has no low-resol")
