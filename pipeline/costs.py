"""What stages have done, how fast, and what it took: from the logs and files that they leave."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.finished import METRICS
from imagen import storage
from pipeline.config import PipelineConfig
from pipeline.stages import Stage
from preencode import driver as encoding
from preencode import prepare as preparing
from runtime import log
from runtime.state import StageState

RECENT = 20
"""Lines of a log that say how fast it goes now."""
DONE_OF = re.compile(r"([\d,]+) of ([\d,]+) ([a-z]+)")

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How much a stage has done and what it took, as far as it tells."""

    done: int | None = None
    total: int | None = None
    unit: str = ""
    per_s: float | None = None
    """Units a second with the workers that it had last."""
    workers: int | None = None
    """How many it had last."""
    worker_s: float | None = None
    """Seconds of all workers together; None: the stage does not tell.

    Of all starts; an evaluation tells of its last one.
    """
    gpu: bool = False
    """Whether the workers have a GPU each."""
    mfu: float | None = None
    """Share of the devices' peak that was reached last."""

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the last rate; None: not known."""
        if None in (self.done, self.total) or not self.per_s:
            return None
        assert self.done is not None, "checked above"
        assert self.total is not None, "checked above"
        return max(0, self.total - self.done) / self.per_s


def progress(config: PipelineConfig, stage: Stage, state: StageState) -> Progress:
    """Return the progress of a stage; what it does not tell is None. Touches nothing."""
    if stage.training:
        events = log.read(stage.training.log)
        return of_training(events, done_of(state), stage.training.images)
    known: dict[str, Callable[[], Progress]] = {
        "preencode": lambda: of_shards(log.read(encoding.log_path(config.preencode)), state),
        "prepare": lambda: of_shards(log.read(preparing.log_path(config.preencode)), state),
        "eval": lambda: of_evaluation(state, config.eval.eval.count),
    }
    return known.get(stage.name, Progress)()


def done_of(state: StageState) -> int | None:
    """Return the first number of a state's detail: `6,400 of 38,400 images`."""
    found = re.match(r"[\d,]+", state.detail)
    return int(found[0].replace(",", "")) if found else None


def of_training(events: Sequence[Event], saved: int | None, total: int) -> Progress:
    """Return the progress of a training. `saved`: images of its newest checkpoint."""
    starts = [i for i, event in enumerate(events) if event.get("event") == "start"]
    lately = events[starts[-1] :] if starts else []
    lines = [e for e in lately if e.get("images_per_s")][-RECENT:]
    seen = [e["images_seen"] for e in lately if "images_seen" in e]
    rates = [line["images_per_s"] for line in lines]
    shares = [line["mfu"] for line in lines if line.get("mfu")]
    return Progress(
        done=min(total, max(saved or 0, seen[-1] if seen else 0)),
        total=total,
        unit="images",
        per_s=len(rates) / sum(1 / rate for rate in rates) if rates else None,
        workers=(lines or lately)[-1].get("world_size", 1) if lately else None,
        worker_s=worker_seconds(events) if starts else None,
        gpu=bool(starts) and str(events[starts[-1]].get("device", "")).startswith("cuda"),
        mfu=sum(shares) / len(shares) if shares else None,
    )


def worker_seconds(events: Sequence[Event]) -> float:
    """Return the seconds of all workers together, from each start to the last line before the next.

    What a start needs before its first line, and what ran after the last one, is not in the log.
    """
    seconds, last, workers = 0.0, None, 1
    for event in events:
        if event.get("event") == "start":
            last = None
        if last is not None:
            seconds += max(0.0, event["time"] - last) * workers
        last, workers = event["time"], event.get("world_size", workers)
    return seconds


def of_shards(events: Sequence[Event], state: StageState) -> Progress:
    """Return the progress of a stage whose unit of work is a shard."""
    starts = [i for i, event in enumerate(events) if event.get("event") == "start"]
    if not starts:
        return Progress()
    begin, shards = events[starts[-1]], _shards(events[starts[-1] :])
    done = begin["shards"] - begin["left"] + len({e["shard"] for e in shards})
    passed = shards[-1]["time"] - begin["time"] if shards else 0.0
    devices = {event.get("device") for event in shards}
    return Progress(
        done=begin["shards"] if state.status == "done" else done,
        total=begin["shards"],
        unit="shards",
        per_s=len(shards) / passed if passed > 0 else None,
        workers=len({(event.get("host"), event["pid"]) for event in shards}) or None,
        worker_s=sum(event["seconds"] for event in _shards(events)),
        gpu="cuda" in devices,
    )


def _shards(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.get("event") == "shard"]


def of_evaluation(state: StageState, count: int) -> Progress:
    """Return the progress of the newest evaluation: from its state, and what it says of itself.

    What it took is the time of the actors that sampled; judging is done where the driver runs.
    """
    unfinished = DONE_OF.search(state.detail) if state.status == "partial" else None
    if state.status != "done":
        done = int(unfinished[1].replace(",", "")) if unfinished else None
        return Progress(done=done, total=count, unit="images")
    cost = next((_cost(p) for p in state.outputs if storage.name(p) == METRICS), {})
    seconds = cost.get("seconds") or {}
    sampling, actors = seconds.get("sample"), cost.get("actors")
    return Progress(
        done=count,
        total=count,
        unit="images",
        per_s=count / sampling if sampling else None,
        workers=actors,
        worker_s=sampling * actors if sampling and actors else None,
        gpu=cost.get("device") == "cuda",
    )


def _cost(path: str) -> dict[str, Any]:
    """Return what an evaluation tells of its cost."""
    data = storage.get_if_there(path)
    try:
        return json.loads(data or b"{}").get("cost") or {}
    except (ValueError, AttributeError):
        return {}
