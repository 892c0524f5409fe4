import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from imagen import checkpoint, manifest, snapshot, storage
from imagen.cascade import assemble
from imagen.errors import CheckpointError, ConfigError
from train import initial, rundir
from train.config import TrainStageConfig
from train.job import Job
from train.past import Past

IDENTITY = {"size": 8, "encoder fingerprint": None}


def save(config: TrainStageConfig, folder: Path | str, seed: int, member: str = "base") -> str:
    """Write a snapshot whose weights are random ones of another seed."""
    net = initial.random(config.members[member].network, seed)
    for parameter in net.parameters():  # an untrained member is no part of a cascade
        parameter.data += 0.1
    facts = {"images_seen": 80, "encoder_fingerprint": "0" * 16, "previous_size": None}
    snapshot.save(str(folder), member, config.members[member], net.state_dict(), facts)
    return str(folder)


def weights(config: TrainStageConfig, member: str = "base") -> dict[str, torch.Tensor]:
    return initial.build(Job(config, member, "test")).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def begin(config: TrainStageConfig, **meta: object) -> dict:
    """Write the manifest of a checkpoint of the run as it would begin; return its identity."""
    identity = rundir.identity(config, "base", "data", "encoder")
    folder = storage.join(config.run_dir("base"), rundir.CHECKPOINTS, checkpoint.folder_name(40))
    body = {"images_seen": 40, "meta": {"identity": identity, **meta}, "files": {}}
    manifest.write(storage.join(folder, checkpoint.MANIFEST), checkpoint.KIND, body)
    return identity


def test_random_weights_follow_from_the_seed_alone(helpers, tmp_path: Path):
    config = helpers.make_config(str(tmp_path))
    first = weights(config)
    torch.manual_seed(99)
    assert same(first, weights(config))
    assert not same(first, weights(dataclasses.replace(config, seed=4)))


@pytest.mark.parametrize("kind", ["snapshot", "run", "best of a run", "cascade"])
def test_a_run_starts_from_the_weights_of_a_snapshot(helpers, tmp_path: Path, kind: str):
    config = helpers.make_config(str(tmp_path / "new"))
    run = tmp_path / "old" / "base"
    for images, seed in ((40, 5), (80, 6)):
        save(config, run / "snapshots" / checkpoint.folder_name(images), seed)
    path, chosen = run, run / "snapshots" / "000000000080"
    if kind == "best of a run":
        chosen = run / "snapshots" / "000000000040"
        best = {"snapshot": "snapshots/000000000040", "images_seen": 40, "loss": 0.1}
        manifest.write(f"{run}/best.json", rundir.BEST_KIND, best)
    elif kind == "snapshot":
        path = chosen = run / "snapshots" / "000000000040"
    elif kind == "cascade":
        path = tmp_path / "cascade"
        assemble(str(path), {"base": str(chosen)}, config.text, "0" * 16)
    config = helpers.make_config(str(tmp_path / "new"), init_from=str(path))
    initial.check(config, "base")
    assert same(weights(config), snapshot.load(str(chosen)).state_dict)
    settled = initial.settled(config, "base").of("base").init_from
    assert same(snapshot.load(settled).state_dict, snapshot.load(str(chosen)).state_dict)


def test_initial_weights_are_part_of_the_identity_wherever_they_lie(helpers, tmp_path: Path):
    plain = helpers.make_config(str(tmp_path / "new"))
    paths = [save(plain, tmp_path / name, seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    configs = [helpers.make_config(str(tmp_path / "new"), init_from=path) for path in paths]
    one, copy, other = (
        rundir.identity(config, "base", "d", "e")["initial weights"] for config in configs
    )
    assert one == copy
    assert one != other
    assert rundir.identity(plain, "base", "d", "e")["initial weights"] is None
    assert rundir.recipe(configs[0], "base") == rundir.recipe(configs[1], "base")


def test_a_run_under_way_needs_its_initial_snapshot_no_more(helpers, tmp_path: Path):
    plain = helpers.make_config(str(tmp_path / "new"))
    run = tmp_path / "old" / "base"
    save(plain, run / "snapshots" / "000000000040", 5)
    config = helpers.make_config(str(tmp_path / "new"), init_from=str(run))
    begun = begin(initial.settled(config, "base"))
    save(plain, run / "snapshots" / "000000000080", 6)  # the other run went on
    assert rundir.identity(config, "base", "data", "encoder") == begun
    assert initial.settled(config, "base") == config
    for folder in run.rglob("snapshot.json"):
        folder.unlink()
    initial.check(config, "base")
    assert rundir.identity(config, "base", "data", "encoder") == begun


def test_a_run_under_way_refuses_another_name_for_its_initial_snapshot(helpers, tmp_path: Path):
    plain = helpers.make_config(str(tmp_path / "new"))
    for name, seed in (("a", 5), ("b", 6), ("copy", 5)):
        save(plain, tmp_path / name / "base" / "snapshots" / "000000000040", seed)
    a, b, copy, typo = (
        helpers.make_config(str(tmp_path / "new"), init_from=str(tmp_path / name / "base"))
        for name in ("a", "b", "copy", "typo")
    )
    one = Job(initial.settled(a, "base"), "base", "x", init_from=a.of("base").init_from)
    asked = Past(one, 0, {}, 0, []).asked()
    begun = begin(one.config, **asked)
    assert rundir.identity(copy, "base", "data", "encoder") == begun
    assert rundir.identity(b, "base", "data", "encoder")["initial weights"] not in (
        None,
        begun["initial weights"],
    )
    with pytest.raises(CheckpointError, match="typo/base` has no snapshot of base"):
        rundir.identity(typo, "base", "data", "encoder")
    shutil.rmtree(tmp_path / "a")  # it is needed no more, by neither of its names
    for config in (a, one.config):
        assert rundir.identity(config, "base", "data", "encoder") == begun
    later = Past(Job(a, "base", "y", init_from=a.of("base").init_from), 0, asked, 40, [])
    assert later.meta()["init_from"] == asked["init_from"]


def test_the_untrained_snapshot_of_a_run_is_nothing_to_start_from(helpers, tmp_path: Path):
    config = helpers.make_config(str(tmp_path / "new"))
    run = tmp_path / "old" / "base"
    folder = save(config, run / "snapshots" / "000000000000", 5)
    body = manifest.read(f"{folder}/snapshot.json", snapshot.KIND)
    body["provenance"]["images_seen"] = 0
    manifest.write(f"{folder}/snapshot.json", snapshot.KIND, body)
    best = {"snapshot": "snapshots/000000000000", "images_seen": 0, "loss": 0.1}
    manifest.write(f"{run}/best.json", rundir.BEST_KIND, best)
    with pytest.raises(CheckpointError, match="has no snapshot of base"):
        rundir.snapshot_in(str(run), "base")
    newest = save(config, run / "snapshots" / "000000000040", 6)
    assert rundir.snapshot_in(str(run), "base") == newest


def test_a_damaged_best_is_passed_over(helpers, tmp_path: Path):
    config = helpers.make_config(str(tmp_path / "new"))
    newest = save(config, tmp_path / "old" / "snapshots" / "000000000040", 6)
    (tmp_path / "old" / "best.json").write_text('{"format": "imagen/be')
    assert rundir.snapshot_in(str(tmp_path / "old"), "base") == newest


def test_a_run_under_way_refuses_other_initial_weights(helpers, tmp_path: Path):
    plain = helpers.make_config(str(tmp_path / "new"))
    begun = begin(plain)
    path = save(plain, tmp_path / "a", 5)
    config = helpers.make_config(str(tmp_path / "new"), init_from=path)
    with pytest.raises(CheckpointError, match=r"initial weights: was None, is [0-9a-f]{16}"):
        rundir.check_identity("run", begun, rundir.identity(config, "base", "data", "encoder"))


def test_another_architecture_is_refused_with_the_difference(helpers, tmp_path: Path):
    plain = helpers.make_config(str(tmp_path / "new"))
    wider = helpers.changed(plain, "base", network={"widths": (32,)})
    path = save(wider, tmp_path / "a", 5)
    config = helpers.make_config(str(tmp_path / "new"), init_from=path)
    with pytest.raises(ConfigError, match=r"another architecture.*widths: was \[32\], is \[16\]"):
        initial.check(config, "base")


def test_dropout_is_no_other_architecture(helpers, tmp_path: Path):
    plain = helpers.make_config(str(tmp_path / "new"))
    path = save(helpers.changed(plain, "base", network={"dropout": 0.5}), tmp_path / "a", 5)
    initial.check(helpers.make_config(str(tmp_path / "new"), init_from=path), "base")


def test_a_folder_without_a_snapshot_is_refused(helpers, tmp_path: Path):
    config = helpers.make_config(str(tmp_path / "new"), init_from=str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"nothing` has no snapshot of base: it is neither"):
        initial.check(config, "base")


def test_a_cascade_without_the_member_is_refused(helpers, tmp_path: Path):
    plain = helpers.make_config(str(tmp_path / "new"))
    save(plain, tmp_path / "a", 5)
    assemble(str(tmp_path / "cascade"), {"base": str(tmp_path / "a")}, plain.text, "0" * 16)
    config = helpers.make_config(str(tmp_path / "new"), init_from=str(tmp_path / "cascade"))
    with pytest.raises(CheckpointError, match="cascade` has no snapshot of sr1"):
        initial.check(config, "sr1")


def test_half_a_snapshot_is_refused(helpers, tmp_path: Path):
    plain = helpers.make_config(str(tmp_path / "new"))
    path = save(plain, tmp_path / "a", 5)
    next((tmp_path / "a").glob("weights-*")).write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"init_from: a data file of the snapshot .* missing"):
        initial.check(helpers.make_config(str(tmp_path / "new"), init_from=path), "base")
