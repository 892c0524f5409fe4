"""The eval stage: assemble the cascade, sample, judge, report. Data first, manifest last.

```
<out>/cascade/                                     the newest members, ready for `imagen sample`
<out>/eval/<images seen, 12 digits>-<fingerprint>/ one for each cascade and `eval` section
    samples/<chunk>.safetensors                    every image, uint8, by member
    grid.png, metrics.json, report.html, config.yaml
    preview.png                                    a mosaic for small places: terminals, READMEs
    manifest.json                                  written last
```
"""

from typing import Any

from eval import evaluation, prompts
from eval.config import EvalConfig
from eval.evaluation import CONFIG, GRID, KIND, MANIFEST, METRICS, PREVIEW, REPORT
from eval.inputs import Inputs, check_data, check_sampling, gather
from imagen import cascade, manifest, storage
from imagen.data.images import told
from imagen.data.prepared import Prepared
from imagen.errors import ImagenError
from imagen.project import absolute
from imagen.text.encoder import encoder_fingerprint
from runtime.state import StageState, is_locked, lock


def folder_of(config: EvalConfig, inputs: Inputs) -> str:
    """Return where an evaluation goes: of these members, by this `eval` section."""
    last = list(inputs.images_seen.values())[-1]
    return storage.join(config.evals, f"{last:012d}-{inputs.fingerprint[:8]}")


def state(config: EvalConfig) -> StageState:
    """Return how far the evaluation of the newest snapshots has come. Touches nothing."""
    pid = is_locked(config.evals) if storage.is_local(config.evals) else None
    if pid is not None:
        return StageState(stage="eval", status="running", detail=f"process {pid}")
    try:
        inputs = gather(config)
    except ImagenError as err:
        return StageState(stage="eval", status="missing", detail=err.message)
    found = _finished(config, inputs)
    if found is not None:
        folder, body = found
        if _assembled(config) != body["cascade"]:
            detail = f"evaluated, but `{config.cascade}` is missing or holds another cascade"
            return StageState(stage="eval", status="partial", detail=detail)
        return StageState(stage="eval", status="done", detail=_told(body), outputs=_outputs(folder))
    sampled = _sampled(config, inputs)
    if sampled is not None:
        detail = f"not finished: {sampled} of {config.eval.count} images sampled"
        return StageState(stage="eval", status="partial", detail=detail)
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


def _sampled(config: EvalConfig, inputs: Inputs) -> int | None:
    """Return how many images an unfinished evaluation of `inputs` has; None: it has not begun."""
    fingerprint = _assembled(config)
    if fingerprint is None:
        return None
    folder = folder_of(config, inputs)
    if manifest.read_if_complete(storage.join(folder, MANIFEST), KIND) is not None:
        return None  # finished, by another `eval` section
    work = evaluation.chunks(config, folder, fingerprint)
    found = sum(len(chunk.items) for chunk in work if storage.exists(chunk.path))
    return found or None


def _assembled(config: EvalConfig) -> str | None:
    """Return the fingerprint of the cascade that lies assembled, None when there is none."""
    try:
        path = storage.join(config.cascade, cascade.MANIFEST)
        return manifest.read(path, "cascade")["fingerprint"]
    except ImagenError:
        return None


def _outputs(folder: str) -> tuple[str, ...]:
    return tuple(storage.join(folder, name) for name in (GRID, PREVIEW, METRICS, REPORT, CONFIG))


def _told(body: dict[str, Any]) -> str:
    accuracy = body["digit_accuracy"]
    judged = "not judged" if accuracy is None else f"digit accuracy {accuracy['value']:.1%}"
    return f"{body['images']} images, {judged}"


def run(config: EvalConfig, address: str | None = None) -> StageState:
    """Evaluate the newest snapshots, unless that is done; return the state afterwards.

    Raises CheckpointError, ShardError or ConfigError before anything is sampled.
    """
    config = absolute(config)
    inputs = gather(config)
    check_sampling(config, inputs)
    prepared = Prepared.open(config.index)
    check_data(inputs, prepared)
    with lock(config.evals):
        fingerprint = cascade.assemble(
            config.cascade, inputs.snapshots, config.text, encoder_fingerprint(config.text)
        )
        if _finished(config, inputs) is None:
            folder = folder_of(config, inputs)
            todo = evaluation.Evaluation(config, inputs, fingerprint, folder)
            evaluation.evaluate(todo, prepared, address)
    return state(config)


def plan(config: EvalConfig) -> list[str]:
    """Return what `run` would do, one line each; touches nothing. Raises ConfigError."""
    options, chosen = config.eval.options, prompts.items(config.eval)
    distinct = len({item.prompt for item in chosen})
    lines = [f"{len(chosen)} images of {distinct} prompts, seeds from {config.eval.seed}"]
    for name, member in config.members.items():
        sampling = options.resolve(name, member.sampling)
        how = f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance_scale:g}"
        lines.append(f"{name}: {told(*member.shape)} px, {how}")
    return lines + _readiness(config)


def _readiness(config: EvalConfig) -> list[str]:
    try:
        inputs = gather(config)
    except ImagenError as err:
        return [f"not ready: {err.message}", *([f"hint: {err.hint}"] if err.hint else [])]
    seen = inputs.images_seen
    lines = [f"{n}: {folder}, {seen[n]:,} images seen" for n, folder in inputs.snapshots.items()]
    found = _finished(config, inputs)
    return [*lines, f"done in {found[0]}" if found else "to do: sample, judge, report"]
