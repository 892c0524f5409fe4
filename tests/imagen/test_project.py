import dataclasses

import pytest

from imagen.config import build
from imagen.data.resize import Target
from imagen.errors import ConfigError
from imagen.project import DataConfig, ProjectConfig

NETWORK = {
    "channels": 1,
    "widths": [8, 16],
    "blocks": [1, 1],
    "self_attention": [False, False],
    "cross_attention": [False, False],
    "text_dim": 256,
    "cond_dim": 16,
}


def tree():
    """Return the smallest cascade of two members."""
    return {
        "name": "toy",
        "out": "runs/toy",
        "members": {
            "base": {"size": 8, "network": {"kind": "base", **NETWORK}},
            "sr1": {"size": 32, "network": {"kind": "efficient", **NETWORK}},
        },
    }


def test_everything_lives_below_out():
    config = build(ProjectConfig, tree())
    assert config.tars == "runs/toy/data"
    assert config.index == "runs/toy/index"
    assert config.embeddings == "runs/toy/embeddings"
    assert config.prepared_dir("sr1") == "runs/toy/prepared/sr1"
    assert config.run_dir("sr1") == "runs/toy/sr1"
    assert config.cascade == "runs/toy/cascade"
    assert config.evals == "runs/toy/eval"


def test_tars_that_are_there_already_are_used_in_place():
    config = dataclasses.replace(
        build(ProjectConfig, tree()), data=DataConfig(tars="gs://bucket/laion")
    )
    assert config.tars == "gs://bucket/laion"


def test_a_member_is_conditioned_on_the_size_before_it():
    config = build(ProjectConfig, tree())
    assert config.previous_shape("base") is None
    assert config.previous_shape("sr1") == (8, 8)


def test_images_are_prepared_at_a_members_size_only_when_asked():
    config = build(ProjectConfig, {**tree(), "data": {"prepare": True}})
    assert config.target("sr1") == Target(shape=(32, 32), channels=1)
    assert config.data.prepare
    assert not build(ProjectConfig, tree()).data.prepare


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_of_32_bits_is_refused(seed):
    with pytest.raises(ConfigError, match=f"seed {seed} is not in"):
        build(ProjectConfig, {**tree(), "seed": seed})


@pytest.mark.parametrize("heldout", [-0.1, 1.0])
def test_a_held_out_share_that_leaves_no_sense_is_refused(heldout):
    with pytest.raises(ConfigError, match=f"heldout {heldout} is not in"):
        build(ProjectConfig, {**tree(), "data": {"heldout": heldout}})


@pytest.mark.parametrize("names", [[], ["sr1"], ["sr1", "base"], ["base", "sr2"], ["base", "top"]])
def test_members_that_are_no_cascade_are_refused(names):
    members = tree()["members"]
    chosen = {name: members.get(name, members["sr1"]) for name in names}
    with pytest.raises(ConfigError, match=r"a cascade has base, sr1, sr2 in this order"):
        build(ProjectConfig, {**tree(), "members": chosen})


@pytest.mark.parametrize("size", [8, 4])
def test_a_cascade_that_does_not_grow_is_refused(size):
    config = tree()
    config["members"]["sr1"]["size"] = size
    with pytest.raises(ConfigError, match=rf"member sizes \[8, {size}\] do not grow"):
        build(ProjectConfig, config)


def test_members_may_be_wider_than_high():
    config = tree()
    config["members"]["base"]["size"] = [8, 16]
    config["members"]["sr1"]["size"] = [32, 64]
    assert build(ProjectConfig, config).previous_shape("sr1") == (8, 16)


def test_a_cascade_that_grows_in_one_direction_only_is_refused():
    config = tree()
    config["members"]["sr1"]["size"] = [8, 16]
    with pytest.raises(ConfigError, match=r"member sizes \[8, \[8, 16\]\] do not grow"):
        build(ProjectConfig, config)


def test_members_of_different_aspect_ratios_are_refused():
    config = tree()
    config["members"]["sr1"]["size"] = [16, 32]
    with pytest.raises(ConfigError, match=r"sr1 is 16x32 px, .* ratio of base, 8 px") as err:
        build(ProjectConfig, config)
    assert "multiply both sides by one number" in str(err.value.hint)


def test_members_without_text_are_allowed_beside_any_encoder():
    config = tree()
    config["members"]["sr1"]["network"]["text_dim"] = 0
    assert build(ProjectConfig, config).members["sr1"].network.text_dim == 0


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("channels", 2, r"images of 1 or 3 channels"),
        ("num_classes", 10, "captioned images has no class labels"),
        ("image_channels", 3, "captioned images has no second image"),
    ],
)
def test_what_captioned_images_do_not_have_is_refused_with_the_way_out(key, value, told):
    config = tree()
    for member in config["members"].values():
        member["network"][key] = value
    with pytest.raises(
        ConfigError, match=rf"member base has network\.{key} {value}.*{told}"
    ) as err:
        build(ProjectConfig, config)
    assert "imagen.member.loss()" in str(err.value.hint)


def test_members_of_different_channels_are_refused():
    config = tree()
    config["members"]["sr1"]["network"]["channels"] = 3
    with pytest.raises(ConfigError, match=r"members differ in `network\.channels`"):
        build(ProjectConfig, config)


@pytest.mark.parametrize(("member", "kind"), [("base", "efficient"), ("sr1", "base")])
def test_a_member_with_the_network_of_the_other_kind_is_refused(member, kind):
    config = tree()
    config["members"][member]["network"]["kind"] = kind
    with pytest.raises(ConfigError, match=rf"member {member} has network\.kind '{kind}'"):
        build(ProjectConfig, config)


def test_a_text_width_that_is_not_the_encoders_is_refused_with_the_override_that_mends_it():
    config = tree()
    config["members"]["sr1"]["network"]["text_dim"] = 64
    with pytest.raises(ConfigError, match=r"text_dim 64, the encoder tiny-t5 is 256 wide") as err:
        build(ProjectConfig, config)
    assert err.value.hint == "set members.sr1.network.text_dim=256"


def test_a_typo_four_levels_deep_is_refused_with_the_key_that_was_meant():
    config = tree()
    config["members"]["base"]["network"]["widhts"] = [8]
    with pytest.raises(ConfigError, match=r"unknown key `members\.base\.network\.widhts`") as err:
        build(ProjectConfig, config)
    assert err.value.hint == "did you mean `widths`?"


def test_a_token_limit_without_room_for_text_is_refused():
    with pytest.raises(ConfigError, match="max_tokens 1 leaves no room"):
        build(ProjectConfig, {**tree(), "text": {"max_tokens": 1}})
