import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from imagen import checkpoint, manifest, snapshot, storage
from imagen.errors import CheckpointError, ConfigError, ImagenError
from imagen.network.blocks import ResBlock
from runtime import log
from train import rundir, stage
from train.config import TrainStageConfig
from train.initial import random as initial
from train.job import Job
from train.loop import World
from train.worker import prepare, run_rank

GOLDEN_RUN = Path(__file__).parents[1] / "golden" / "run_tiny.json"
"""Identity and recipe of the tiny runs as the code stored them before it had today's options."""

ALONE = World(0, 1, torch.device("cpu"))


def train(config: TrainStageConfig, member: str = "base", launch: str = "first") -> Path:
    run_rank(Job(config, member, launch), ALONE)
    return Path(config.run_dir(member))


def weights(run: Path) -> bytes:
    (path,) = (run / "snapshots" / "000000000160").glob("*.safetensors")
    return path.read_bytes()


def happened(run: Path, event: str) -> list[dict]:
    return [e for e in log.read(str(run / "log.jsonl")) if e.get("event") == event]


def test_a_run_leaves_what_it_promises(helpers, project: str):
    run = train(helpers.make_config(project))
    done = rundir.finished(str(run))
    assert done is not None
    assert (done["images_seen"], done["bad_samples"], done["skipped_steps"]) == (160, 0, 0)
    assert checkpoint.saved(str(run / "checkpoints")) == [80, 120, 160]
    assert sorted(p.name for p in (run / "snapshots").iterdir()) == ["000000000080", "000000000160"]
    final = snapshot.load(str(run / "snapshots" / "000000000160"))
    assert final.name == "base"
    assert final.provenance["images_seen"] == 160
    assert final.provenance["encoder_fingerprint"] == "0" * 16
    events = log.read(str(run / "log.jsonl"))
    steps = [event for event in events if "loss" in event]
    assert [event["images_seen"] for event in steps] == list(range(8, 161, 8))
    speed = ("images_per_s", "data_wait", "mfu", "memory_gb", "world_size", "starts")
    wanted = ("step", "loss", "grad_norm", "lr", *speed, "bad_samples", "skipped_steps")
    assert all(key in event for event in steps for key in wanted)
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.parametrize("member", ["base", "sr1"])
def test_a_run_resumed_at_any_checkpoint_ends_the_same(helpers, project: str, member: str):
    config = helpers.make_config(project)
    run = train(config, member)
    expected = weights(run)
    for keep in (120, 80):  # as if it had been killed after this checkpoint
        (run / "run.json").unlink()
        shutil.rmtree(run / "snapshots")
        for images_seen in checkpoint.saved(str(run / "checkpoints")):
            if images_seen > keep:
                shutil.rmtree(run / "checkpoints" / checkpoint.folder_name(images_seen))
        train(config, member, f"from {keep}")
        assert weights(run) == expected
    assert [e["images_seen"] for e in happened(run, "start")] == [0, 120, 80]


def test_torn_checkpoints_cost_intervals_not_the_run(helpers, project: str):
    config = helpers.make_config(project)
    run = train(config)
    expected = weights(run)
    (run / "run.json").unlink()
    (torn,) = (run / "checkpoints" / "000000000160").glob("*.safetensors")
    torn.write_bytes(torn.read_bytes()[:100])
    (changed,) = (run / "checkpoints" / "000000000120").glob("*.safetensors")
    content = bytearray(changed.read_bytes())
    content[-10] ^= 1
    changed.write_bytes(content)
    train(config, launch="second")
    assert weights(run) == expected
    cut, flipped = happened(run, "damaged_checkpoint")
    assert (cut["checkpoint"], flipped["checkpoint"]) == (160, 120)
    assert "has 100 bytes" in cut["reason"]
    assert "has checksum" in flipped["reason"]
    assert [e["images_seen"] for e in happened(run, "start")] == [0, 80]
    started = json.loads((run / "attempts" / "second" / "00000.start.json").read_text())
    assert started["images_seen"] == 80  # what failures of this start are counted for


def test_when_no_checkpoint_can_be_read_training_starts_anew(helpers, project: str):
    config = helpers.make_config(project, images=80)
    run = train(config)
    (path,) = (run / "snapshots" / "000000000080").glob("*.safetensors")
    expected = path.read_bytes()
    (run / "run.json").unlink()
    shutil.rmtree(run / "snapshots")
    for data in (run / "checkpoints").glob("*/*.safetensors"):
        data.write_bytes(data.read_bytes()[:-1] + b"x")
    train(config, launch="second")
    assert path.read_bytes() == expected
    assert [e["images_seen"] for e in happened(run, "start")] == [0, 0]
    assert len(happened(run, "damaged_checkpoint")) == 2


def test_a_change_that_was_asked_for_is_on_record(helpers, project: str):
    train(helpers.make_config(project, images=40))
    config = helpers.make_config(project, images=96, global_batch=12, microbatch=12, window=8)
    run_rank(Job(config, "base", "second", ("window", "global-batch")), ALONE)
    train(dataclasses.replace(config), launch="third")  # needs no asking again
    run = Path(config.run_dir("base"))
    (changed,) = happened(run, "identity_changed")
    assert changed["images_seen"] == 48  # whole batches of 12
    assert changed["differences"] == ["global_batch: was 8, is 12", "window: was 16, is 8"]
    provenance = snapshot.load(str(run / "snapshots" / "000000000096")).provenance
    told = [{"from": 48, "differences": changed["differences"]}]
    assert provenance["identity_changes"] == told
    assert rundir.finished(str(run))["identity_changes"] == told  # type: ignore[index]


def test_bad_images_are_logged_by_key_and_counted(helpers, tmp_path: Path):
    folder = str(tmp_path)
    helpers.write_data(folder)
    for tar in (tmp_path / "data").glob("*.tar"):  # spoil the pixels of a few, after indexing
        content = tar.read_bytes()
        at = content.find(b"IDAT", len(content) // 2)
        tar.write_bytes(content[:at] + b"xxxx" + content[at + 4 :])
    run = train(helpers.make_config(folder))
    events = log.read(str(run / "log.jsonl"))
    bad = [event for event in events if event.get("event") == "bad_sample"]
    assert bad
    assert len({event["key"] for event in bad}) == len(bad)
    assert {event["reason"] for event in bad} == {"unreadable"}
    assert all("not a readable image" in event["detail"] for event in bad)
    done = json.loads((run / "run.json").read_text())
    assert done["bad_samples"] >= len(bad)
    last = [event for event in events if "loss" in event][-1]
    assert last["bad_samples"] == done["bad_samples"]
    assert last["bad/unreadable"] == len(bad)
    assert [e["key"] for e in log.read(str(run / "quarantine.jsonl"))] == [e["key"] for e in bad]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lanes": 4}, "lanes: was 2, is 4"),
        ({"window": 8}, "window: was 16, is 8"),
        ({"global_batch": 16}, "global_batch: was 8, is 16"),
    ],
)
def test_a_resume_that_would_change_the_order_is_refused(helpers, project, changes, reason):
    train(helpers.make_config(project))
    with pytest.raises(CheckpointError, match=f"cannot be continued.*{reason}"):
        train(helpers.make_config(project, images=320, **changes))


def test_a_longer_run_goes_on_where_the_shorter_ended(helpers, project: str):
    train(helpers.make_config(project))
    run = train(helpers.make_config(project, images=200), launch="second")
    starts = [
        e["images_seen"] for e in log.read(str(run / "log.jsonl")) if e.get("event") == "start"
    ]
    assert starts == [0, 160]
    assert checkpoint.saved(str(run / "checkpoints"))[-1] == 200


def test_a_recipe_that_changes_on_the_way_is_on_record(helpers, project: str):
    run = train(helpers.make_config(project))
    train(helpers.make_config(project, images=240, lr=1e-3), launch="second")
    train(helpers.make_config(project, images=240, lr=1e-3, microbatch=4), launch="same")
    train(helpers.make_config(project, images=320, lr=1e-3), launch="third")
    first, second = happened(run, "recipe_changed")
    assert (first["images_seen"], second["images_seen"]) == (160, 240)
    assert first["differences"] == ["images: was 160, is 240", "lr: was 0.002, is 0.001"]
    assert second["differences"] == ["images: was 240, is 320"]
    done = json.loads((run / "run.json").read_text())
    told = [(e["from"], e["recipe"]["images"], e["recipe"]["lr"]) for e in done["earlier_recipes"]]
    assert told == [(0, 160, 2e-3), (160, 240, 1e-3)]
    assert done["recipe"]["images"] == 320
    provenance = snapshot.load(str(run / "snapshots" / "000000000320")).provenance
    assert provenance["earlier_recipes"] == done["earlier_recipes"]
    unchanged = snapshot.load(str(run / "snapshots" / "000000000160")).provenance
    assert "earlier_recipes" not in unchanged


def test_how_often_captions_were_dropped_is_told_to_whoever_samples(helpers, project: str):
    run = train(helpers.make_config(project, caption_drop=0.0))
    told = snapshot.load(str(run / "snapshots" / "000000000160")).provenance["train"]
    assert told["caption_drop"] == 0


def test_ways_to_compute_may_change_on_the_way_and_precision_is_on_record(helpers, project: str):
    run = train(helpers.make_config(project))
    longer = {"images": 200, "checkpoint_levels": (0,)}
    train(helpers.make_config(project, **longer), launch="second")
    train(
        helpers.make_config(project, **longer | {"images": 240, "precision": "bf16"}), "base", "3"
    )
    first, second = happened(run, "recipe_changed")
    assert first["differences"] == ["images: was 160, is 200"]
    assert second["differences"] == ["images: was 200, is 240", "precision: was fp32, is bf16"]
    provenance = snapshot.load(str(run / "snapshots" / "000000000240")).provenance
    assert provenance["train"]["precision"] == "bf16"
    assert provenance["train"]["crop_px"] == 0


def test_a_checkpoint_of_code_that_knew_fewer_options_goes_on(helpers, project: str):
    """As if the run had begun before there were the options of today, each with its default."""
    config = helpers.make_config(project)
    run = train(config)
    golden = json.loads(GOLDEN_RUN.read_text())["base"]
    for images_seen in checkpoint.saved(str(run / "checkpoints")):
        path = str(run / "checkpoints" / checkpoint.folder_name(images_seen) / checkpoint.MANIFEST)
        body = manifest.read(path, checkpoint.KIND)
        fingerprints = {k: v for k, v in body["meta"]["identity"].items() if "fingerprint" in k}
        body["meta"]["identity"] = golden["identity"] | fingerprints
        body["meta"]["recipes"] = [{"from": 0, "recipe": golden["recipe"]}]
        manifest.write(path, checkpoint.KIND, body)
    body = manifest.read(str(run / "run.json"), rundir.KIND)
    body |= {"identity": golden["identity"] | fingerprints, "recipe": golden["recipe"]}
    manifest.write(str(run / "run.json"), rundir.KIND, body)
    assert stage.state(config, "base").status == "done"
    train(helpers.make_config(project, images=200), launch="second")
    (changed,) = happened(run, "recipe_changed")
    assert changed["differences"] == ["images: was 160, is 200"]


def test_compiling_without_a_compiler_is_refused_with_the_way_out(helpers, project, monkeypatch):
    monkeypatch.setenv("PATH", project)
    monkeypatch.delenv("CXX", raising=False)
    config = helpers.make_config(project, compile=True)
    with pytest.raises(ConfigError, match=r"compile is true, but .* has no compiler") as err:
        train(config)
    assert "set CXX to another one, or set compile=false" in str(err.value.hint)
    assert isinstance(Job(config, "base", "first").attempts.given_up(), ImagenError)  # not retried


def test_data_that_does_not_fit_the_member_is_an_error_before_the_first_step(helpers, project):
    config = helpers.changed(helpers.make_config(project), "base", network={"text_dim": 32})
    with pytest.raises(ConfigError, match=r"emb is 16 wide, network\.text_dim is 32"):
        train(config)
    events = log.read(f"{config.run_dir('base')}/log.jsonl")
    assert [event["event"] for event in events] == ["start"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own
def test_a_network_is_compiled_and_recomputed_where_the_config_says(helpers):
    """That this changes no result is shown where the network is tested; compiling takes minutes."""
    config = helpers.make_config("x")
    for compiled, levels in ((False, ()), (True, (1,))):
        section = dataclasses.replace(
            config.train["sr1"], compile=compiled, checkpoint_levels=levels
        )
        net = initial(config.members["sr1"].network, 0)
        prepare(net, section, ALONE.device)
        blocks = [module for module in net.modules() if isinstance(module, ResBlock)]
        assert [block._compiled_call_impl is not None for block in blocks] == [compiled] * 6
        assert [level.recompute for level in net.down] == [False, compiled]


def test_what_a_failing_run_has_told_is_in_its_log(helpers, tmp_path: Path):
    folder = f"memory://failing{tmp_path}"
    helpers.write_data(folder)
    config = helpers.make_config(folder)
    for shard in range(3):  # gone after the driver looked
        storage.put(f"{folder}/data/{shard:05d}.tar", b"")
    with pytest.raises(ImagenError):
        run_rank(Job(config, "base", "one"), ALONE)
    told = log.read(f"{config.run_dir('base')}/log.jsonl")
    assert [event["event"] for event in told] == ["start"]


def test_a_deleted_snapshot_comes_back(helpers, project: str):
    config = helpers.make_config(project)
    run = train(config)
    expected = weights(run)
    shutil.rmtree(run / "snapshots" / "000000000160")
    assert rundir.finished(str(run)) is None
    train(config, launch="second")
    assert rundir.finished(str(run)) is not None
    assert weights(run) == expected


def test_a_project_on_an_object_store_trains_the_same(helpers, tmp_path: Path):
    ends = []
    for folder in (str(tmp_path), f"memory://project{tmp_path}"):
        helpers.write_data(folder)
        config = helpers.make_config(folder)
        run_rank(Job(config, "sr1", "one"), ALONE)
        assert rundir.finished(config.run_dir("sr1")) is not None
        newest = snapshot.newest(f"{config.run_dir('sr1')}/snapshots")
        assert newest is not None
        ends.append(snapshot.load(newest).state_dict)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
