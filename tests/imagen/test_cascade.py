import dataclasses
import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from imagen import snapshot, storage
from imagen.cascade import Cascade, Extras, Member, SampleOptions, assemble
from imagen.errors import CheckpointError, ConfigError
from imagen.member import MemberConfig, SamplingConfig
from imagen.network.unet import UNetConfig, build
from imagen.text.config import TextConfig
from imagen.text.encoder import load_encoder

TEXT = TextConfig(max_tokens=16)
NETWORK = UNetConfig(
    kind="base", channels=1, widths=(8, 16), blocks=(1, 1), self_attention=(False, True),
    cross_attention=(False, True), text_dim=256, cond_dim=16, head_dim=8,
)  # fmt: skip
MEMBERS = {
    "base": MemberConfig(size=8, network=NETWORK, sampling=SamplingConfig(steps=3)),
    "sr1": MemberConfig(
        size=16,
        network=dataclasses.replace(NETWORK, kind="efficient"),
        sampling=SamplingConfig(steps=2),
    ),
}
PROMPTS = ["seven", "a handwritten three, twice", "", "the digit nine"]


def awake(config, seed=0):
    torch.manual_seed(seed)
    net = build(config.network).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def save_member(folder, name, seed, encoder_fingerprint, config=None, **facts):
    config = config or MEMBERS[name]
    provenance = {"images_seen": 1, "encoder_fingerprint": encoder_fingerprint} | facts
    snapshot.save(str(folder), name, config, awake(config, seed).state_dict(), provenance)


@pytest.fixture(scope="module")
def fingerprint():
    return load_encoder(TEXT).fingerprint


@pytest.fixture
def folder(tmp_path, fingerprint):
    for name in MEMBERS:
        save_member(tmp_path / name, name, 0, fingerprint)
    snapshots = {name: str(tmp_path / name) for name in MEMBERS}
    assemble(str(tmp_path / "cascade"), snapshots, TEXT, fingerprint)
    return tmp_path / "cascade"


def test_every_member_gives_images_in_its_size_and_range(folder):
    images = Cascade.load(str(folder)).sample(PROMPTS, [1, 2, 3, 4])
    assert [tuple(z.shape) for z in images.values()] == [(4, 1, 8, 8), (4, 1, 16, 16)]
    assert all(z.abs().max() <= 1 and z.isfinite().all() for z in images.values())


def test_same_seed_same_picture_alone_or_in_a_batch(folder):
    cascade = Cascade.load(str(folder))
    together = cascade.sample(PROMPTS, [5, 6, 7, 8])
    for i, prompt in enumerate(PROMPTS):
        alone = cascade.sample([prompt], [5 + i])
        for name in MEMBERS:
            torch.testing.assert_close(alone[name][0], together[name][i], atol=1e-4, rtol=0)


def test_seed_prompt_and_options_each_change_the_picture(folder):
    cascade = Cascade.load(str(folder))
    first = cascade.sample(["seven"], [1])["sr1"]
    others = [
        cascade.sample(["seven"], [2]),
        cascade.sample(["eight"], [1]),
        cascade.sample(["seven"], [1], SampleOptions(guidance_scale=7.0)),
        cascade.sample(["seven"], [1], SampleOptions(steps=4)),
        cascade.sample(["seven"], [1], SampleOptions(sampler="ddim")),
        cascade.sample(["seven"], [1], SampleOptions(aug_level=0.7)),
        cascade.sample(["seven"], [1], SampleOptions(negative="eight")),
        cascade.sample(["seven"], [1], SampleOptions(members={"sr1": {"threshold": "static"}})),
    ]
    assert all((other["sr1"] - first).abs().max() > 1e-3 for other in others)


def test_same_seed_same_picture_in_a_batch_of_sixteen_by_a_stochastic_sampler(folder):
    cascade = Cascade.load(str(folder))
    options = SampleOptions(sampler="ddpm", steps=4)
    prompts, seeds = PROMPTS * 4, range(40, 56)
    together = cascade.sample(prompts, seeds, options)
    for i in (0, 6, 15):
        alone = cascade.sample([prompts[i]], [seeds[i]], options)
        for name in MEMBERS:
            torch.testing.assert_close(alone[name][0], together[name][i], atol=1e-4, rtol=0)


def test_a_member_draws_the_same_whether_later_ones_follow(folder):
    cascade = Cascade.load(str(folder))
    whole, part = (
        cascade.sample(["seven"], [1], SampleOptions(last=last)) for last in (None, "base")
    )
    assert list(part) == ["base"]
    assert torch.equal(part["base"], whole["base"])


def test_an_empty_prompt_is_the_unconditional_picture(folder):
    cascade = Cascade.load(str(folder))
    empty, null = (
        cascade.sample([prompt], [1], SampleOptions(guidance_scale=scale))["sr1"]
        for prompt, scale in (("", 5.0), ("seven", 0.0))
    )
    torch.testing.assert_close(empty, null, atol=1e-4, rtol=0)


def test_an_empty_negative_prompt_is_no_negative_prompt(folder):
    cascade = Cascade.load(str(folder))
    empty, none, other = (
        cascade.sample(["seven"], [1], SampleOptions(negative=negative))["sr1"]
        for negative in ("", None, "eight")
    )
    assert torch.equal(empty, none)
    assert (other - none).abs().max() > 1e-3


def test_augmentation_levels_give_other_pictures_of_the_same_base_image(folder):
    cascade = Cascade.load(str(folder))
    levels = [0.0, 0.2, 0.5, 1.0]
    images = [cascade.sample(["seven"], [1], SampleOptions(aug_level=level)) for level in levels]
    assert all(torch.equal(image["base"], images[0]["base"]) for image in images)
    for one, other in pairwise(image["sr1"] for image in images):
        assert (one - other).abs().max() > 1e-2


def test_bf16_computes_the_same_picture_less_exactly(folder):
    cascade = Cascade.load(str(folder))
    exact, rough = (
        cascade.sample(["seven"], [1], SampleOptions(precision=precision, last="base"))["base"]
        for precision in ("fp32", "bf16")
    )
    assert rough.dtype == torch.float32
    assert 1e-4 < (rough - exact).abs().mean() < 0.05


def test_labels_and_images_reach_the_members_that_take_them(fingerprint):
    network = dataclasses.replace(NETWORK, num_classes=3, image_channels=1)
    config = MemberConfig(size=8, network=network, sampling=SamplingConfig(steps=2))
    cascade = Cascade({"base": Member(config, awake(config), {})}, load_encoder(TEXT), "")
    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)

    def sampled(label, image):
        extras = Extras(labels=torch.tensor([label]), images=image)
        return cascade.sample(["seven"], [1], extras=extras)["base"]

    first = sampled(0, image)
    assert torch.equal(sampled(0, image), first)
    assert (sampled(2, image) - first).abs().max() > 1e-3
    assert (sampled(0, -image) - first).abs().max() > 1e-3


def test_a_grown_picture_of_two_heights_and_widths_is_sampled(fingerprint):
    shapes = {"base": (8, 12), "sr1": (16, 24)}
    members = {}
    for name, shape in shapes.items():
        config = dataclasses.replace(MEMBERS[name], size=shape)
        members[name] = Member(config, awake(config), {})
    images = Cascade(members, load_encoder(TEXT), "").sample(["seven"], [1])
    assert {name: tuple(x.shape[2:]) for name, x in images.items()} == shapes


def test_steps_are_told_for_each_member(folder):
    told = []
    Cascade.load(str(folder)).sample(["seven"], [1], on_step=lambda *step: told.append(step))
    assert told == [("base", 1, 3), ("base", 2, 3), ("base", 3, 3), ("sr1", 1, 2), ("sr1", 2, 2)]


@pytest.mark.slow
def test_a_copy_samples_the_same_in_a_new_process(folder, tmp_path):
    moved = tmp_path / "elsewhere"
    os.rename(folder, moved)
    code = (
        "import sys, torch; from imagen.cascade import Cascade\n"
        "torch.set_num_threads(1)\n"
        "print(Cascade.load(sys.argv[1]).sample(['seven'], [3])['sr1'].double().sum().item())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(moved)], capture_output=True, text=True, check=True
    )
    here = Cascade.load(str(moved)).sample(["seven"], [3])["sr1"].double().sum().item()
    assert float(run.stdout) == pytest.approx(here, abs=1e-3)


def test_assembling_again_writes_nothing_and_new_weights_change_the_fingerprint(
    folder, tmp_path, fingerprint
):
    snapshots = {name: str(tmp_path / name) for name in MEMBERS}
    before = os.stat(folder / "cascade.json").st_mtime_ns
    first = assemble(str(folder), snapshots, TEXT, fingerprint)
    assert os.stat(folder / "cascade.json").st_mtime_ns == before
    save_member(tmp_path / "sr1", "sr1", 1, fingerprint)
    assert assemble(str(folder), snapshots, TEXT, fingerprint) != first
    assert Cascade.load(str(folder)).fingerprint != first


def test_cascade_lives_at_any_url(folder, tmp_path, fingerprint):
    snapshots = {name: str(tmp_path / name) for name in MEMBERS}
    assemble("memory://published/cascade", snapshots, TEXT, fingerprint)
    there = Cascade.load("memory://published/cascade").sample(["two"], [1])
    torch.testing.assert_close(there, Cascade.load(str(folder)).sample(["two"], [1]))


def test_a_snapshot_of_another_encoder_is_refused(folder, tmp_path):
    snapshots = {name: str(tmp_path / name) for name in MEMBERS}
    with pytest.raises(
        CheckpointError, match=r"was trained with encoder .*, not with 0123 \(tiny-t5\)"
    ):
        assemble(str(tmp_path / "other"), snapshots, TEXT, "0123")
    assert not storage.exists(str(tmp_path / "other" / "cascade.json"))


def test_a_member_without_text_is_of_no_encoder(tmp_path, fingerprint):
    network = dataclasses.replace(NETWORK, text_dim=0, cross_attention=(False, False))
    plain = dataclasses.replace(MEMBERS["base"], network=network)
    save_member(tmp_path / "base", "base", 0, None, plain)
    save_member(tmp_path / "sr1", "sr1", 0, fingerprint)
    snapshots = {name: str(tmp_path / name) for name in MEMBERS}
    assemble(str(tmp_path / "cascade"), snapshots, TEXT, fingerprint)
    images = Cascade.load(str(tmp_path / "cascade")).sample(["two"], [1])
    assert [tuple(z.shape) for z in images.values()] == [(1, 1, 8, 8), (1, 1, 16, 16)]


def test_a_folder_that_is_no_cascade_says_how_to_make_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no cascade.*\n\nhint: `python -m eval CONFIG`"):
        Cascade.load(str(tmp_path))


def test_damaged_weights_are_refused_by_name(folder):
    weights = next(folder.glob("sr1-*/*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"sr1-\w+/[\w-]+.safetensors` has .* checksum"):
        Cascade.load(str(folder))


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        (["a"], [1, 2], "1 prompts and 2 seeds"),
        ([], [], "0 prompts and 0 seeds"),
        (["a"], [-1], r"not in \[0, 2\^32\)"),
        ("abc", [1, 2, 3], r"prompts is 'abc' \(str\), not a list"),
    ],
)
def test_bad_requests_are_refused(folder, prompts, seeds, message):
    with pytest.raises(ConfigError, match=message):
        Cascade.load(str(folder)).sample(prompts, seeds)


def test_unknown_samplers_are_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match="sampler 'plms' is unknown\n\nhint: samplers: ddpm, ddim, dpm"
    ):
        SampleOptions(sampler="plms")


def test_weights_of_another_architecture_are_refused(tmp_path, fingerprint):
    network = dataclasses.replace(NETWORK, widths=(8, 24))
    other = awake(dataclasses.replace(MEMBERS["base"], network=network)).state_dict()
    provenance = {"images_seen": 1, "encoder_fingerprint": fingerprint}
    snapshot.save(str(tmp_path / "base"), "base", MEMBERS["base"], other, provenance)
    assemble(str(tmp_path / "cascade"), {"base": str(tmp_path / "base")}, TEXT, fingerprint)
    with pytest.raises(
        CheckpointError, match=r"do not fit the network(.|\n)*train the member again"
    ):
        Cascade.load(str(tmp_path / "cascade"))


@pytest.mark.parametrize("fault", ["untrained", "damaged"])
def test_a_later_member_that_is_refused_leaves_no_copy_of_an_earlier_one(
    tmp_path, fingerprint, fault
):
    save_member(tmp_path / "base", "base", 0, fingerprint)
    save_member(tmp_path / "sr1", "sr1", 0, fingerprint)
    if fault == "damaged":
        next((tmp_path / "sr1").glob("*.safetensors")).write_bytes(b"torn")
    else:
        fresh = build(MEMBERS["sr1"].network).state_dict()
        provenance = {"images_seen": 64, "encoder_fingerprint": fingerprint}
        snapshot.save(str(tmp_path / "sr1"), "sr1", MEMBERS["sr1"], fresh, provenance)
    snapshots = {name: str(tmp_path / name) for name in MEMBERS}
    with pytest.raises(CheckpointError, match=r"member sr1 in .* is not trained|sr1.* has 4 bytes"):
        assemble(str(tmp_path / "made"), snapshots, TEXT, fingerprint)
    assert not (tmp_path / "made").exists()


def test_a_damaged_cascade_is_mended_by_assembling_again(folder, tmp_path, fingerprint):
    next(folder.glob("sr1-*/*.safetensors")).unlink()
    snapshots = {name: str(tmp_path / name) for name in MEMBERS}
    assemble(str(folder), snapshots, TEXT, fingerprint)
    assert set(Cascade.load(str(folder)).members) == set(MEMBERS)


def test_members_that_were_replaced_do_not_travel_along(folder, tmp_path, fingerprint):
    (folder / "notes").mkdir()
    save_member(tmp_path / "sr1", "sr1", 1, fingerprint)
    snapshots = {name: str(tmp_path / name) for name in MEMBERS}
    assemble(str(folder), snapshots, TEXT, fingerprint)
    names = sorted(path.name.partition("-")[0] for path in folder.iterdir())
    assert names == ["base", "cascade.json", "notes", "sr1"]


def test_a_guidance_scale_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="guidance_scale nan is not a finite number"):
        SampleOptions(guidance_scale=float("nan"))


def test_another_encoder_is_refused_by_its_fingerprint(folder, tmp_path, fingerprint):
    body = json.loads((folder / "cascade.json").read_text())
    (folder / "cascade.json").write_text(json.dumps(body | {"encoder_fingerprint": "0123"}))
    with pytest.raises(CheckpointError, match=f"encoder tiny-t5 has fingerprint {fingerprint}"):
        Cascade.load(str(folder))


def test_an_encoder_that_lies_elsewhere_here_can_be_named(folder):
    body = json.loads((folder / "cascade.json").read_text())
    body["text"]["encoder"] = "models/of-another-machine"
    (folder / "cascade.json").write_text(json.dumps(body))
    with pytest.raises(ConfigError, match="models/of-another-machine"):
        Cascade.load(str(folder))
    assert Cascade.load(str(folder), encoder="tiny-t5").encoder.text.encoder == "tiny-t5"


def assembled(tmp_path, fingerprint, members, **facts):
    """Assemble a cascade of members (name -> config) with these facts in their provenance."""
    for name, config in members.items():
        save_member(tmp_path / name, name, 0, fingerprint, config, **facts.get(name, {}))
    snapshots = {name: str(tmp_path / name) for name in members}
    assemble(str(tmp_path / "made"), snapshots, TEXT, fingerprint)


def test_a_member_that_has_seen_no_image_is_refused(tmp_path, fingerprint):
    with pytest.raises(
        CheckpointError,
        match=r"member base in `.*` is not trained: it has seen 0 images(.|\n)*member=base",
    ):
        assembled(tmp_path, fingerprint, MEMBERS, base={"images_seen": 0})
    assert not storage.exists(str(tmp_path / "made" / "cascade.json"))


def test_a_member_whose_output_is_as_initialised_is_refused(tmp_path, fingerprint):
    fresh = build(MEMBERS["base"].network).state_dict()
    provenance = {"images_seen": 64, "encoder_fingerprint": fingerprint}
    snapshot.save(str(tmp_path / "base"), "base", MEMBERS["base"], fresh, provenance)
    with pytest.raises(CheckpointError, match=r"`out\.weight` is all zero, as in a new network"):
        assemble(str(tmp_path / "made"), {"base": str(tmp_path / "base")}, TEXT, fingerprint)


def test_an_untrained_member_that_was_slipped_in_is_refused_at_loading(folder):
    path = next(folder.glob("base-*/snapshot.json"))
    body = json.loads(path.read_text())
    body["provenance"]["images_seen"] = 0
    path.write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match=r"member base in .* has seen 0 images"):
        Cascade.load(str(folder))


WIDER = dataclasses.replace(NETWORK, text_dim=128)
COLOUR = dataclasses.replace(NETWORK, kind="efficient", channels=3)


def like(name, **keys):
    return {name: dataclasses.replace(MEMBERS[name], **keys)}


MISFITS = [
    (like("sr1", size=8), r"member sizes \[8, 8\] do not grow"),
    (like("sr1", size=(16, 24)), "is not the aspect ratio of base"),
    (like("sr1", network=COLOUR), "members differ in `network.channels`"),
    (like("base", network=WIDER), "member base has network.text_dim 128"),
    ({"sr1": MEMBERS["base"]}, "do not grow"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MISFITS)
def test_members_that_do_not_chain_are_refused(tmp_path, fingerprint, changes, message):
    with pytest.raises(ConfigError, match=message):
        assembled(tmp_path, fingerprint, MEMBERS | changes)


def test_a_member_that_was_trained_on_other_lowres_images_is_refused(tmp_path, fingerprint):
    with pytest.raises(
        CheckpointError, match=r"sr1 was trained on low-resolution .* 4 x 4, .* draws 8 x 8"
    ):
        assembled(tmp_path, fingerprint, MEMBERS, sr1={"previous_size": 4})
    assembled(tmp_path, fingerprint, MEMBERS, sr1={"previous_size": [8, 8]})


def test_members_that_do_not_chain_are_refused_at_loading(folder):
    path = next(folder.glob("sr1-*/snapshot.json"))
    body = json.loads(path.read_text())
    body["config"]["size"] = 8
    path.write_text(json.dumps(body))
    with pytest.raises(ConfigError, match=r"member sizes \[8, 8\] do not grow"):
        Cascade.load(str(folder))


def test_guidance_without_null_text_is_refused_by_what_the_snapshot_says(tmp_path, fingerprint):
    never = {"train": {"caption_drop": 0.0}}
    assembled(tmp_path, fingerprint, MEMBERS, base=never)
    cascade = Cascade.load(str(tmp_path / "made"))
    with pytest.raises(ConfigError, match="member base, which was trained without null text"):
        cascade.sample(["seven"], [1])
    options = SampleOptions(members={"base": {"guidance_scale": 1.0}})
    assert set(cascade.sample(["seven"], [1], options)) == set(MEMBERS)
