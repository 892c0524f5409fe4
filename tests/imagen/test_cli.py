import json

import numpy as np
import pytest
import torch
from PIL import Image

from imagen import cascade, cli, snapshot
from imagen import config as configs
from imagen.data.images import to_uint8
from imagen.member import MemberConfig
from imagen.network.unet import build
from imagen.text.config import TextConfig
from imagen.text.encoder import encoder_fingerprint

SHARED = {"channels": 1, "text_dim": 256, "cond_dim": 16, "head_dim": 16}
MEMBERS = {
    "base": {
        "size": 8,
        "network": SHARED
        | {
            "kind": "base",
            "widths": [16],
            "blocks": [1],
            "self_attention": [False],
            "cross_attention": [True],
        },
        "sampling": {"steps": 3},
    },
    "sr1": {
        "size": 16,
        "network": SHARED
        | {
            "kind": "efficient",
            "widths": [16, 16],
            "blocks": [1, 1],
            "self_attention": [False, False],
            "cross_attention": [False, True],
        },
        "sampling": {"steps": 2},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained cascade of random weights."""
    root = tmp_path_factory.mktemp("cascade")
    text = TextConfig()
    code = encoder_fingerprint(text)
    torch.manual_seed(0)
    for name, tree in MEMBERS.items():
        config = configs.build(MemberConfig, tree)
        state = build(config.network).state_dict()
        state = {key: value + 0.1 * torch.randn_like(value) for key, value in state.items()}
        facts = {"images_seen": 64, "encoder_fingerprint": code}
        snapshot.save(str(root / name), name, config, state, facts)
    cascade.assemble(str(root / "all"), {n: str(root / n) for n in MEMBERS}, text, code)
    return str(root / "all")


@pytest.fixture
def sample(folder, tmp_path, monkeypatch, capsys):
    """Run `imagen sample` in an empty folder; return (exit code, stdout lines, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words, cascade_folder=folder):
        with pytest.raises(SystemExit) as caught:
            cli.main(["sample", "--cascade", cascade_folder, *words])
        out, err = capsys.readouterr()
        return caught.value.code, out.splitlines(), err

    return run


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_one_prompt_makes_one_picture_of_exact_pixels_and_its_provenance(sample, folder):
    assert sample("seven", "--seed", "5", "--out", "seven.png") == (0, ["seven.png"], "")
    alone = cascade.Cascade.load(folder).sample(["seven"], [5])["sr1"]
    assert np.array_equal(pixels("seven.png"), to_uint8(alone)[0, 0].numpy())
    with open("seven.json") as file:
        record = json.load(file)
    assert record["images"] == [{"prompt": "seven", "seed": 5}]
    assert record["sampling"]["base"]["steps"] == 3
    assert record["cascade_path"] == folder
    assert record["cascade"]["fingerprint"] == cascade.Cascade.load(folder).fingerprint
    assert record["cascade"]["members"]["sr1"]["images_seen"] == 64
    assert record["seconds"] > 0


def test_several_prompts_make_one_labelled_grid(sample):
    code, out, _ = sample("seven", "", "--count", "3", "--out", "grid.png")
    assert (code, out) == (0, ["grid.png"])
    height, width = pixels("grid.png").shape[:2]
    assert width > 3 * 96
    assert 2 * 96 < height < 3 * 96
    with open("grid.json") as file:
        images = json.load(file)["images"]
    assert [i["seed"] for i in images] == [0, 1, 2, 0, 1, 2]
    assert images[3]["prompt"] == ""


def test_a_folder_gets_single_pictures_named_by_number_and_prompt(sample, folder):
    code, out, _ = sample("a handwritten seven!", "", "--count", "2", "--out", "new/")
    assert code == 0
    assert out == [
        "new/000-a-handwritten-seven.png",
        "new/001-a-handwritten-seven.png",
        "new/002-no-text.png",
        "new/003-no-text.png",
    ]
    assert pixels(out[3]).shape == (16, 16)
    with open("new/003-no-text.json") as file:
        assert json.load(file)["images"] == [{"prompt": "", "seed": 1}]


def test_a_picture_does_not_depend_on_what_is_sampled_with_it(sample, monkeypatch):
    monkeypatch.setattr(cli, "BATCH_IMAGES", 2)
    sample("one", "two", "seven", "--out", "many")
    sample("seven", "--out", "alone.png")
    difference = pixels("many/002-seven.png").astype(int) - pixels("alone.png")
    assert np.abs(difference).max() <= 1


def test_members_are_shown_side_by_side(sample):
    sample("seven", "--members", "--out", "both.png")
    assert pixels("both.png").shape[1] > 2 * 96
    code, out, _ = sample("one", "two", "--members", "--out", "each/")
    assert code == 0
    assert all(pixels(path).shape[1] > 2 * 96 for path in out)


def test_options_reach_the_sampler_and_the_record(sample):
    sample("seven", "--out", "a.png")
    sample("seven", "--steps", "1", "--sampler", "ddim", "--guidance-scale", "1", "--out", "b.png")
    assert not np.array_equal(pixels("a.png"), pixels("b.png"))
    with open("b.json") as file:
        used = json.load(file)["sampling"]["sr1"]
    assert (used["steps"], used["sampler"], used["guidance_scale"]) == (1, "ddim", 1.0)


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
        (["x", "--sampler", "euler"], "error: sampler 'euler' is unknown\n\nhint: samplers: ddim"),
        (["x", "--steps", "0"], "error: steps 0 is less than 1"),
        (["--prompts", "no.txt"], "error: prompts file `no.txt` does not exist"),
        (["x", "--out", "a.jpg"], "error: --out a.jpg ends in .jpg, pictures are written as PNG"),
    ],
)
def test_errors_of_a_user_are_told_before_anything_is_loaded(sample, words, message):
    out = [] if "--out" in words else ["--out", "a.png"]
    code, printed, err = sample(*words, *out, cascade_folder="/no/cascade")
    assert (code, printed) == (2, [])
    assert err.startswith(message)


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
