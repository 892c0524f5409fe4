import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from imagen import config as configs
from imagen.errors import CheckpointError, ConfigError, ShardError, StorageError
from runtime.state import lock
from train import dryrun, rundir, stage
from train.config import TrainConfig, TrainStageConfig
from train.job import Job
from train.loop import World
from train.worker import run_rank

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _short_look_at_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dryrun, "LOADER_S", 0.01)


@pytest.fixture(scope="module")
def finished(helpers, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A project whose base member is trained, once for all tests."""
    folder = str(tmp_path_factory.mktemp("finished"))
    helpers.write_data(folder)
    run_rank(Job(helpers.make_config(folder), "base", "one"), ALONE)
    return folder


@pytest.fixture
def trained(finished: str, tmp_path: Path) -> str:
    """A copy of it, to change."""
    folder = tmp_path / "trained"
    shutil.copytree(finished, folder)
    return str(folder)


def test_the_state_follows_the_run(helpers, trained: str):
    config = helpers.make_config(trained)
    assert stage.state(helpers.make_config(f"{trained}/new"), "base").status == "missing"
    done = stage.state(config, "base")
    assert done.status == "done"
    assert done.outputs == (f"{trained}/base/snapshots/000000000160",)
    with lock(f"{trained}/base"):
        assert stage.state(config, "base").status == "running"
    longer = stage.state(helpers.make_config(trained, images=320), "base")
    assert (longer.status, longer.detail) == ("stale", "images: was 160, is 320")
    Path(trained, "base", "run.json").unlink()
    partial = stage.state(config, "base")
    assert (partial.status, partial.detail) == ("partial", "160 of 160 images")


def test_a_finished_run_is_stale_when_its_data_or_network_is_another(helpers, trained: str):
    config = helpers.make_config(trained)
    helpers.write_data(trained, (40, 31, 30))
    assert "data fingerprint: was" in stage.state(config, "base").detail
    shutil.rmtree(f"{trained}/index")
    assert "no finished index" in stage.state(config, "base").detail


def test_a_damaged_manifest_is_told_and_not_raised(helpers, trained: str):
    config = helpers.make_config(trained)
    path = Path(trained, "base", "run.json")
    path.write_text(path.read_text()[:50])
    found = stage.state(config, "base")
    assert found.status == "partial"
    assert "run.json` is damaged" in found.detail


def test_a_finished_run_whose_order_became_impossible_is_stale(helpers, trained: str):
    found = stage.state(helpers.make_config(trained, global_batch=128), "base")
    assert found.status == "stale"
    assert "does not fit into an epoch" in found.detail


def test_a_finished_run_has_nothing_to_do(helpers, trained: str):
    assert stage.run(helpers.make_config(trained), "base") is False


def test_a_finished_run_trained_otherwise_is_refused(helpers, trained: str):
    with pytest.raises(ConfigError, match=r"was trained otherwise: lr: was 0\.002, is 0\.1"):
        stage.run(helpers.make_config(trained, lr=0.1), "base")


def test_a_finished_run_without_checkpoints_is_refused_as_with_them(helpers, trained: str):
    shutil.rmtree(f"{trained}/base/checkpoints")
    assert stage.run(helpers.make_config(trained), "base") is False
    with pytest.raises(ConfigError, match=r"was trained otherwise: lr: was 0\.002, is 0\.1"):
        stage.run(helpers.make_config(trained, lr=0.1), "base")
    with pytest.raises(CheckpointError, match=r"cannot be continued.*seed: was 3, is 77"):
        stage.run(dataclasses.replace(helpers.make_config(trained), seed=77), "base")
    with pytest.raises(ConfigError, match="has seen 160 images, the config asks for 80"):
        stage.run(helpers.make_config(trained, images=80), "base")
    with pytest.raises(CheckpointError, match="checkpoints are gone: it cannot go on to 320"):
        stage.run(helpers.make_config(trained, images=320), "base")
    assert Path(trained, "base", "run.json").exists()


def test_a_shorter_run_than_was_trained_is_refused(helpers, trained: str):
    with pytest.raises(ConfigError, match="has seen 160 images, the config asks for 80"):
        stage.check(helpers.make_config(trained, images=80), "base")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 4}, "seed: was 3, is 4"),
        ({"members.base.network.cond_dim": 32}, r"network\.cond_dim: was 16, is 32"),
        ({"members.base.diffusion": {"prediction": "x0"}}, r"diffusion\.prediction: was v, is x0"),
    ],
)
def test_a_run_that_would_become_another_is_refused(helpers, trained, changes, reason):
    tree = configs.to_tree(helpers.make_config(trained, images=320))
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        at = tree
        for key in parents:
            at = at[key]
        at[last] = value
    with pytest.raises(CheckpointError, match=f"cannot be continued.*{reason}") as raised:
        stage.check(configs.build(TrainStageConfig, tree), "base")
    assert "choose another `out`" in str(raised.value.hint)


def test_other_data_is_refused(helpers, trained: str):
    config = helpers.make_config(trained, images=320)
    Path(trained, "base", "run.json").unlink()
    helpers.write_data(trained, (40, 31, 30))
    with pytest.raises(CheckpointError, match="data fingerprint: was"):
        stage.check(config, "base")


def test_missing_data_names_the_command_that_makes_it(helpers, tmp_path: Path):
    with pytest.raises(ShardError, match="python -m preencode CONFIG"):
        stage.check(helpers.make_config(str(tmp_path)), "base")


def test_a_member_without_text_needs_no_embeddings(helpers, project: str):
    shutil.rmtree(Path(project, "embeddings"))
    network = {"text_dim": 0, "cross_attention": (False,)}
    config = helpers.changed(helpers.make_config(project), "base", network=network)
    assert stage.check(config, "base").identity["encoder fingerprint"] is None
    before = {**stage.check(config, "base").identity, "encoder fingerprint": "0123"}
    assert rundir.known_identity(before) == stage.check(config, "base").identity
    assert "embeddings        none: the network takes no text" in stage.describe(config, "base")
    with pytest.raises(ShardError, match="no embeddings in"):
        stage.check(config, "sr1")


def test_embeddings_of_another_encoder_are_refused(helpers, project: str):
    tree = configs.to_tree(helpers.make_config(project))
    tree["text"]["max_tokens"] = 32
    with pytest.raises(ShardError, match="embeddings of another encoder"):
        stage.check(configs.build(TrainStageConfig, tree), "base")


def test_a_text_width_unlike_the_embeddings_is_refused(helpers, project: str):
    tree = configs.to_tree(helpers.make_config(project))
    tree["members"]["base"]["network"]["text_dim"] = 8
    with pytest.raises(ConfigError, match=r"text_dim is 8, the embeddings in .* are 16 wide"):
        stage.check(configs.build(TrainStageConfig, tree), "base")


def test_a_batch_larger_than_an_epoch_is_refused(helpers, project: str):
    with pytest.raises(ConfigError, match="does not fit into an epoch of 85 training samples"):
        stage.check(helpers.make_config(project, global_batch=128), "base")


def test_images_none_of_which_can_be_used_are_refused(helpers, project: str):
    for tar in Path(project, "data").glob("*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"xxxx"))
    with pytest.raises(ShardError, match=r"none of the first 8 .* not a readable image"):
        stage.check(helpers.make_config(project), "base")


def test_a_run_directory_in_use_is_refused(helpers, project: str):
    config = helpers.make_config(project)
    with lock(f"{project}/base"), pytest.raises(StorageError, match="is in use by process"):
        stage.run(config, "base")


def test_a_run_directory_that_cannot_be_written_is_refused(helpers, project: str):
    Path(project, "base").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot write"):
        stage.run(helpers.make_config(project), "base")


def test_paths_of_a_run_are_absolute(helpers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert stage.absolute(helpers.make_config("runs/x")).out == str(tmp_path / "runs/x")
    assert stage.absolute(helpers.make_config("gs://bucket/x")).out == "gs://bucket/x"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lanes": 3}, "global_batch 8 is no multiple of lanes 3"),
        ({"workers": (2, 1)}, r"workers \[2, 1\] are not two numbers"),
        ({"workers": (1, 9)}, "most <= global_batch 8"),
        ({"lr": 0.0}, "lr 0.0 is not above 0"),
        ({"caption_drop": 1.0}, r"caption_drop 1.0 is not in \[0, 1\)"),
        ({"microbatch": 0}, "microbatch 0 is less than 1"),
        ({"warmup_images": -1}, "warmup_images -1 is negative"),
        ({"ema_sigma_rel": 0.3}, r"ema_sigma_rel 0.3 is not in \(0, 0.28\)"),
        ({"checkpoint_levels": (1, 0)}, r"checkpoint_levels \[1, 0\] are not levels in rising"),
        ({"checkpoint_levels": (0, 0)}, r"checkpoint_levels \[0, 0\] are not levels in rising"),
        ({"checkpoint_levels": (-1,)}, r"checkpoint_levels \[-1\] are not levels in rising"),
    ],
)
def test_values_out_of_range_are_refused(helpers, changes: dict, text: str):
    with pytest.raises(ConfigError, match=text):
        TrainConfig(**{**helpers.TREE["train"]["base"], **changes})


def test_a_level_that_the_network_does_not_have_is_refused(helpers):
    with pytest.raises(ConfigError, match=r"base\.checkpoint_levels \[1\] names a level.* 1 lev"):
        helpers.make_config("x", checkpoint_levels=(1,))  # base has one, sr1 two


def test_a_precision_that_is_none_is_refused_with_what_there_is(helpers):
    with pytest.raises(ConfigError, match=r"precision.*'fp32' or 'bf16'.*'fp16'"):
        helpers.make_config("x", precision="fp16")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("channels", 4, r"network\.channels 4, data sets are images of 1 or 3 channels"),
        ("num_classes", 10, r"num_classes 10, but .* has no class labels"),
        ("image_channels", 1, r"image_channels 1, but .* has no second image"),
    ],
)
def test_members_that_need_other_data_are_refused_with_the_way_out(helpers, key, value, text):
    tree = {name: dict(member) for name, member in helpers.TREE["members"].items()}
    for member in tree.values():
        member["network"] = {**member["network"], key: value}
    with pytest.raises(ConfigError, match=text) as err:
        configs.build(TrainStageConfig, {**helpers.TREE, "out": "x", "members": tree})
    assert "train with the library: imagen.member.loss()" in str(err.value.hint)


def test_a_finished_run_on_crops_says_so_when_whole_pictures_are_wanted(helpers, project: str):
    """Crops are part of the recipe, like captions dropped: a run may go on with others."""
    whole = helpers.make_config(project)
    section = dataclasses.replace(whole.train["sr1"], crop_px=8)
    crops = dataclasses.replace(whole, train={"sr1": section})
    run_rank(Job(crops, "sr1", "one"), ALONE)
    assert stage.state(crops, "sr1").status == "done"
    told = stage.describe(crops, "sr1")
    assert "pictures          crops of 8 px out of 16 px, from 8 px, fp32\n" in told
    assert stage.state(whole, "sr1").detail == "crop_px: was 8, is 0"
    with pytest.raises(ConfigError, match="trained otherwise: crop_px: was 8, is 0"):
        stage.run(whole, "sr1")
    longer = dataclasses.replace(section, crop_px=0, images=200)
    stage.check(dataclasses.replace(whole, train={"sr1": longer}), "sr1")


def test_members_that_are_no_squares_are_told_apart(helpers, project: str):
    tree = {**helpers.TREE, "out": project, "members": {}}
    for name, size in (("base", [8, 16]), ("sr1", [16, 32])):
        tree["members"][name] = {**helpers.TREE["members"][name], "size": size}
    wide = configs.build(TrainStageConfig, tree)
    identity = rundir.identity(wide, "sr1", "d", "e")
    assert (identity["size"], identity["size of the member before"]) == ([16, 32], [8, 16])
    square = rundir.identity(helpers.make_config(project), "sr1", "d", "e")
    assert (square["size"], square["size of the member before"]) == (16, 8)
    run_rank(Job(wide, "base", "one"), ALONE)
    assert stage.state(wide, "base").status == "done"
    with pytest.raises(CheckpointError, match=r"size: was \[8, 16\], is 8"):
        stage.run(helpers.make_config(project), "base")


def test_a_run_is_rounded_up_to_whole_global_batches(helpers):
    config = TrainConfig(**{**helpers.TREE["train"]["base"], "images": 161})
    assert (config.steps, config.total) == (21, 168)


def test_a_section_for_no_member_is_refused(helpers):
    train = {"base": helpers.TREE["train"]["base"], "bsae": helpers.TREE["train"]["base"]}
    with pytest.raises(ConfigError, match="section `bsae`, which is no member"):
        configs.build(TrainStageConfig, {**helpers.TREE, "out": "x", "train": train})


def test_a_member_without_a_section_is_named(helpers):
    train = {"base": helpers.TREE["train"]["base"]}
    config = configs.build(TrainStageConfig, {**helpers.TREE, "out": "x", "train": train})
    with pytest.raises(ConfigError, match=r"no section `train\.sr1`"):
        config.of("sr1")
    with pytest.raises(ConfigError, match="member `sr2` is not in the config"):
        config.of("sr2")


def test_the_stored_config_is_a_valid_input(helpers, project: str):
    config = stage.absolute(helpers.make_config(project))
    Path(project, "stored.yaml").write_text(configs.dump_yaml(config))
    assert configs.load_config(TrainStageConfig, f"{project}/stored.yaml") == config


def command(*args: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "train", *args]
    return subprocess.run(program, capture_output=True, text=True, cwd=Path.cwd(), check=False)


@pytest.fixture
def written(helpers, project: str) -> str:
    path = f"{project}/config.yaml"
    Path(path).write_text(yaml.safe_dump({**helpers.TREE, "out": project}))
    return path


@pytest.mark.slow
def test_a_dry_run_tells_and_touches_nothing(written: str, project: str):
    before = sorted(Path(project).rglob("*"))
    done = command(
        written, "member=sr1", "train.sr1.workers=[1,3]", "train.sr1.microbatch=2", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    assert "3 workers: 2 or 3 images each, in 2 passes of 1 or 2" in done.stdout
    assert "20 steps, 160 images, 2.0 epochs" in done.stdout
    assert "left to do        160 images" in done.stdout
    assert yaml.safe_load(done.stdout.split("\nrun directory")[0])["train"]["sr1"]["workers"] == [
        1,
        3,
    ]
    assert sorted(Path(project).rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((), "error: which member to train?\n\nhint: add member=base, or member=sr1\n"),
        (("member=base", "train.base.lanse=3"), "unknown key `train.base.lanse`"),
        (("member=sr7",), "member `sr7` is not in the config"),
    ],
)
def test_mistakes_on_the_command_line_are_explained(written: str, args: tuple, text: str):
    done = command(written, *args)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_differences_are_named_by_key():
    old = {"a": 1, "b": {"c": [1], "d": 2}, "gone": 0}
    assert rundir.differences(old, {"a": 1, "b": {"c": [2], "d": 2}, "new": 5}) == [
        "b.c: was [1], is [2]",
        "gone: was 0, is None",
        "new: was None, is 5",
    ]
