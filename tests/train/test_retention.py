from pathlib import Path

import pytest
import torch

from imagen import checkpoint, manifest, snapshot, storage
from train import retention, rundir
from train.job import Job

WEIGHTS = {"w": torch.zeros(2)}


@pytest.mark.parametrize(
    ("keep", "every", "stay"),
    [
        (1, 0, [200]),
        (3, 0, [120, 160, 200]),
        (9, 0, [40, 80, 120, 160, 200]),
        (1, 100, [120, 200]),
        (1, 80, [80, 160, 200]),
        (1, 10, [40, 80, 120, 160, 200]),
        (1, 150, [160, 200]),
        (2, 1000, [160, 200]),
    ],
)
def test_the_newest_and_the_first_after_each_milestone_stay(keep: int, every: int, stay: list):
    saved = [40, 80, 120, 160, 200]
    assert [x for x in saved if x not in retention.outdated(saved, keep, every)] == stay


def test_milestones_stay_the_same_however_often_the_others_are_deleted():
    saved: list[int] = []
    for images_seen in range(40, 1001, 40):
        saved.append(images_seen)
        gone = retention.outdated(saved, 2, 150)
        saved = [x for x in saved if x not in gone]
    assert saved == [160, 320, 480, 600, 760, 920, 960, 1000]


def test_images_seen_0_is_no_milestone():
    assert retention.outdated([0, 40, 80], 1, 40) == [0]


def job(helpers, folder: Path, **train: object) -> Job:
    return Job(helpers.make_config(str(folder), **train), "base", "test")


def save_snapshots(one: Job, *images: int) -> None:
    member = one.config.members["base"]
    for images_seen in images:
        folder = storage.join(one.run_dir, "snapshots", checkpoint.folder_name(images_seen))
        snapshot.save(folder, "base", member, WEIGHTS, {}, {"raw": WEIGHTS})


def left(one: Job, what: str) -> list[int]:
    return [int(name) for name in storage.listdir(storage.join(one.run_dir, what))]


def test_snapshots_all_stay_unless_a_number_is_given(helpers, tmp_path: Path):
    one = job(helpers, tmp_path)
    save_snapshots(one, 40, 80, 120)
    retention.snapshots(one, 200, [])
    assert left(one, "snapshots") == [40, 80, 120]


def test_the_best_snapshot_and_the_one_of_a_finished_run_stay(helpers, tmp_path: Path):
    one = job(helpers, tmp_path, keep_snapshots=1)
    save_snapshots(one, 40, 80, 120, 160, 200)
    best = {"snapshot": "snapshots/000000000080", "images_seen": 80, "loss": 0.1}
    manifest.write(f"{one.run_dir}/best.json", rundir.BEST_KIND, best)
    done = {"snapshot": "snapshots/000000000120"}
    manifest.write(f"{one.run_dir}/run.json", rundir.KIND, done)
    retention.snapshots(one, 200, [])
    assert left(one, "snapshots") == [80, 120, 200]
    assert rundir.best(one.run_dir) == f"{one.run_dir}/snapshots/000000000080"


def test_what_is_half_deleted_is_not_complete(
    helpers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one, deleted = job(helpers, tmp_path, keep_snapshots=1), []
    save_snapshots(one, 40, 80)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", deleted.append)
        retention.snapshots(one, 200, [])
    assert [storage.name(path).partition("-")[0] for path in deleted] == [
        "snapshot.json", "raw", "snapshot.json", "weights",
    ]  # fmt: skip
    retention.snapshots(one, 200, [])
    assert left(one, "snapshots") == [80]


def test_what_is_no_snapshot_stays(helpers, tmp_path: Path):
    one = job(helpers, tmp_path, keep_snapshots=1)
    save_snapshots(one, 40, 80)
    storage.put(f"{one.run_dir}/snapshots/notes/snapshot.json", b"{}")
    retention.snapshots(one, 200, [])
    assert sorted(storage.listdir(f"{one.run_dir}/snapshots")) == ["000000000080", "notes"]


def test_checkpoints_stay_by_count_and_milestone(helpers, tmp_path: Path):
    one = job(helpers, tmp_path, keep_checkpoints=2, milestone_every=100)
    for images_seen in range(40, 241, 40):
        folder = storage.join(one.checkpoints, checkpoint.folder_name(images_seen))
        files = manifest.put_files(folder, {"0.data": b"1", "1.data": b"2"})
        body = {"images_seen": images_seen, "meta": {}, "files": files}
        manifest.write(storage.join(folder, checkpoint.MANIFEST), checkpoint.KIND, body)
        retention.checkpoints(one, images_seen, [])
    assert left(one, "checkpoints") == [120, 200, 240]
    assert checkpoint.saved(one.checkpoints) == [120, 200, 240]


def save_checkpoints(one: Job, *images: int) -> None:
    for images_seen in images:
        folder = storage.join(one.checkpoints, checkpoint.folder_name(images_seen))
        body = {"images_seen": images_seen, "meta": {}, "files": {}}
        manifest.write(storage.join(folder, checkpoint.MANIFEST), checkpoint.KIND, body)


def test_what_is_newer_than_now_never_takes_the_place_of_what_was_just_written(helpers, tmp_path):
    """A start that fell back from a damaged checkpoint of 160 has just written 80."""
    one = job(helpers, tmp_path, keep_checkpoints=1, keep_snapshots=1)
    save_checkpoints(one, 40, 80, 160)
    save_snapshots(one, 40, 80, 120, 160)
    earlier = retention.found(one)
    assert earlier == [40, 80, 120, 160]
    retention.checkpoints(one, 80, [40, 160])
    retention.snapshots(one, 80, earlier)
    assert checkpoint.saved(one.checkpoints) == left(one, "checkpoints") == [80]
    assert left(one, "snapshots") == [80]


def test_what_a_later_start_has_written_stays(helpers, tmp_path: Path):
    """A start that was taken for dead wakes up, and writes 80 when its successor is at 160."""
    one = job(helpers, tmp_path, keep_checkpoints=1, keep_snapshots=1)
    save_checkpoints(one, 40, 80, 160)
    save_snapshots(one, 40, 80, 160)
    retention.checkpoints(one, 80, [40])
    retention.snapshots(one, 80, [40])
    assert checkpoint.saved(one.checkpoints) == [80, 160]
    assert left(one, "snapshots") == [80, 160]


def test_nothing_is_deleted_while_nobody_knows_which_is_the_best(helpers, tmp_path: Path):
    one = job(helpers, tmp_path, keep_snapshots=1)
    save_snapshots(one, 40, 80, 120)
    storage.put(f"{one.run_dir}/best.json", b'{"format": "imagen/be')
    retention.snapshots(one, 120, [])
    assert left(one, "snapshots") == [40, 80, 120]
    storage.delete(f"{one.run_dir}/best.json")
    retention.snapshots(one, 120, [])
    assert left(one, "snapshots") == [120]


def test_a_best_one_that_is_found_meanwhile_stays(helpers, tmp_path: Path, monkeypatch):
    one = job(helpers, tmp_path, keep_snapshots=1)
    save_snapshots(one, 40, 80, 120)
    delete = retention.delete

    def found_meanwhile(folder: str, name: str) -> None:
        best = {"snapshot": "snapshots/000000000080", "images_seen": 80, "loss": 0.1}
        manifest.write(f"{one.run_dir}/best.json", rundir.BEST_KIND, best)
        delete(folder, name)

    monkeypatch.setattr(retention, "delete", found_meanwhile)
    retention.snapshots(one, 120, [])
    assert left(one, "snapshots") == [80, 120]
