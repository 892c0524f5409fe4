"""One evaluation from samples to manifest: what `eval.stage` runs when there is work to do."""

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval import extractors, film, prompts, sampled, sampling, score, sweeps
from eval.config import EvalConfig
from eval.film import Film
from eval.inputs import Inputs
from eval.measures import losses
from eval.memorisation import Nearest
from eval.report import images
from eval.sampling import Chunk, Source
from imagen import manifest, picture, storage
from imagen.config import dump_yaml
from imagen.data.images import decode
from imagen.data.prepared import Prepared
from imagen.text.encoder import encoder_fingerprint
from runtime import progress, session

MANIFEST, KIND = "manifest.json", "eval"
GRID, PREVIEW, METRICS, LINES = "grid.png", "preview.png", "metrics.json", "images.jsonl"
FILM, NEAREST, CONFIG = "denoising.webp", "nearest.png", "config.yaml"
MOST_YARDSTICKS = 2
"""Of the whole cascade and of a base alone: up to 70 MB each."""
_YARDSTICKS: dict[Any, score.Yardstick] = {}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation that is under way: where it goes and what it came to so far."""

    config: EvalConfig
    """With no more members than are evaluated."""
    inputs: Inputs
    cascade: str
    """Fingerprint of the cascade that the snapshots make."""
    folder: str
    complete: bool = True
    """Whether all members of the project are in it."""
    named: bool = False
    """Whether a person chose the snapshots."""
    seconds: dict[str, float] = field(default_factory=dict)
    crew: dict[str, Any] = field(default_factory=dict)
    """How many actors sampled, and where."""

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note how long a part took."""
        start = time.monotonic()
        yield
        self.seconds[part] = round(time.monotonic() - start, 2)

    @property
    def source(self) -> Source:
        """What the actors sample from."""
        section = self.config.eval
        return Source(
            self.inputs.snapshots, self.config.text, section, extractors.fingerprint(section)
        )

    @property
    def items(self) -> list[prompts.Item]:
        """What is sampled."""
        return prompts.items(self.config.eval)

    @property
    def chunks(self) -> list[Chunk]:
        """The samples, in the order of the items."""
        folder = storage.join(self.folder, "samples")
        return sampling.chunks(folder, self.items, self.cascade, self.config.eval.options)

    @property
    def points(self) -> dict[str, list[tuple[sweeps.Point, list[Chunk]]]]:
        """The values of each sweep and their samples."""
        found = sweeps.by_sweep(sweeps.points(self.config))
        return {
            name: [(p, sweeps.chunks(self.config, p, self.folder, self.cascade)) for p in values]
            for name, values in found.items()
        }

    @property
    def tasks(self) -> list[Chunk | Film]:
        """All that actors do."""
        swept = [chunk for values in self.points.values() for _, work in values for chunk in work]
        options = self.config.eval.options
        shown = Film(storage.join(self.folder, FILM), film.chosen(self.items), options)
        return [*self.chunks, *swept, shown]

    def sampled(self, work: Sequence[Chunk], items: list[prompts.Item]) -> score.Sampled:
        """Return finished samples, which are read when they are looked at."""
        members, chunks = self.config.members, sampled.Chunks(work)
        return score.Sampled(items, {name: sampled.ChunkImages(chunks, name) for name in members})


def evaluate(
    evaluation: Evaluation, prepared: Prepared, address: str | None, check: Callable[[], None]
) -> None:
    """Sample what is missing, measure, publish. Raises ShardError before anything is sampled.

    `check` is called before results are published: it raises where they are another's to publish.
    """
    config = evaluation.config
    with evaluation.timed("real images and judge"):
        real = _yardstick(config, prepared)
    storage.delete(storage.join(evaluation.folder, MANIFEST))
    with evaluation.timed("sample"):
        _sample(evaluation, address)
    files = _measure(evaluation, real, prepared)
    check()
    _publish(evaluation, files)


def _yardstick(config: EvalConfig, prepared: Prepared) -> score.Yardstick:
    """Return what samples are held against; line-ups of one round have it in common."""
    last, section = list(config.members.values())[-1], config.eval
    index = storage.join(prepared.index_dir, "manifest.json")
    files = [path for path in (index, section.features.reference) if path]
    versions = tuple(storage.version(path) for path in files)
    key = (index, versions, last.shape, last.network.channels, section)
    if key not in _YARDSTICKS:
        while len(_YARDSTICKS) >= MOST_YARDSTICKS:
            del _YARDSTICKS[next(iter(_YARDSTICKS))]
        kept = storage.join(config.evals, "reference")
        _YARDSTICKS[key] = score.yardstick(prepared, last, section, kept)
    return _YARDSTICKS[key]


def _sample(evaluation: Evaluation, address: str | None) -> None:
    source = evaluation.source
    missing = source.missing(evaluation.tasks)
    if not missing:
        return
    left = sum(len(task.items) for task in missing if isinstance(task, Chunk))
    with session.connect(address), progress.bar("sample", left, "images") as bar:
        crew = sampling.sample_missing(source, missing, bar.advance)
    evaluation.crew.update(crew._asdict())


def _measure(evaluation: Evaluation, real: score.Yardstick, prepared: Prepared) -> dict[str, bytes]:
    """Return the files of an evaluation by name, all but the samples."""
    config, names = evaluation.config, evaluation.source.extractor
    work = evaluation.chunks
    mine = evaluation.sampled(work, evaluation.items)
    with evaluation.timed("measure"):
        found = score.measure(config, mine, real, sampled.features(work, names))
        curves = {sweep: _points(evaluation, values, real) for sweep, values in
                  evaluation.points.items()}  # fmt: skip
    body = _head(evaluation, prepared) | found.body | _losses(evaluation)
    pairs = _pairs(config, real.training, found.nearest, prepared)
    body["memorisation"] |= {"pairs": [{"image": p.sample, "distance": p.distance} for p in pairs]}
    if curves:
        body["sweeps"] = curves
    files = {
        GRID: picture.png(images.grid(mine, config.eval.grid)),
        PREVIEW: picture.png(images.preview(mine, config.eval.grid)),
        **_sweep_grids(evaluation),
        LINES: _lines(mine, found.columns),
    }
    if pairs:
        shown = [images.Pair(p.sample, mine.final[p.sample], p.original) for p in pairs]
        files[NEAREST] = picture.png(images.nearest(shown))
    body["cost"] = {"seconds": evaluation.seconds, "images": len(mine.items), **evaluation.crew}
    return files | {
        METRICS: json.dumps(body, indent=1).encode() + b"\n",
        CONFIG: dump_yaml(config).encode(),
    }


def _points(
    evaluation: Evaluation,
    values: Sequence[tuple[sweeps.Point, list[Chunk]]],
    real: score.Yardstick,
) -> list[dict[str, Any]]:
    """Return the figures of each value of one sweep."""
    config, items = evaluation.config, sweeps.items(evaluation.config)
    names = evaluation.source.extractor
    rows = []
    for point, work in values:
        mine = evaluation.sampled(work, items)
        figures = score.measure_point(config, mine, real, sampled.features(work, names))
        rows.append({"value": point.value, **figures})
    return rows


def _sweep_grids(evaluation: Evaluation) -> dict[str, bytes]:
    """Return the labelled grid of each sweep: a row a prompt, a column a value."""
    items, shape = sweeps.items(evaluation.config), evaluation.config.eval.grid
    grids = {}
    for sweep, values in evaluation.points.items():
        columns = [evaluation.sampled(work, items).final for _, work in values]
        labels = [point.label for point, _ in values]
        drawn = images.sweep_grid(items, columns, labels, shape.prompts)
        grids[f"sweep-{sweep}.png"] = picture.png(drawn)
    return grids


def _lines(mine: score.Sampled, columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Return images.jsonl: a line an image, in order."""
    rows = []
    for i, item in enumerate(mine.items):
        found = {name: values[i] for name, values in columns.items()}
        rows.append(json.dumps({"prompt": item.prompt, "seed": item.seed, **found}))
    return "\n".join(rows).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class _Pair:
    """A sample, by its number, and the training image nearest to it, uint8 (h, w, c)."""

    sample: int
    distance: float
    original: np.ndarray


def _pairs(config: EvalConfig, training: Any, nearest: Nearest, prepared: Prepared) -> list[_Pair]:
    """Return the samples that are nearest to a training image, nearest first."""
    last = list(config.members.values())[-1]
    pairs = []
    for i in np.argsort(nearest.distance, kind="stable")[: images.SHOWN_NEAREST]:
        data = prepared.image(*training.where[nearest.index[i]])
        (planes,) = decode(data, (last.shape,), last.network.channels)
        original = planes.transpose(1, 2, 0)
        pairs.append(_Pair(int(i), round(float(nearest.distance[i]), 6), original))
    return pairs


def _losses(evaluation: Evaluation) -> dict[str, Any]:
    """Return what validation beside the training has found of these snapshots."""
    found = {}
    for name, body in evaluation.inputs.bodies.items():
        told = losses.read(evaluation.config.run_dir(name), body)
        if told is not None:
            found[name] = told
    return {"losses": found} if found else {}


def _head(evaluation: Evaluation, prepared: Prepared) -> dict[str, Any]:
    import torch

    config, inputs = evaluation.config, evaluation.inputs
    return {
        "name": config.name,
        "cascade": evaluation.cascade,
        "encoder": {"name": config.text.encoder, "fingerprint": encoder_fingerprint(config.text)},
        "data": prepared.fingerprint,
        "images_seen": inputs.images_seen,
        "snapshots": {n: manifest.fingerprint(body) for n, body in inputs.bodies.items()},
        "provenance": {name: body["provenance"] for name, body in inputs.bodies.items()},
        "images": config.eval.count,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": f"{platform.system()} {platform.machine()}",
        },
    }


def _publish(evaluation: Evaluation, files: dict[str, bytes]) -> None:
    work, source = evaluation.tasks, evaluation.source
    entries = manifest.put_files(evaluation.folder, files)
    entries |= sampling.entries(evaluation.folder, work, source)
    metrics = json.loads(files[METRICS])
    body = {
        "fingerprint": evaluation.inputs.fingerprint,
        "cascade": evaluation.cascade,
        "images_seen": evaluation.inputs.images_seen,
        "images": evaluation.config.eval.count,
        "complete_cascade": evaluation.complete,
        "named": evaluation.named,
        "time": round(time.time(), 3),
        "told": _told(metrics),
        "files": entries,
    }
    manifest.write(storage.join(evaluation.folder, MANIFEST), KIND, body)
    sampling.sweep(work, source)


def _told(metrics: Mapping[str, Any]) -> str:
    """Return in a few words what was found."""
    for section, figure, name in (
        (metrics, "digit_accuracy", "digit accuracy"),
        (metrics.get("shapes", {}), "all_right", "everything right in"),
    ):
        if section.get(figure, {}).get("value") is not None:
            return f"{name} {section[figure]['value']:.1%}"
    return "not judged"
