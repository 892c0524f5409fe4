"""The eval stage: assemble the cascade, sample, judge, report. Data first, manifest last.

```
<out>/cascade/                                     the newest members, ready for `imagen sample`
<out>/eval/<images seen, 12 digits>-<cascade>/
    samples/<chunk>.safetensors                    every image, uint8, by member
    grid.png, metrics.json, report.html, config.yaml
    manifest.json                                  written last
```
"""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval import inputs as eval_inputs
from eval import prompts, reference, report, sampling, score
from eval.config import EvalConfig
from eval.inputs import Inputs
from eval.memorisation import Nearest
from imagen import cascade, manifest, picture, storage
from imagen.config import dump_yaml
from imagen.data.prepared import Prepared
from imagen.errors import ImagenError
from imagen.text.encoder import encoder_fingerprint
from runtime import progress, session
from runtime.state import StageState, is_locked, lock

MANIFEST, KIND = "manifest.json", "eval"
FILES = ("grid.png", "metrics.json", "report.html", "config.yaml")


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


def folder_of(config: EvalConfig, inputs: Inputs, fingerprint: str) -> str:
    """Return where the evaluation of a cascade goes."""
    last = list(inputs.images_seen.values())[-1]
    return storage.join(config.evals, f"{last:012d}-{fingerprint[:8]}")


def state(config: EvalConfig) -> StageState:
    """Return how far the evaluation of the newest snapshots has come. Touches nothing."""
    pid = is_locked(config.evals) if storage.is_local(config.evals) else None
    if pid is not None:
        return StageState(stage="eval", status="running", detail=f"process {pid}")
    try:
        inputs = eval_inputs.gather(config)
    except ImagenError as err:
        return StageState(stage="eval", status="missing", detail=err.message)
    found = _finished(config, inputs)
    if found is not None:
        folder, body = found
        if _assembled(config) != body["cascade"]:
            detail = f"evaluated, but `{config.cascade}` is missing or holds another cascade"
            return StageState(stage="eval", status="partial", detail=detail)
        return StageState(stage="eval", status="done", detail=_told(body), outputs=_outputs(folder))
    others = [n for n in storage.listdir(config.evals) if n[:12].isdigit()]
    if others:
        detail = "the newest members or the eval section have not been evaluated yet"
        return StageState(stage="eval", status="stale", detail=detail)
    return StageState(stage="eval", status="missing", detail="not evaluated yet")


def _finished(config: EvalConfig, inputs: Inputs) -> tuple[str, dict[str, Any]] | None:
    """Return folder and manifest of the finished evaluation of `inputs`, or None."""
    for name in reversed(storage.listdir(config.evals)):
        folder = storage.join(config.evals, name)
        body = manifest.read_if_complete(storage.join(folder, MANIFEST), KIND)
        if body is not None and body["fingerprint"] == inputs.fingerprint:
            return folder, body
    return None


def _assembled(config: EvalConfig) -> str | None:
    """Return the fingerprint of the cascade that lies assembled, None when there is none."""
    path = storage.join(config.cascade, cascade.MANIFEST)
    return manifest.read(path, "cascade")["fingerprint"] if storage.exists(path) else None


def _outputs(folder: str) -> tuple[str, ...]:
    return tuple(storage.join(folder, name) for name in FILES)


def _told(body: dict[str, Any]) -> str:
    accuracy = body["digit_accuracy"]
    judged = "not judged" if accuracy is None else f"digit accuracy {accuracy['value']:.1%}"
    return f"{body['images']} images, {judged}"


def run(config: EvalConfig, address: str | None = None) -> StageState:
    """Evaluate the newest snapshots, unless that is done; return the state afterwards.

    Raises CheckpointError, ShardError or ConfigError before anything is sampled.
    """
    inputs, options = eval_inputs.gather(config), eval_inputs.options(config)
    prepared = Prepared.open(config.index)
    with lock(config.evals):
        fingerprint = cascade.assemble(
            config.cascade, inputs.snapshots, config.text, encoder_fingerprint(config.text)
        )
        if _finished(config, inputs) is None:
            folder = folder_of(config, inputs, fingerprint)
            _evaluate(Evaluation(config, inputs, fingerprint, folder), prepared, options, address)
    return state(config)


def _evaluate(
    evaluation: Evaluation,
    prepared: Prepared,
    options: cascade.SampleOptions,
    address: str | None,
) -> None:
    folder = evaluation.folder
    storage.delete(storage.join(folder, MANIFEST))
    chosen = prompts.items(evaluation.config.eval)
    sampled_to = storage.join(folder, "samples")
    work = sampling.chunks(sampled_to, chosen, evaluation.cascade, options)
    with evaluation.timed("sample"):
        _sample(evaluation, work, options, address)
    sampled = score.Sampled(chosen, sampling.read(work))
    body, findings = _measure(evaluation, sampled, prepared)
    grid = picture.png(report.grid(sampled, evaluation.config.eval.grid))
    page = report.page(evaluation.config, body, findings, grid)
    files = {
        "grid.png": grid,
        "metrics.json": json.dumps(body, indent=1).encode() + b"\n",
        "report.html": page.encode(),
        "config.yaml": dump_yaml(evaluation.config).encode(),
    }
    _publish(evaluation, files, body)


def _sample(
    evaluation: Evaluation,
    work: list[sampling.Chunk],
    options: cascade.SampleOptions,
    address: str | None,
) -> None:
    missing = [chunk for chunk in work if not storage.exists(chunk.path)]
    left = sum(len(chunk.items) for chunk in missing)
    if not left:
        return
    with session.connect(address), progress.bar("sample", left, "images") as bar:
        sampling.sample_missing(evaluation.config.cascade, missing, options, bar.advance)


def _measure(
    evaluation: Evaluation, sampled: score.Sampled, prepared: Prepared
) -> tuple[dict[str, Any], report.Findings]:
    config = evaluation.config
    last = list(config.members.values())[-1]
    with evaluation.timed("read real images"):
        training = reference.load(prepared, "train", last.size, last.network.channels)
        heldout = reference.load(prepared, "heldout", last.size, last.network.channels)
    with evaluation.timed("compare with training images"):
        copied, nearest = score.memorisation(sampled, training, heldout)
    body = _head(evaluation, prepared)
    verdicts = None
    if config.eval.judge == "digits":
        with evaluation.timed("judge"):
            judged, verdicts = score.digit_accuracy(sampled, training, heldout)
        body |= judged
    body |= {"memorisation": copied, "cost": {"seconds": evaluation.seconds}}
    return body, report.Findings(sampled, verdicts, nearest, _originals(training, nearest))


def _originals(training: reference.Reference, nearest: Nearest) -> dict[int, np.ndarray]:
    return {int(i): training.images[i] for i in np.unique(nearest.index)}


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


def _publish(evaluation: Evaluation, files: dict[str, bytes], metrics: dict[str, Any]) -> None:
    entries = manifest.put_files(evaluation.folder, files)
    body = {
        "fingerprint": evaluation.inputs.fingerprint,
        "cascade": evaluation.cascade,
        "images_seen": evaluation.inputs.images_seen,
        "images": evaluation.config.eval.count,
        "digit_accuracy": metrics.get("digit_accuracy"),
        "files": entries,
    }
    manifest.write(storage.join(evaluation.folder, MANIFEST), KIND, body)


def plan(config: EvalConfig) -> list[str]:
    """Return what `run` would do, one line each; touches nothing. Raises ConfigError."""
    options, chosen = eval_inputs.options(config), prompts.items(config.eval)
    distinct = len({item.prompt for item in chosen})
    lines = [f"{len(chosen)} images of {distinct} prompts, seeds from {config.eval.seed}"]
    for name, member in config.members.items():
        steps = options.steps or member.sampling.steps
        sampler = options.sampler or member.sampling.sampler
        scale = member.sampling.guidance_scale
        scale = scale if options.guidance_scale is None else options.guidance_scale
        lines.append(f"{name}: {member.size} px, {sampler}, {steps} steps, guidance {scale:g}")
    return lines + _readiness(config)


def _readiness(config: EvalConfig) -> list[str]:
    try:
        inputs = eval_inputs.gather(config)
    except ImagenError as err:
        return [f"not ready: {err.message}", *([f"hint: {err.hint}"] if err.hint else [])]
    seen = inputs.images_seen
    lines = [f"{n}: {folder}, {seen[n]:,} images seen" for n, folder in inputs.snapshots.items()]
    found = _finished(config, inputs)
    return [*lines, f"done in {found[0]}" if found else "to do: sample, judge, report"]
