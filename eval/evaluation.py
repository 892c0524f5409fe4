"""One evaluation from samples to manifest: what `eval.stage` runs when there is work to do."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval import prompts, reference, report, sampling, score
from eval.config import EvalConfig
from eval.inputs import Inputs
from eval.memorisation import Nearest
from imagen import manifest, picture, storage
from imagen.config import dump_yaml
from imagen.data.images import decode
from imagen.data.prepared import Prepared
from imagen.text.encoder import encoder_fingerprint
from runtime import progress, session

MANIFEST, KIND = "manifest.json", "eval"
GRID, PREVIEW, METRICS, REPORT = "grid.png", "preview.png", "metrics.json", "report.html"
CONFIG = "config.yaml"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation that is under way: where it goes and what it came to so far."""

    config: EvalConfig
    inputs: Inputs
    cascade: str
    """Fingerprint of the assembled cascade."""
    folder: str
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note how long a part took."""
        start = time.monotonic()
        yield
        self.seconds[part] = round(time.monotonic() - start, 2)


def chunks(config: EvalConfig, folder: str, fingerprint: str) -> list[sampling.Chunk]:
    """Return the chunks of an evaluation that goes to `folder`."""
    return sampling.chunks(
        storage.join(folder, "samples"),
        prompts.items(config.eval),
        fingerprint,
        config.eval.options,
    )


def evaluate(evaluation: Evaluation, prepared: Prepared, address: str | None) -> None:
    """Sample what is missing, measure and report. Raises ShardError before anything is sampled."""
    config, folder = evaluation.config, evaluation.folder
    with evaluation.timed("real images and judge"):
        last = list(config.members.values())[-1]
        real = score.yardstick(prepared, last, config.eval.judge)
    storage.delete(storage.join(folder, MANIFEST))
    work = chunks(config, folder, evaluation.cascade)
    with evaluation.timed("sample"):
        _sample(evaluation, work, address)
    sampled = score.Sampled(prompts.items(config.eval), sampling.read(work, config.members))
    body, findings = _measure(evaluation, sampled, real, prepared)
    grid = picture.png(report.grid(sampled, config.eval.grid))
    files = {
        GRID: grid,
        PREVIEW: picture.png(report.preview(sampled, config.eval.grid)),
        METRICS: json.dumps(body, indent=1).encode() + b"\n",
        REPORT: report.page(config, body, findings, grid).encode(),
        CONFIG: dump_yaml(config).encode(),
    }
    _publish(evaluation, files, work, body)


def _sample(evaluation: Evaluation, work: list[sampling.Chunk], address: str | None) -> None:
    missing = [chunk for chunk in work if not storage.exists(chunk.path)]
    left = sum(len(chunk.items) for chunk in missing)
    if not left:
        return
    with session.connect(address), progress.bar("sample", left, "images") as bar:
        sampling.sample_missing(
            evaluation.config.cascade, missing, evaluation.config.eval.options, bar.advance
        )


def _measure(
    evaluation: Evaluation, sampled: score.Sampled, real: score.Yardstick, prepared: Prepared
) -> tuple[dict[str, Any], report.Findings]:
    body = _head(evaluation, prepared)
    verdicts = None
    with evaluation.timed("measure"):
        copied, nearest = score.memorisation(sampled, real)
        if real.judge is not None:
            judged, verdicts = score.digit_accuracy(sampled, real, real.judge)
            body |= judged
    body |= {"memorisation": copied, "cost": {"seconds": evaluation.seconds}}
    pairs = _pairs(evaluation.config, real.training, nearest, prepared)
    return body, report.Findings(sampled, verdicts, pairs)


def _pairs(
    config: EvalConfig, training: reference.Reference, nearest: Nearest, prepared: Prepared
) -> list[report.Pair]:
    """Return the samples that are nearest to a training image, nearest first."""
    last = list(config.members.values())[-1]
    pairs = []
    for i in np.argsort(nearest.distance, kind="stable")[: report.SHOWN_NEAREST]:
        data = prepared.image(*training.where[nearest.index[i]])
        (planes,) = decode(data, (last.shape,), last.network.channels)
        original = planes.transpose(1, 2, 0)
        pairs.append(report.Pair(int(i), float(nearest.distance[i]), original))
    return pairs


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


def _publish(
    evaluation: Evaluation,
    files: dict[str, bytes],
    work: list[sampling.Chunk],
    metrics: dict[str, Any],
) -> None:
    entries = manifest.put_files(evaluation.folder, files) | sampling.entries(work)
    body = {
        "fingerprint": evaluation.inputs.fingerprint,
        "cascade": evaluation.cascade,
        "images_seen": evaluation.inputs.images_seen,
        "images": evaluation.config.eval.count,
        "digit_accuracy": metrics.get("digit_accuracy"),
        "files": entries,
    }
    manifest.write(storage.join(evaluation.folder, MANIFEST), KIND, body)
    sampling.sweep(work)
