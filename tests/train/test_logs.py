from pathlib import Path

import pytest

from runtime import log
from train.logs import RunLog


def write(folder: str, images_seen: int, losses: dict[int, float]) -> None:
    run = RunLog(folder, images_seen)
    run.event("start", images_seen=images_seen)
    for images, loss in losses.items():
        run.progress(images, step=images // 8, loss=loss, lr=0.5)
    run.close()


@pytest.mark.slow
def test_tensorboard_reads_the_curves_of_a_run_that_was_resumed(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(str(tmp_path), 0, {8: 0.9, 300: 0.7, 2**40: 0.1})
    write(str(tmp_path), 8, {300: 0.5})
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert set(curves.Tags()["scalars"]) == {"loss", "lr"}
    points = [(e.step, round(e.value, 6)) for e in curves.Scalars("loss")]
    assert points == [(8, 0.9), (300, 0.5)]  # what was trained again replaces what it was


@pytest.mark.parametrize("place", ["local", "memory"])
def test_the_log_holds_events_and_progress(tmp_path: Path, place: str):
    folder = str(tmp_path) if place == "local" else f"memory://logs{tmp_path}"
    write(folder, 0, {8: 0.25})
    first, second = log.read(f"{folder}/log.jsonl")
    assert (first["event"], first["images_seen"]) == ("start", 0)
    assert (second["images_seen"], second["step"], second["loss"]) == (8, 1, 0.25)
