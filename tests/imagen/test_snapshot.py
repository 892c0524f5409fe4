import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from imagen import snapshot
from imagen.cascade import assemble
from imagen.errors import CheckpointError, StorageError
from imagen.member import MemberConfig
from imagen.network.unet import UNetConfig, build
from imagen.text.config import TextConfig

CONFIG = MemberConfig(
    size=8,
    network=UNetConfig(
        kind="base",
        channels=1,
        widths=(16,),
        blocks=(1,),
        self_attention=(False,),
        cross_attention=(True,),
        text_dim=16,
        cond_dim=16,
        head_dim=16,
    ),
)
WEIGHTS = {"a.weight": torch.randn(3, 4), "a.bias": torch.zeros(3)}
PROVENANCE = {"encoder_fingerprint": "00ff", "images_seen": 80}
OTHER = {name: tensor + 1 for name, tensor in WEIGHTS.items()}


def data_file(folder: Path) -> Path:
    (path,) = folder.glob("weights-*.safetensors")
    return path


@pytest.mark.parametrize("place", ["local", "memory"])
def test_what_is_saved_is_loaded(tmp_path: Path, place: str):
    folder = str(tmp_path) if place == "local" else f"memory://snapshots{tmp_path}"
    snapshot.save(folder, "base", CONFIG, WEIGHTS, PROVENANCE)
    found = snapshot.load(folder)
    assert (found.name, found.config, found.provenance) == ("base", CONFIG, PROVENANCE)
    assert all(torch.equal(found.state_dict[name], WEIGHTS[name]) for name in WEIGHTS)


def test_the_same_weights_make_the_same_files(tmp_path: Path):
    for folder in ("a", "b"):
        snapshot.save(str(tmp_path / folder), "base", CONFIG, WEIGHTS, PROVENANCE)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in "ab")
    assert one == other
    assert len(one) == 2


def test_a_writer_that_is_killed_before_its_manifest_tears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot.save(str(tmp_path), "base", CONFIG, WEIGHTS, PROVENANCE)
    publish = os.replace

    def only_data(temp: str, path: str) -> None:
        if path.endswith(snapshot.MANIFEST):
            raise OSError("killed")
        publish(temp, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", only_data)
        with pytest.raises(StorageError, match="killed"):
            snapshot.save(str(tmp_path), "base", CONFIG, OTHER, PROVENANCE)
    assert torch.equal(snapshot.load(str(tmp_path)).state_dict["a.bias"], WEIGHTS["a.bias"])


def test_a_snapshot_saved_again_leaves_nothing_of_the_one_before(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("somebody's")
    for weights in (WEIGHTS, OTHER):
        snapshot.save(str(tmp_path), "base", CONFIG, weights, PROVENANCE)
    assert torch.equal(snapshot.load(str(tmp_path)).state_dict["a.bias"], OTHER["a.bias"])
    kept = {data_file(tmp_path).name, snapshot.MANIFEST, "notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_flipped_byte_is_a_checkpoint_error(tmp_path: Path):
    snapshot.save(str(tmp_path), "base", CONFIG, WEIGHTS, PROVENANCE)
    path = data_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights-\w+.safetensors.*checksum"):
        snapshot.load(str(tmp_path))


def test_a_folder_without_a_manifest_is_no_snapshot(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no manifest .*snapshot.json"):
        snapshot.load(str(tmp_path))


def test_newest_passes_over_unfinished_ones(tmp_path: Path):
    assert snapshot.newest(str(tmp_path)) is None
    for name in ("000000000010", "000000000200"):
        snapshot.save(str(tmp_path / name), "base", CONFIG, WEIGHTS, PROVENANCE)
    assert snapshot.newest(str(tmp_path)) == str(tmp_path / "000000000200")
    (tmp_path / "000000000200" / snapshot.MANIFEST).unlink()
    assert snapshot.newest(str(tmp_path)) == str(tmp_path / "000000000010")


def test_an_untrained_snapshot_is_not_the_newest(tmp_path: Path):
    snapshot.save(str(tmp_path / "0"), "base", CONFIG, WEIGHTS, {"images_seen": 0})
    assert snapshot.newest(str(tmp_path)) is None
    snapshot.load(str(tmp_path / "0"))


OLD = {
    "size": 16,
    "network": {
        "kind": "efficient", "channels": 1, "widths": [16], "blocks": [1],
        "self_attention": [False], "cross_attention": [True], "text_dim": 16, "cond_dim": 16,
        "head_dim": 16, "dropout": 0.0,
    },
    "diffusion": {"prediction": "v"},
    "sampling": {
        "sampler": "ddim", "steps": 12, "guidance_scale": 2.0, "threshold_percentile": 0.99,
        "aug_level": 0.2,
    },
}  # fmt: skip
"""The config of a snapshot as version 0.1.0 wrote it."""


def test_a_snapshot_of_an_earlier_version_is_loaded_as_it_was(tmp_path: Path):
    snapshot.save(str(tmp_path), "sr1", CONFIG, WEIGHTS, PROVENANCE)
    path = tmp_path / snapshot.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": OLD}))
    config = snapshot.load(str(tmp_path)).config
    assert config.shape == (16, 16)
    assert (config.sampling.sampler, config.sampling.steps) == ("ddim", 12)
    assert (config.diffusion.schedule, config.diffusion.weighting) == ("cosine", "none")
    assert not config.network.self_conditioning


def test_a_size_of_two_numbers_comes_back_as_it_was(tmp_path: Path):
    config = dataclasses.replace(CONFIG, size=(8, 24))
    snapshot.save(str(tmp_path), "base", config, WEIGHTS, PROVENANCE)
    assert snapshot.load(str(tmp_path)).config == config


EXTRAS = {"raw": OTHER, "ema@0.05": {name: t + 2 for name, t in WEIGHTS.items()}}


@pytest.mark.parametrize("place", ["local", "memory"])
def test_extras_lie_beside_the_weights_and_are_read_when_asked_for(tmp_path: Path, place: str):
    folder = str(tmp_path) if place == "local" else f"memory://extras{tmp_path}"
    snapshot.save(folder, "base", CONFIG, WEIGHTS, PROVENANCE, EXTRAS)
    found = snapshot.load(folder)
    assert found.state_dict.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.state_dict[name], WEIGHTS[name]) for name in WEIGHTS)
    for extra, tensors in EXTRAS.items():
        loaded = snapshot.load_extra(folder, extra)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_without_extras_a_snapshot_has_the_bytes_it_always_had(tmp_path: Path):
    snapshot.save(str(tmp_path / "a"), "base", CONFIG, WEIGHTS, PROVENANCE)
    snapshot.save(str(tmp_path / "b"), "base", CONFIG, WEIGHTS, PROVENANCE, {})
    plain, empty = ({p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in "ab")
    assert plain == empty
    assert list(json.loads(plain[snapshot.MANIFEST])) == [
        "format", "member", "config", "provenance", "files",
    ]  # fmt: skip


def test_an_extra_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path):
    snapshot.save(str(tmp_path / "a"), "base", CONFIG, WEIGHTS, PROVENANCE, EXTRAS)
    with pytest.raises(CheckpointError, match=r"has no ema@0.2 .*; it has: raw, ema@0.05"):
        snapshot.load_extra(str(tmp_path / "a"), "ema@0.2")
    snapshot.save(str(tmp_path / "b"), "base", CONFIG, WEIGHTS, PROVENANCE)
    with pytest.raises(CheckpointError, match=r"has no raw .*; it has: nothing"):
        snapshot.load_extra(str(tmp_path / "b"), "raw")


def test_a_damaged_extra_is_told_when_it_is_read_and_not_before(tmp_path: Path):
    snapshot.save(str(tmp_path), "base", CONFIG, WEIGHTS, PROVENANCE, EXTRAS)
    (path,) = tmp_path.glob("raw-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    snapshot.load(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"raw-\w+.safetensors.*checksum"):
        snapshot.load_extra(str(tmp_path), "raw")


def test_a_snapshot_saved_again_leaves_no_extras_of_the_one_before(tmp_path: Path):
    snapshot.save(str(tmp_path), "base", CONFIG, WEIGHTS, PROVENANCE, EXTRAS)
    snapshot.save(str(tmp_path), "base", CONFIG, WEIGHTS, PROVENANCE, {"raw": WEIGHTS})
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == [
        "raw", "snapshot.json", "weights",
    ]  # fmt: skip


def test_a_cascade_is_made_of_the_weights_without_extras(tmp_path: Path):
    torch.manual_seed(0)
    weights = {name: torch.randn_like(w) for name, w in build(CONFIG.network).state_dict().items()}
    fingerprints = []
    for name, extras in (("plain", None), ("more", {"raw": weights})):
        folder = str(tmp_path / name)
        snapshot.save(folder, "base", CONFIG, weights, PROVENANCE, extras)
        out = str(tmp_path / f"{name}-cascade")
        text = TextConfig(encoder="local-test", max_tokens=16)
        fingerprints.append(assemble(out, {"base": folder}, text, "00ff"))
    plain, more = (
        {str(p.relative_to(tmp_path / f)): p.read_bytes() for p in (tmp_path / f).rglob("*.*")}
        for f in ("plain-cascade", "more-cascade")
    )
    assert fingerprints[0] == fingerprints[1]
    assert plain == more
    (copied,) = (tmp_path / "more-cascade").glob("base-*")
    assert snapshot.load(str(copied)).state_dict.keys() == weights.keys()
