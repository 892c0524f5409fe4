"""What a person writes: `import imagen` and three lines."""

import dataclasses
import importlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

import imagen
from imagen import photo, snapshot
from imagen.cascade import assemble
from imagen.data.images import to_uint8
from imagen.errors import ConfigError
from imagen.text.config import TextConfig
from imagen.text.encoder import load_encoder


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TextConfig())


@pytest.fixture
def folder(toy, encoder, tmp_path, monkeypatch):
    """Work where `runs/digits/cascade` is a cascade that draws 16 x 16 pixels in grey."""
    monkeypatch.chdir(tmp_path)
    members = {"base": toy.BASE, "sr1": toy.SR}
    facts = {"images_seen": 1, "encoder_fingerprint": encoder.fingerprint}
    for name, member in members.items():
        quick = dataclasses.replace(member, sampling=imagen.SamplingConfig(steps=3))
        config = toy.with_network(quick, text_dim=encoder.dim)
        snapshot.save(f"runs/{name}", name, config, toy.awake(config).state_dict(), facts)
    snapshots = {name: f"runs/{name}" for name in members}
    assemble("runs/digits/cascade", snapshots, encoder.text, encoder.fingerprint)
    return "runs/digits/cascade"


def examples():
    """Return the indented code of the package's docstring."""
    lines = imagen.__doc__.splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))


def test_the_lines_of_the_docstring_draw_and_edit_a_picture(folder):
    code = examples()
    assert code.count("\n") < 6
    exec(code, {})
    cascade = imagen.Cascade.load(folder)
    drawn = cascade.sample(["a handwritten seven"], [3])["sr1"]
    with Image.open("seven.png") as image:
        assert np.array_equal(np.asarray(image), to_uint8(drawn)[0, 0].numpy())
    edit = imagen.Edit(image=photo.image(photo.read("seven.png"), (16, 16), 1), strength=0.4)
    edited = cascade.sample(["the digit 1"], [0], edit=edit)["sr1"]
    with Image.open("one.png") as image:
        assert np.array_equal(np.asarray(image), to_uint8(edited)[0, 0].numpy())


def test_a_picture_is_drawn_as_the_options_say(folder):
    cascade = imagen.Cascade.load(folder)
    options = imagen.SampleOptions(last="base", sampling={"spacing": "karras"})
    small = cascade.draw("seven", 1, options)
    assert small.size == (8, 8)
    assert np.array_equal(np.asarray(small), np.asarray(cascade.draw("seven", 1, options)))
    plain = cascade.draw("seven", 1, imagen.SampleOptions(last="base"))
    assert not np.array_equal(np.asarray(small), np.asarray(plain))


def test_colour_and_labels_are_drawn_and_other_channels_refused(toy, encoder):
    from imagen.cascade import Extras, Member

    keys = {"text_dim": 0, "cross_attention": (False, False), "num_classes": 3}
    for channels in (3, 2):
        config = toy.with_network(toy.BASE, channels=channels, **keys)
        members = {"base": Member(config, toy.awake(config), {})}
        cascade = imagen.Cascade(members, encoder, "")
        extras = Extras(labels=torch.tensor([2]))
        if channels == 3:
            assert cascade.draw("", extras=extras).mode == "RGB"
            continue
        with pytest.raises(ConfigError, match=r"draws 2 channels, pictures have 1, 3 or 4"):
            cascade.draw("", extras=extras)


@pytest.mark.parametrize("name", imagen.__all__)
def test_a_name_of_the_package_is_the_one_of_its_module(name):
    home = importlib.import_module(imagen._HOMES[name])
    assert getattr(imagen, name) is getattr(home, name)
    assert name in dir(imagen)


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AttributeError, match="module 'imagen' has no attribute 'Cascades'"):
        _ = imagen.Cascades


def test_importing_the_package_needs_no_torch():
    code = (
        "import sys, imagen; print(*sorted({'torch', 'numpy', 'PIL', 'pydantic'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
