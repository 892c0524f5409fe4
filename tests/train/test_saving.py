"""Checkpoints are written while training goes on, one at a time, and failures surface in it."""

import shutil
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from imagen import checkpoint, snapshot, storage
from imagen.errors import StorageError
from runtime import log
from runtime.log import JsonLog
from train import attempts, audit, notice, rundir
from train.job import Job
from train.loop import Trainer, World
from train.saving import Saver
from train.worker import run_rank

ALONE = World(0, 1, torch.device("cpu"))


class HeldStore(MemoryFileSystem):
    """A store in memory whose writes of checkpoints wait until the test lets them go."""

    protocol = "held"
    store: dict = {}  # noqa: RUF012 - as MemoryFileSystem has them
    pseudo_dirs = [""]  # noqa: RUF012
    go = threading.Event()
    written: list[str] = []  # noqa: RUF012
    refused: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("held://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if "/checkpoints/" in path:
            if any(part in path for part in self.refused):
                raise PermissionError(path)
            assert self.go.wait(120), "the test never let it go"
            self.written.append(path)
        super().pipe_file(path, value, mode=mode, **kwargs)


@pytest.fixture
def held():
    fsspec.register_implementation("held", HeldStore, clobber=True)
    HeldStore.store.clear()
    HeldStore.pseudo_dirs[:] = [""]
    HeldStore.written.clear()
    HeldStore.refused.clear()
    HeldStore.go.clear()
    yield HeldStore
    HeldStore.go.set()


def job(helpers, folder: str, launch: str = "one", **train: object) -> Job:
    return Job(helpers.make_config(folder, **train), "base", launch)


def happened(job: Job, event: str) -> list[dict]:
    return [e for e in log.read(f"{job.run_dir}/log.jsonl") if e.get("event") == event]


def test_a_save_returns_before_it_is_written_and_holds_what_was_then(helpers, held):
    one = job(helpers, "held://run")
    saver, state = Saver(one, ALONE), {"w": torch.ones(3)}
    saver.save(8, state, {}, "interval")
    state["w"].add_(1)  # training goes on
    assert saver.finished() == []
    assert checkpoint.saved(one.checkpoints) == []
    held.go.set()
    saver.wait()
    (saved,) = saver.finished()
    assert (saved.images_seen, saved.reason) == (8, "interval")
    assert 0 <= saved.waited_s <= saved.seconds
    assert torch.equal(checkpoint.load(one.checkpoints, 8).tensors["w"], torch.ones(3))


def test_a_second_save_waits_until_the_first_is_complete(helpers, held):
    one = job(helpers, "held://run")
    saver, state = Saver(one, ALONE), {"w": torch.ones(3)}
    saver.save(8, state, {}, "interval")
    second = threading.Thread(target=lambda: saver.save(16, state, {}, "end"))
    second.start()
    held.go.set()
    second.join()
    saver.wait()
    assert [saved.images_seen for saved in saver.finished()] == [8, 16]
    kinds = [(path.split("/")[-2][-2:], path.split("/")[-1].split("-")[0]) for path in held.written]
    files = ["state", "layout", "checkpoint.json"]
    assert kinds == [(at, file) for at in ("08", "16") for file in files]


def test_training_goes_on_while_a_checkpoint_is_on_its_way(helpers, held, monkeypatch):
    """Nothing is written before three more steps were taken: saving that blocks never ends."""
    helpers.write_data("held://project")
    step, taken = Trainer.step, []

    def counted(self, parts):
        step(self, parts)
        taken.append(self.images_seen)
        if self.images_seen == 64:  # the checkpoint was begun at 40
            held.go.set()

    monkeypatch.setattr(Trainer, "step", counted)
    one = job(helpers, "held://project", images=80)
    run_rank(one, ALONE)
    assert taken == list(range(8, 81, 8))
    assert checkpoint.saved(one.checkpoints) == [40, 80]
    events = [e for e in log.read(f"{one.run_dir}/log.jsonl") if e.get("event") != "start"]
    told = [e.get("event") or e["images_seen"] for e in events]
    assert told.index("checkpoint") > told.index(56)
    assert [e["reason"] for e in happened(one, "checkpoint")] == ["interval", "end"]
    assert all(e["waited_s"] <= e["seconds"] for e in happened(one, "checkpoint"))


def test_a_failed_upload_ends_the_launch_and_the_next_goes_on(helpers, held, tmp_path: Path):
    held.go.set()
    helpers.write_data("held://failing")
    held.refused.append("000000000120")
    one = job(helpers, "held://failing")
    with pytest.raises(StorageError, match=r"cannot write.*000000000120.*permission denied") as err:
        run_rank(one, ALONE)
    assert attempts.kind_of(err.value) == "user"  # nothing gets better by trying again
    assert "permission denied" in str(one.attempts.given_up())
    assert checkpoint.saved(one.checkpoints) == [40, 80]
    held.refused.clear()
    run_rank(job(helpers, "held://failing", "two"), ALONE)
    assert [e["images_seen"] for e in happened(one, "start")] == [0, 80]
    helpers.write_data(str(tmp_path))
    quiet = job(helpers, str(tmp_path))
    run_rank(quiet, ALONE)
    ends = [checkpoint.load(j.checkpoints, 160).tensors for j in (one, quiet)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_a_checkpoint_is_not_published_when_its_snapshot_failed(helpers, project, monkeypatch):
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(snapshot, "save", full)
    one = job(helpers, project, images=80)
    with pytest.raises(StorageError, match="the disk is full"):
        run_rank(one, ALONE)
    assert checkpoint.saved(one.checkpoints) == [40]


def test_a_notice_saves_at_once_and_training_goes_on_when_nobody_comes(helpers, project: str):
    one = job(helpers, project, images=40)
    notice.ask("resize", park_s=0)
    run_rank(one, ALONE)
    told = [(e["images_seen"], e["reason"]) for e in happened(one, "checkpoint")]
    assert told == [(8, "resize"), (40, "end")]
    assert rundir.finished(one.run_dir) is not None


def test_the_log_tells_of_a_notice_in_the_step_that_ends_an_interval(
    helpers, project: str, monkeypatch
):
    one = job(helpers, project, images=120)
    step = Trainer.step

    def asked(self, parts):
        step(self, parts)
        if self.images_seen == 80:
            notice.ask("stop", park_s=0)

    monkeypatch.setattr(Trainer, "step", asked)
    run_rank(one, ALONE)
    told = [(e["images_seen"], e["reason"]) for e in happened(one, "checkpoint")]
    assert told == [(40, "interval"), (80, "stop"), (120, "end")]


def curve(one: Job) -> list[tuple[int, float, float, int]]:
    lines = [e for e in log.read(f"{one.run_dir}/log.jsonl") if "loss" in e]
    return [(e["images_seen"], e["loss"], e["grad_norm"], e["bad_samples"]) for e in lines]


class Gone(BaseException):
    """What a machine is that was announced to go."""


def test_a_notice_leaves_the_logged_curve_as_it_is(helpers, tmp_path: Path, monkeypatch):
    """Also when another start ends the interval, and samples in it are bad."""
    options: dict[str, Any] = {
        "images": 80,
        "log_every": 40,
        "checkpoint_every": 80,
        "snapshot_every": 80,
    }
    runs = {}
    for name in ("quiet", "stays", "goes"):
        folder = tmp_path / name
        helpers.write_data(str(folder))
        for tar in (folder / "data").glob("*.tar"):  # spoil the pixels of a few, after indexing
            content = tar.read_bytes()
            at = content.find(b"IDAT", len(content) // 2)
            tar.write_bytes(content[:at] + b"xxxx" + content[at + 4 :])
        runs[name] = job(helpers, str(folder), **options)
    run_rank(runs["quiet"], ALONE)
    step = Trainer.step

    def asked(self, parts):
        step(self, parts)
        if self.images_seen in (24, 64):
            notice.ask("resize", park_s=0)

    monkeypatch.setattr(Trainer, "step", asked)
    run_rank(runs["stays"], ALONE)

    def leave(_: str) -> None:
        notice._notice.reason = ""
        raise Gone

    monkeypatch.setattr(notice, "after_save", leave)
    for _ in range(2):
        with pytest.raises(Gone):
            run_rank(runs["goes"], ALONE)
    run_rank(runs["goes"], ALONE)
    assert [e["images_seen"] for e in happened(runs["goes"], "start")] == [0, 24, 64]
    assert [e["reason"] for e in happened(runs["stays"], "checkpoint")] == [
        "resize",
        "resize",
        "end",
    ]
    assert [at for at, *_ in curve(runs["quiet"])] == [40, 80]
    assert curve(runs["quiet"])[-1][-1] > 0
    assert curve(runs["stays"]) == curve(runs["quiet"])
    assert curve(runs["goes"]) == curve(runs["quiet"])
    kept = [
        {e["key"] for e in log.read(f"{one.run_dir}/quarantine.jsonl")} for one in runs.values()
    ]
    assert kept[0] == kept[1] == kept[2] != set()


def test_whoever_finds_a_checkpoint_on_a_store_finds_all_that_led_to_it(
    helpers, tmp_path: Path, monkeypatch
):
    """The process vanishes as soon as a checkpoint is there: nothing is closed."""
    folder = f"memory://vanished{tmp_path}"
    helpers.write_data(folder)
    one = job(helpers, folder, audit=True)
    step = Trainer.step

    def vanishing(self, parts):
        if self.images_seen == 56:  # the checkpoint was begun at 40
            while 40 not in checkpoint.saved(one.checkpoints):
                pass
            raise Gone
        step(self, parts)

    monkeypatch.setattr(Trainer, "step", vanishing)
    monkeypatch.setattr(JsonLog, "close", lambda _: None)
    with pytest.raises(Gone):
        run_rank(one, ALONE)
    assert set(audit.committed(one.run_dir)) >= {0, 1, 2, 3, 4}
    assert [at for at, *_ in curve(one)][:5] == [8, 16, 24, 32, 40]
    assert len(happened(one, "start")) == 1


def test_whoever_is_parked_has_told_everything(helpers, tmp_path: Path, monkeypatch):
    folder = f"memory://parked{tmp_path}"
    helpers.write_data(folder)
    one = job(helpers, folder)

    def leave(_: str) -> None:
        notice._notice.reason = ""
        raise Gone

    monkeypatch.setattr(JsonLog, "close", lambda _: None)
    monkeypatch.setattr(notice, "after_save", leave)
    notice.ask("preemption")
    with pytest.raises(Gone):
        run_rank(one, ALONE)
    assert [e["reason"] for e in happened(one, "checkpoint")] == ["preemption"]


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "steps", "at"), [("adamw", 100, 60), ("adafactor", 20, 12)])
def test_straight_steps_equal_fewer_and_the_rest_after_a_resume(
    helpers, project: str, optimizer: str, steps: int, at: int
):
    """60 steps, and 40 more from their checkpoint, are 100 steps bit for bit."""
    options = {
        "images": 8 * steps, "checkpoint_every": 8 * at, "snapshot_every": 8 * steps,
        "optimizer": optimizer, "ema_profiles": (0.05, 0.1), "warmup_images": 80,
        "decay_images": 160, "decay": "cosine", "validate": 1,
    }  # fmt: skip
    one = job(helpers, project, **options)
    run_rank(one, ALONE)
    run = Path(one.run_dir)
    name = checkpoint.folder_name(8 * steps)
    straight = checkpoint.load(one.checkpoints, 8 * steps).tensors
    files = {path.name: path.read_bytes() for path in (run / "snapshots" / name).iterdir()}
    for folder in ("checkpoints", "snapshots"):
        shutil.rmtree(run / folder / name)
    (run / "run.json").unlink()
    run_rank(job(helpers, project, "two", **options), ALONE)
    assert [e["images_seen"] for e in happened(one, "start")] == [0, 8 * at]
    resumed = checkpoint.load(one.checkpoints, 8 * steps).tensors
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)
    assert files == {path.name: path.read_bytes() for path in (run / "snapshots" / name).iterdir()}
    assert len(files) == 5  # averaged, raw, two profiles and the manifest


def test_other_averages_and_another_optimizer_begin_where_they_are_asked_for(helpers, project):
    run_rank(job(helpers, project, images=40), ALONE)
    other = {"images": 80, "optimizer": "adafactor", "ema_profiles": (0.05, 0.1)}
    one = job(helpers, project, "two", **other)
    run_rank(one, ALONE)
    found = checkpoint.load(one.checkpoints, 80).tensors
    kinds = {name.partition("/")[0] for name in found}
    assert {"net", "ema", "ema@0.05", "ema@0.1", "row_var", "step"} <= kinds
    assert "exp_avg" not in kinds
    assert all(float(t) == 5 for name, t in found.items() if name.startswith("step/"))
    (changed,) = happened(one, "recipe_changed")
    assert changed["differences"] == ["images: was 40, is 80", "optimizer: was adamw, is adafactor"]


def test_the_first_snapshot_is_of_step_0_when_snapshots_are_looked_at(helpers, project: str):
    one = job(helpers, project, images=16, validate=4)
    run_rank(one, ALONE)
    assert storage.listdir(f"{one.run_dir}/snapshots") == ["000000000000", "000000000016"]
    first = f"{one.run_dir}/snapshots/000000000000"
    raw, averaged = snapshot.load_extra(first, "raw"), snapshot.load(first).state_dict
    assert all(torch.equal(raw[name], averaged[name]) for name in raw)
