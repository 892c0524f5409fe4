from pathlib import Path

import numpy as np
import pytest

from imagen import cascade
from imagen.cli import making
from imagen.cli.arguments import KEYS
from imagen.data.images import to_uint8
from imagen.diffusion.samplers import SAMPLERS


@pytest.fixture
def sample(imagen):
    return lambda *words, **keys: imagen("sample", *words, **keys)


def test_one_prompt_makes_one_picture_of_exact_pixels_and_its_provenance(
    sample, folder, pixels, record
):
    assert sample("seven", "--seed", "5", "--out", "seven.png") == (0, ["seven.png"], "")
    alone = cascade.Cascade.load(folder).sample(["seven"], [5])["sr1"]
    assert np.array_equal(pixels("seven.png"), to_uint8(alone)[0, 0].numpy())
    facts = record("seven.json")
    assert facts["images"] == [{"prompt": "seven", "seed": 5}]
    assert facts["sampling"]["base"]["steps"] == 3
    assert facts["sampling"]["sr1"].keys() == {"size", *KEYS}
    assert facts["sampling"]["base"].keys() == {"size", *KEYS} - {"aug_level"}
    assert facts["precision"] == "fp32"
    assert (facts["edit"], facts["negative"]) == (None, None)
    assert facts["cascade_path"] == folder
    assert facts["cascade"]["fingerprint"] == cascade.Cascade.load(folder).fingerprint
    assert facts["cascade"]["members"]["sr1"]["images_seen"] == 64
    assert facts["seconds"] > 0


def test_several_prompts_make_one_labelled_grid(sample, pixels, record):
    code, out, _ = sample("seven", "", "--count", "3", "--out", "grid.png")
    assert (code, out) == (0, ["grid.png"])
    height, width = pixels("grid.png").shape[:2]
    assert width > 3 * 96
    assert 2 * 96 < height < 3 * 96
    images = record("grid.json")["images"]
    assert [i["seed"] for i in images] == [0, 1, 2, 0, 1, 2]
    assert images[3]["prompt"] == ""


def test_a_folder_gets_single_pictures_named_by_number_and_prompt(sample, pixels, record):
    code, out, _ = sample("a handwritten seven!", "", "--count", "2", "--out", "new/")
    assert code == 0
    assert out == [
        "new/000-a-handwritten-seven.png",
        "new/001-a-handwritten-seven.png",
        "new/002-no-text.png",
        "new/003-no-text.png",
    ]
    assert pixels(out[3]).shape == (16, 16)
    assert record("new/003-no-text.json")["images"] == [{"prompt": "", "seed": 1}]


def test_pictures_in_colour_that_are_no_squares(sample, colour_folder, pixels):
    for words in (["x", "--out", "a.png"], ["x", "y", "--members", "--out", "grid.png"]):
        assert sample(*words, cascade_folder=colour_folder)[0] == 0
    assert pixels("a.png").shape == (16, 24, 3)
    assert pixels("grid.png").shape[1] > 2 * 96


def test_a_picture_does_not_depend_on_what_is_sampled_with_it(sample, monkeypatch, pixels):
    monkeypatch.setattr(making, "BATCH_IMAGES", 2)
    sample("one", "two", "seven", "--out", "many")
    sample("seven", "--out", "alone.png")
    difference = pixels("many/002-seven.png").astype(int) - pixels("alone.png")
    assert np.abs(difference).max() <= 1


def test_members_are_shown_side_by_side(sample, pixels):
    sample("seven", "--members", "--out", "both.png")
    assert pixels("both.png").shape[1] > 2 * 96
    code, out, _ = sample("one", "two", "--members", "--out", "each/")
    assert code == 0
    assert all(pixels(path).shape[1] > 2 * 96 for path in out)


@pytest.mark.parametrize(
    ("words", "sampled"),
    [
        (["--steps", "1", "--sampler", "ddim"], {"sr1": {"steps": 1, "sampler": "ddim"}}),
        (["--guidance-scale", "1"], {"base": {"guidance_scale": 1}, "sr1": {"guidance_scale": 1}}),
        (["--aug-level", "0.5"], {"sr1": {"aug_level": 0.5}}),
        (["--set", "sr1.guidance_scale=9"], {"base": {"guidance_scale": 3}, "sr1": {}}),
        (
            ["--steps", "2", "--set", "base.steps=5", "--set", "base.guidance_interval=[0.1, 0.8]"],
            {"base": {"steps": 5, "guidance_interval": [0.1, 0.8]}, "sr1": {"steps": 2}},
        ),
        (["--set", "base.threshold=static"], {"base": {"threshold": "static"}}),
        (
            [
                "--set",
                "spacing=karras",
                "--set",
                "sr1.spacing=logsnr",
                "--set",
                "threshold_cap=1.5",
            ],
            {
                "base": {"spacing": "karras", "threshold_cap": 1.5},
                "sr1": {"spacing": "logsnr", "threshold_cap": 1.5},
            },
        ),
        (
            ["--sampler", "ddpm", "--set", "base.stochasticity=1"],
            {"base": {"stochasticity": 1, "sampler": "ddpm"}, "sr1": {"stochasticity": None}},
        ),
        (["--negative", "six"], {}),
    ],
)
def test_options_reach_the_sampler_and_the_record(sample, pixels, record, words, sampled):
    sample("seven", "--out", "a.png")
    assert sample("seven", *words, "--out", "b.png") == (0, ["b.png"], "")
    assert not np.array_equal(pixels("a.png"), pixels("b.png"))
    for member, keys in sampled.items():
        assert record("b.json")["sampling"][member].items() >= keys.items()
    assert record("b.json")["negative"] == ("six" if "--negative" in words else None)


def test_bf16_is_chosen_and_recorded(sample, pixels, record):
    for precision in ("fp32", "bf16"):
        name = f"{precision}.png"
        assert sample("seven", "--precision", precision, "--out", name)[0] == 0
        assert record(f"{precision}.json")["precision"] == precision
    difference = np.abs(pixels("fp32.png").astype(int) - pixels("bf16.png"))
    assert 0 < difference.mean() < 10


def test_an_empty_negative_prompt_is_recorded_as_none(sample, pixels, record):
    sample("seven", "--negative", "", "--out", "a.png")
    sample("seven", "--out", "b.png")
    assert record("a.json")["negative"] is None
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_every_sampler_draws(sample, pixels):
    pictures = {}  # euler without churn is ddim: one line in sigma / alpha
    for name in SAMPLERS:
        assert sample("seven", "--sampler", name, "--steps", "3", "--out", f"{name}.png")[0] == 0
        pictures[name] = pixels(f"{name}.png").tobytes()
    assert len(set(pictures.values())) == len(SAMPLERS) - 1


def test_sampling_stops_after_the_member_that_is_named(sample, folder, pixels, record):
    assert sample("seven", "--until", "base", "--out", "a.png")[0] == 0
    base = cascade.Cascade.load(folder).sample(["seven"], [0])["base"]
    assert np.array_equal(pixels("a.png"), to_uint8(base)[0, 0].numpy())
    assert list(record("a.json")["sampling"]) == ["base"]


def test_a_picture_is_made_again_from_its_record_alone(sample, pixels, record):
    words = ["seven", "--seed", "3", "--negative", "one", "--sampler", "heun", "--out", "a.png"]
    sample(*words, "--set", "base.guidance_scale=4", "--set", "sr1.threshold_cap=2")
    facts = record("a.json")
    (image,) = facts["images"]
    changes = [
        f"--set={member}.{key}={'null' if value is None else value}"
        for member, keys in facts["sampling"].items()
        for key, value in keys.items()
        if key != "size"
    ]
    words = [image["prompt"], "--seed", str(image["seed"]), "--negative", facts["negative"]]
    assert sample(*words, *changes, "--out", "b.png") == (0, ["b.png"], "")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert record("b.json")["sampling"] == facts["sampling"]


def test_the_command_of_a_record_makes_the_same_picture(sample, imagen, pixels, record, folder):
    sample("seven", "--seed", "3", "--steps", "2", "--out", "a.png")
    program, command, *words = record("a.json")["command"]
    assert program == "imagen"
    words = [word.replace("a.png", "b.png") for word in words[: words.index("--cascade")]]
    assert imagen(command, *words)[0] == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_prompts_file_adds_to_the_prompts_given(sample, tmp_path):
    (tmp_path / "p.txt").write_text("the digit 3\n\nfour\n")
    _, out, _ = sample("seven", "--prompts", "p.txt", "--out", "x/")
    assert out == ["x/000-seven.png", "x/001-the-digit-3.png", "x/002-four.png"]


def test_nothing_is_overwritten_unless_told_and_nothing_is_sampled(sample, tmp_path):
    (tmp_path / "seven.json").write_text("mine")
    code, out, err = sample("seven", "--out", "seven.png", cascade_folder="/no/cascade")
    assert (code, out) == (2, [])
    assert err.startswith("error: `seven.json` exists already; nothing was sampled\n\nhint: ")
    assert not (tmp_path / "seven.png").exists()
    assert sample("seven", "--out", "seven.png", "--overwrite")[0] == 0
    assert (tmp_path / "seven.json").read_text() != "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: no prompt was given"),
        (["x", "--count", "0"], "error: --count 0 is less than 1"),
        (["x", "--seed", "-1"], "error: --seed -1 and the 1 from it are not in"),
        (["x", "--sampler", "plms"], "error: sampler 'plms' is unknown\n\nhint: samplers: ddpm, "),
        (["x", "--steps", "0"], "error: steps 0 is less than 1"),
        (["x", "--aug-level", "2"], "error: aug_level 2.0 is not in [0, 1]"),
        (["--prompts", "no.txt"], "error: prompts file `no.txt` does not exist"),
        (["x", "--out", "a.jpg"], "error: --out a.jpg ends in .jpg, pictures are written as PNG"),
        (["x", "--set", "base.steps"], "error: --set base.steps is not of the form KEY=VALUE or"),
        (["x", "--set", "base.=1"], "error: --set base.=1 is not of the form KEY=VALUE or MEMBER"),
        (["x", "--set", ".steps=1"], "error: --set .steps=1 is not of the form KEY=VALUE or"),
        (["x", "--set", "stepz=1"], "error: --set stepz=1: members have no sampling key `stepz`"),
        (["x", "--steps", "2", "--set", "steps=1"], "error: `steps` is set twice for all members"),
        (["x", "--set", "base.stepz=1"],
         "error: --set base.stepz=1: members have no sampling key `stepz`\n\nhint: did you mean"),
        (["x", "--set", "base.q=1"],
         "error: --set base.q=1: members have no sampling key `q`\n\nhint: keys: sampler, steps,"),
        (["x", "--set", "base.steps=[1"], "error: --set base.steps=[1: not valid YAML"),
    ],
)  # fmt: skip
def test_errors_of_a_user_are_told_before_anything_is_loaded(sample, words, message):
    out = [] if "--out" in words else ["--out", "a.png"]
    code, printed, err = sample(*words, *out, cascade_folder="/no/cascade")
    assert (code, printed) == (2, [])
    assert err.startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--until", "sr2"], "--until sr2: the cascade has no member sr2\n\nhint: members: base,"),
        (["--set", "sr9.steps=1"], "--set sr9.steps=1: the cascade has no member sr9"),
        (["--set", "sr1.steps=many"], "sampling of sr1: `steps`: Input should be a valid integer"),
        (["--set", "sr1.stochasticity=1"], "sampling of sr1: `(top level)`: stochasticity 1"),
        (["--guidance-scale", "1", "--negative", "x"], "negative prompt 'x' has no effect"),
        (["--until", "base", "--set", "sr1.steps=2"], "options.members.sr1 has no effect: only"),
        (["--set", "base.aug_level=0.2"], "aug_level 0.2 has no effect on base, which has no low"),
        (["--set", "threshold=hard"], "sampling of base: `threshold`: Input should be 'dynamic'"),
    ],
)
def test_what_a_cascade_cannot_do_is_told_before_its_weights_are_read(
    sample, words, message, monkeypatch
):
    monkeypatch.setattr(cascade.Cascade, "load", None)  # would raise TypeError
    code, _, err = sample("x", *words, "--out", "a.png")
    assert code == 2
    assert err.startswith(f"error: {message}")


def test_a_folder_that_is_no_cascade_is_told_with_what_makes_one(sample, tmp_path):
    code, _, err = sample("x", "--out", "a.png", cascade_folder=str(tmp_path))
    assert code == 2
    assert "is no cascade" in err
    assert "hint: `python -m eval CONFIG` assembles one" in err


def test_progress_is_drawn_on_a_terminal(sample, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    _, out, err = sample("seven", "--out", "seven.png")
    assert out == ["seven.png"]
    assert "sr1 (2 of 2)" in err
    assert "100%" in err


def test_a_stopped_folder_of_pictures_goes_on_where_it_was(sample, monkeypatch):
    words = ("one", "two", "seven", "--count", "8", "--out", "many")
    whole = sample(*words)[1]
    assert len(whole) == 24
    before = {path: Path(path).read_bytes() for path in whole}
    Path(whole[3]).unlink()
    Path(whole[20].replace(".png", ".json")).unlink()
    code, out, err = sample(*words, "--resume")
    assert (code, out) == (0, [whole[3], whole[20]]), err
    assert {path: Path(path).read_bytes() for path in whole} == before
    monkeypatch.setattr(cascade.Cascade, "load", None)  # nothing is left: not even loaded
    assert sample(*words, "--resume") == (0, [], "")


def test_pictures_of_another_command_are_not_gone_on_with(sample):
    sample("one", "two", "--out", "many/")
    code, _, err = sample("one", "two", "--seed", "5", "--out", "many/", "--resume")
    assert code == 2
    assert "was made by another command" in err
    code, _, err = sample("one", "two", "--out", "grid.png", "--resume")
    assert code == 2
    assert "--resume wants a folder" in err


def test_what_is_there_is_found_by_one_listing(sample, monkeypatch):
    sample("one", "two", "--out", "many/")
    from imagen import storage

    looked_up, exists = [], storage.exists

    def noted(path):
        looked_up.append(path)
        return exists(path)

    monkeypatch.setattr(storage, "exists", noted)
    assert sample("one", "two", "--out", "many/", "--resume") == (0, [], "")
    assert not [path for path in looked_up if path.startswith("many")]


def test_pictures_with_other_members_in_them_are_of_another_command(sample):
    sample("one", "two", "--out", "many/")
    code, _, err = sample("one", "two", "--out", "many/", "--members", "--resume")
    assert code == 2
    assert "was made by another command" in err
