import numpy as np
import pytest
import torch

from imagen import cascade
from imagen.data.images import to_uint8, to_x0

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (16, 16), dtype=np.uint8)
MASK = np.zeros((16, 16), np.uint8)
MASK[4:9, 6:12] = 255


@pytest.fixture
def edit(imagen, tmp_path, png):
    """Run `imagen edit seven.png …` in a folder with a picture and a mask of 16 x 16 pixels."""
    (tmp_path / "seven.png").write_bytes(png(GREY))
    (tmp_path / "mask.png").write_bytes(png(MASK))
    return lambda *words, **keys: imagen("edit", "seven.png", *words, **keys)


def x0(array):
    return to_x0(torch.tensor(np.atleast_3d(array).transpose(2, 0, 1)[None]))


def test_an_edit_is_what_the_library_makes_of_the_picture(edit, folder, pixels, record):
    assert edit("one", "--seed", "5", "--out", "one.png") == (0, ["one.png"], "")
    wanted = cascade.Cascade.load(folder).sample(["one"], [5], edit=cascade.Edit(image=x0(GREY)))[
        "sr1"
    ]
    assert np.array_equal(pixels("one.png"), to_uint8(wanted)[0, 0].numpy())
    facts = record("one.json")
    assert facts["edit"]["image"]["path"] == "seven.png"
    assert (facts["edit"]["strength"], facts["edit"]["mask"]) == (0.6, None)


def test_a_small_strength_keeps_the_picture(edit, pixels):
    far = {}
    for strength in ("0.001", "0.3"):
        edit("x", "--strength", strength, "--out", f"{strength}.png")
        far[strength] = np.abs(pixels(f"{strength}.png").astype(int) - GREY).mean()
    assert far["0.001"] < 5 < far["0.3"]


def test_without_a_strength_the_picture_counts(edit, imagen, tmp_path, png, pixels):
    edit("x", "--out", "a.png")
    (tmp_path / "other.png").write_bytes(png(255 - GREY))
    imagen("edit", "other.png", "x", "--out", "b.png")
    assert not np.array_equal(pixels("a.png"), pixels("b.png"))


def test_variations_differ_by_their_seeds(edit, pixels):
    code, out, _ = edit("seven", "--strength", "0.4", "--count", "3", "--out", "new/")
    assert code == 0
    assert len({pixels(path).tobytes() for path in out}) == 3


def test_a_mask_keeps_exactly_what_is_black_and_paints_what_is_white(edit, pixels, record):
    assert edit("one", "--mask", "mask.png", "--out", "a.png")[0] == 0
    painted = MASK > 0
    assert np.array_equal(pixels("a.png")[~painted], GREY[~painted])
    assert (pixels("a.png")[painted] != GREY[painted]).mean() > 0.9
    facts = record("a.json")["edit"]
    assert (facts["strength"], facts["mask"]["path"]) == (1.0, "mask.png")
    assert facts["resample"] == 4
    assert not {"sampler", "stochasticity"} & record("a.json")["sampling"]["sr1"].keys()


def test_the_record_knows_picture_and_mask_by_their_content(edit, tmp_path, record):
    import hashlib

    edit("one", "--mask", "mask.png", "--out", "a.png")
    for key, name in (("image", "seven.png"), ("mask", "mask.png")):
        wanted = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert record("a.json")["edit"][key]["sha256"] == wanted


@pytest.mark.parametrize("words", [["--strength", "0.3"], ["--mask", "mask.png"]])
def test_an_edit_is_made_again_from_its_record_alone(edit, imagen, pixels, record, words):
    edit("one", "--seed", "8", "--steps", "4", *words, "--out", "a.png")
    facts = record("a.json")
    done, (image,) = facts["edit"], facts["images"]
    words = [done["image"]["path"], image["prompt"], "--seed", str(image["seed"])]
    words += ["--strength", str(done["strength"])]
    words += ["--mask", done["mask"]["path"]] if done["mask"] else []
    words += [
        f"--set={member}.{key}={'null' if value is None else value}"
        for member, keys in facts["sampling"].items()
        for key, value in keys.items()
        if key != "size"
    ]
    assert imagen("edit", *words, "--out", "b.png")[0] == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_large_photo_in_colour_is_cut_and_scaled_for_a_wide_cascade(
    imagen, colour_folder, tmp_path, png, pixels
):
    photo = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "photo.jpg").write_bytes(png(photo, "JPEG"))
    words = ["photo.jpg", "x", "--strength", "0.001", "--out", "a.png"]
    assert imagen("edit", *words, cascade_folder=colour_folder)[0] == 0
    assert pixels("a.png").shape == (16, 24, 3)


def test_an_edit_may_stop_at_a_smaller_member(edit, folder, pixels):
    assert edit("one", "--until", "base", "--strength", "0.001", "--out", "a.png")[0] == 0
    assert pixels("a.png").shape == (8, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--strength", "0"], "--strength 0 is not in (0, 1]\n\nhint: 1 starts from noise"),
        (["x", "--strength", "1.5"], "--strength 1.5 is not in (0, 1]"),
        (["x", "--strength", "nan"], "--strength nan is not in (0, 1]"),
        (["x", "--strength", "1"], "--strength 1 without --mask starts from noise alone"),
        (["x", "--mask", "no.png"], "picture `no.png` does not exist"),
        ([], "no prompt was given"),
    ],
)
def test_errors_of_a_user_are_told_before_anything_is_loaded(edit, words, message):
    code, _, err = edit(*words, "--out", "a.png", cascade_folder="/no/cascade")
    assert code == 2
    assert err.startswith(f"error: {message}")


def test_what_a_cascade_cannot_do_is_told_before_its_weights_are_read(
    edit, imagen, tmp_path, png, monkeypatch
):
    monkeypatch.setattr(cascade.Cascade, "load", None)  # would raise TypeError
    (tmp_path / "small.png").write_bytes(png(GREY[:12]))
    code, _, err = imagen("edit", "small.png", "x", "--out", "a.png")
    assert code == 2
    assert err.startswith(
        "error: picture `small.png`: image of 12 px is smaller than 16 px\n\nhint"
    )
    code, _, err = edit("x", "--mask", "small.png", "--out", "a.png")
    assert (code, err.splitlines()[0]) == (
        2, "error: mask `small.png` is 16 x 12 px, picture `seven.png` 16 x 16 px"
    )  # fmt: skip
    code, _, err = edit("x", "--mask", "mask.png", "--sampler", "ddim", "--out", "a.png")
    assert (code, "has no effect in a masked edit" in err) == (2, True)


def test_an_edit_of_another_picture_mask_or_strength_is_not_gone_on_with(edit, tmp_path, png):
    words = ["one", "--mask", "mask.png", "--strength", "0.5", "--out", "many/"]
    assert edit(*words)[0] == 0
    assert edit(*words, "--resume") == (0, [], "")

    def refused(*words):
        code, _, err = edit(*words, "--resume")
        return code == 2 and "was made by another command" in err

    assert refused("one", "--mask", "mask.png", "--strength", "0.7", "--out", "many/")
    assert refused("one", "--strength", "0.5", "--out", "many/")
    (tmp_path / "mask.png").write_bytes(png(255 - MASK))
    assert refused(*words)
    (tmp_path / "mask.png").write_bytes(png(MASK))
    (tmp_path / "seven.png").write_bytes(png(255 - GREY))
    assert refused(*words)
