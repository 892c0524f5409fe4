import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from imagen import snapshot, storage
from imagen.cascade import Cascade, SampleOptions, assemble
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


def save_member(folder, name, seed, encoder_fingerprint):
    torch.manual_seed(seed)
    net = build(MEMBERS[name].network)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    provenance = {"images_seen": 1, "encoder_fingerprint": encoder_fingerprint}
    snapshot.save(str(folder), name, MEMBERS[name], net.state_dict(), provenance)


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
    ]
    assert all((other["sr1"] - first).abs().max() > 1e-3 for other in others)


def test_steps_are_told_for_each_member(folder):
    told = []
    Cascade.load(str(folder)).sample(["seven"], [1], on_step=lambda *step: told.append(step))
    assert told == [("base", 1, 3), ("base", 2, 3), ("base", 3, 3), ("sr1", 1, 2), ("sr1", 2, 2)]


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
    ],
)
def test_bad_requests_are_refused(folder, prompts, seeds, message):
    with pytest.raises(ConfigError, match=message):
        Cascade.load(str(folder)).sample(prompts, seeds)


def test_unknown_samplers_are_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match="sampler 'euler' is unknown\n\nhint: samplers: ddim, dpm"
    ):
        SampleOptions(sampler="euler")


def test_weights_of_another_architecture_are_refused(tmp_path, fingerprint):
    torch.manual_seed(0)
    other = build(dataclasses.replace(NETWORK, widths=(8, 24))).state_dict()
    provenance = {"images_seen": 1, "encoder_fingerprint": fingerprint}
    snapshot.save(str(tmp_path / "base"), "base", MEMBERS["base"], other, provenance)
    assemble(str(tmp_path / "cascade"), {"base": str(tmp_path / "base")}, TEXT, fingerprint)
    with pytest.raises(
        CheckpointError, match=r"do not fit the network(.|\n)*train the member again"
    ):
        Cascade.load(str(tmp_path / "cascade"))


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
