"""Figures of evaluations as curves: TensorBoard always, Weights & Biases when a config names one.

TensorBoard's file is written anew from all finished evaluations: they may finish in any order, and
it draws points in the order of the file. Nothing here stops an evaluation: metrics.json has it all.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from eval import history
from eval.config import EvalConfig
from eval.figures import figures
from eval.history import Evaluation
from eval.report.images import as_png
from eval.report.samples import GRID, chosen
from imagen import storage
from imagen.config import to_tree
from imagen.errors import ImagenError
from runtime.wandb_run import Description, WandbRun

EVENTS: Any = event_pb2  # generated: type checkers cannot see the classes
SUMMARIES: Any = summary_pb2
FOLDER = "tensorboard"
GRID_PX = 900


def tell(config: EvalConfig, folder: str) -> None:
    """Tell the curves of a finished evaluation. What keeps it from that is said on stderr."""
    mine = history.open_evaluation(folder)
    if mine is None:
        return
    try:
        if storage.is_local(config.evals):  # object stores cannot append; metrics.jsonl is there
            _tensorboard(config)
    except (ImagenError, OSError) as err:
        print(f"tensorboard: {err}", file=sys.stderr)
    if config.eval.wandb and not mine.named:  # its snapshots may be of any time
        _wandb(config, mine)


def scalars(one: Evaluation) -> dict[str, float]:
    """Return the figures of an evaluation that have a value, as curves are named."""
    found = figures(one.metrics)
    return {
        key.replace(".", "/"): float(f.value) for key, f in found.items() if f.value is not None
    }


def _tensorboard(config: EvalConfig) -> None:
    """Write one event file of all comparable evaluations, then delete those before it."""
    folder = storage.join(config.evals, FOLDER)
    before = storage.listdir(folder)
    comparable = history.load(config).comparable
    writer = EventFileWriter(storage.local(folder))
    try:
        # readers forget what other files of this folder have told
        restart = EVENTS.SessionLog(status=EVENTS.SessionLog.START)
        _add(writer, EVENTS.Event(step=0, session_log=restart))
        for event in _events(comparable):
            _add(writer, event)
    finally:
        writer.close()
    for name in before:
        storage.delete(storage.join(folder, name))


def _add(writer: Any, event: Any) -> None:
    event.wall_time = time.time()
    writer.add_event(event)


def _events(comparable: Sequence[Evaluation]) -> list[Any]:
    """Return the events of evaluations by images seen: scalars, and the grids of some."""
    shown = chosen(comparable)
    events = []
    for one in comparable:
        values = [
            SUMMARIES.Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars(one).items()
        ]
        if one in shown and one.has(GRID):
            values.append(SUMMARIES.Summary.Value(tag="samples", image=_image(one)))
        events.append(EVENTS.Event(step=one.at, summary=SUMMARIES.Summary(value=values)))
    return events


def _image(one: Evaluation) -> Any:
    data, (width, height) = as_png(one.file(GRID), GRID_PX)
    return SUMMARIES.Summary.Image(
        encoded_image_string=data, width=width, height=height, colorspace=3
    )


def _wandb(config: EvalConfig, mine: Evaluation) -> None:
    """Send one evaluation, or keep it in files to be sent later."""
    about = Description(
        project=config.eval.wandb,
        folder=config.evals,
        name=f"{config.name}/eval",
        group=config.name,
        part="eval",
        config=to_tree(config),
    )
    run = WandbRun.open(about, otherwise="metrics.jsonl and TensorBoard")
    if run is not None:
        run.scalars(mine.at, scalars(mine))
        run.close()
