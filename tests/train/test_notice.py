import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from train import notice
from train.loop import World

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def nothing_asked() -> Iterator[None]:
    yield
    notice._notice, notice._votes = notice._Notice(), None


def test_nothing_is_agreed_until_somebody_asks():
    assert notice.agreed(ALONE) is None
    thread = threading.Thread(target=notice.ask, args=("preemption",))
    thread.start()
    thread.join()
    assert notice.agreed(ALONE) == "preemption"


def test_whoever_has_saved_waits_for_its_end_and_goes_on_when_nobody_comes():
    seen: list[bool] = []

    def watch() -> None:
        while not notice.parked():
            pass
        notice.ask("resize", 60.0)  # what is asked of a parked rank is done already
        seen.append(True)

    notice.ask("resize", 0.2)
    thread = threading.Thread(target=watch)
    thread.start()
    notice.after_save("resize")
    thread.join()
    assert seen
    assert not notice.parked()
    assert notice.agreed(ALONE) is None


def test_who_does_not_know_when_its_machine_goes_waits_all_the_same():
    assert notice.park_s(0.0) == notice.PARK_S
    assert notice.PARK_S + 50 < notice.park_s(time.time() + 60) <= notice.PARK_S + 60


def peer(rank: int, size: int, folder: str) -> None:
    """One of several ranks: only rank 1 is asked, after its third step."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    world = World(rank, size, torch.device("cpu"))
    told = []
    for step in range(8):
        if rank == 1 and step == 3:
            notice.ask("preemption", 0.0)
        reason = notice.agreed(world)
        told.append(reason or "-")
        if reason:
            notice.after_save(reason)
    Path(folder, str(rank)).write_text(" ".join(told))
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_agree_at_the_same_step_whoever_was_asked(tmp_path: Path):
    spawn(peer, args=(3, str(tmp_path)), nprocs=3)
    told = {Path(tmp_path, str(rank)).read_text() for rank in range(3)}
    assert told == {"- - - - preemption - - -"}  # once, a step later, and on all
