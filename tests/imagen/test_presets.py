import re
from pathlib import Path

import pytest
import torch

from imagen.errors import ConfigError
from imagen.network.unet import build
from imagen.presets import CASCADES, PRESETS, find
from imagen.project import check_captioned, check_chain
from imagen.text.config import TextConfig


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_exactly_the_parameters_it_says(name):
    with torch.device("meta"):
        net = build(PRESETS[name].member.network)
    assert sum(weight.numel() for weight in net.parameters()) == PRESETS[name].parameters


@pytest.mark.parametrize("name", CASCADES)
def test_the_members_of_a_cascade_chain_and_share_an_encoder(name):
    cascade = CASCADES[name]
    check_chain(cascade.members, TextConfig(encoder=cascade.encoder))
    check_captioned(cascade.members)
    assert {PRESETS[preset].encoder for preset in cascade.presets} == {cascade.encoder}


def short(parameters):
    """Return a number of weights in three digits, as the README has it; tiny ones in two."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.2f} B"
    return f"{parameters / 1e6:.{1 if parameters < 1e7 else 0}f} M"


@pytest.mark.parametrize("name", CASCADES)
def test_the_readme_lists_the_members_of_a_cascade_and_their_weights(name):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    presets = CASCADES[name].presets
    members = ", ".join(f"`{preset}`" for preset in presets)
    weights = " + ".join(short(PRESETS[preset].parameters) for preset in presets)
    assert re.search(rf"^\| `{name}` \| .* \| {members} \| {re.escape(weights)} \|$", readme, re.M)


def test_every_preset_is_in_one_cascade():
    used = [name for cascade in CASCADES.values() for name in cascade.presets]
    assert sorted(used) == sorted(PRESETS)


def test_the_paper_presets_have_the_hyper_parameters_of_appendix_f():
    base, sr256, sr1024 = (PRESETS[name].member for name in ("base64", "sr256", "sr1024"))
    assert (base.size, sr256.size, sr1024.size) == (64, 256, 1024)
    assert base.network.widths == tuple(512 * multiplier for multiplier in (1, 2, 3, 4))
    assert base.network.blocks == (3, 3, 3, 3)
    assert base.network.self_attention == base.network.cross_attention == (False, True, True, True)
    assert (base.network.head_dim, base.network.dropout) == (64, 0)
    assert sr256.network.widths == sr1024.network.widths == (128, 256, 512, 1024)
    assert sr256.network.blocks == (2, 4, 8, 8)
    assert sr256.network.self_attention == sr256.network.cross_attention
    assert sr256.network.cross_attention == (False, False, False, True)
    assert sr256.network.widths[-1] // sr256.network.head_dim == 8
    assert not any(sr1024.network.self_attention)
    assert sr1024.network.cross_attention == (False, False, False, True)
    schedules = [member.diffusion.schedule for member in (base, sr256, sr1024)]
    assert schedules == ["cosine", "cosine", "linear"]
    assert {member.network.text_dim for member in (base, sr256, sr1024)} == {4096}
    counts = [PRESETS[name].parameters for name in ("base64", "sr256", "sr1024")]
    assert counts == pytest.approx([2e9, 600e6, 400e6], rel=0.06)


def test_presets_trained_on_crops_have_no_attention_that_sees_the_size():
    crops = {name for name, preset in PRESETS.items() if preset.crop_px}
    assert crops == {"sr1024", "sr1024-l", "sr1024-m", "sr1024-s"}
    for preset in PRESETS.values():
        sees = any(preset.member.network.self_attention)
        assert sees == (not preset.crop_px)
        assert preset.crop_px % preset.member.network.factor == 0


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no preset `base46`\n\nhint: did you mean `base64`\?"):
        find("base46")
    with pytest.raises(ConfigError, match="hint: presets: base64, sr256"):
        find("unicorn")
