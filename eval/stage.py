"""The eval stage: sample, judge, report, and assemble the newest members. Manifest last.

```
<out>/cascade/                                     the newest members, ready for `imagen sample`
<out>/eval/<images seen, 12 digits>-<fingerprint>/ one for each line-up and `eval` section
    samples/<chunk>.safetensors                    every image, uint8, by member
    sweeps/<sweep>/<value>/<chunk>.safetensors     the first ones again, one setting changed
    grid.png, sweep-<sweep>.png, nearest.png       pictures with labels
    preview.png                                    a mosaic for small places: terminals, READMEs
    denoising.webp                                 how a few of them come about
    metrics.json, images.jsonl, config.yaml        all numbers, a line an image, how it was made
    manifest.json                                  written last
<out>/eval/report.html, metrics.jsonl              of all finished evaluations
<out>/eval/failed/<evaluation>.json                what was tried and failed
```
"""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from eval import curves, extractors, lineups, prompts, reference, report, sweeps
from eval.claim import Taken, claim, held_by
from eval.config import EvalConfig
from eval.evaluation import CONFIG, GRID, KIND, MANIFEST, METRICS, PREVIEW, Evaluation, evaluate
from eval.inputs import Inputs, check_data, check_sampling, gather, of_members
from eval.lineups import Lineup
from imagen import assembly, cascade, manifest, storage
from imagen.data.images import told
from imagen.data.prepared import Prepared
from imagen.errors import ImagenError
from imagen.project import absolute
from imagen.text.encoder import encoder_fingerprint
from runtime.state import StageState

REPORT = "report.html"
FAILED, ASSEMBLING = "failed", ".assembling"
ASSEMBLING_S = 600.0
"""How long another process may assemble the cascade."""


def folder_of(config: EvalConfig, inputs: Inputs) -> str:
    """Return where an evaluation goes: of these members, by this `eval` section."""
    return storage.join(config.evals, f"{inputs.images:012d}-{inputs.fingerprint[:8]}")


@dataclass(frozen=True, slots=True)
class Found:
    """A line-up, what it stands on, and the evaluation of it that is finished, if one is."""

    config: EvalConfig
    """With all members of the project."""
    inputs: Inputs
    done: tuple[str, dict[str, Any]] | None
    """Folder and manifest."""

    named: bool = False
    """Whether a person chose the snapshots."""

    @classmethod
    def of(cls, config: EvalConfig, lineup: Lineup | None = None) -> "Found":
        """Look at a line-up; None: the newest of every member. Raises CheckpointError."""
        lineup = lineup or lineups.newest(config)
        inputs = gather(config, lineup)
        return cls(config, inputs, _finished(config, inputs), lineup.named)

    @property
    def folder(self) -> str:
        """Where the evaluation is or goes."""
        return self.done[0] if self.done else folder_of(self.config, self.inputs)

    @property
    def evaluation(self) -> Evaluation:
        """The work. Raises CheckpointError or ConfigError for members that do not fit."""
        config = of_members(self.config, self.inputs)
        fingerprint = encoder_fingerprint(config.text)
        body = assembly.describe(self.inputs.snapshots, config.text, fingerprint)
        complete = len(config.members) == len(self.config.members)
        cascade_fingerprint = manifest.fingerprint(body)
        return Evaluation(
            config, self.inputs, cascade_fingerprint, self.folder, complete, self.named
        )


def is_done(config: EvalConfig, lineup: Lineup) -> bool:
    """Tell whether a line-up has a finished evaluation; one that cannot be read has none.

    Its manifest, written last, is trusted: it is looked for at every line-up again and again.
    """
    try:
        inputs = gather(config, lineup)
    except ImagenError:
        return False
    data = storage.get_if_there(storage.join(folder_of(config, inputs), MANIFEST))
    with suppress(ValueError, AttributeError):  # damaged
        return data is not None and json.loads(data).get("fingerprint") == inputs.fingerprint
    return False


def state(config: EvalConfig, lineup: Lineup | None = None) -> StageState:
    """Return how far the evaluation of a line-up has come; None: the newest. Touches nothing."""
    try:
        found = Found.of(config, lineup)
    except ImagenError as err:
        return StageState(stage="eval", status="missing", detail=err.message)
    holder = held_by(found.folder) if storage.is_local(found.folder) else None
    if holder is not None:  # a claim on a store may be that of a process that was killed
        return StageState(stage="eval", status="running", detail=holder)
    if found.done is not None:
        return _done_state(config, found, lineup)
    sampled = _sampled(found)
    if sampled is not None:
        detail = f"not finished: {sampled} of {config.eval.count} images sampled"
        return StageState(stage="eval", status="partial", detail=detail)
    if any(name[:12].isdigit() for name in storage.listdir(config.evals)):
        detail = "the newest members or the eval section have not been evaluated yet"
        return StageState(stage="eval", status="stale", detail=detail)
    return StageState(stage="eval", status="missing", detail="not evaluated yet")


def _done_state(config: EvalConfig, found: Found, lineup: Lineup | None) -> StageState:
    assert found.done is not None, "only a finished evaluation is done"
    folder, body = found.done
    if lineup is None and _assembled(config) != body["cascade"]:
        detail = f"evaluated, but `{config.cascade}` is missing or holds another cascade"
        return StageState(stage="eval", status="partial", detail=detail)
    if not storage.exists(storage.join(config.evals, REPORT)):
        detail = "evaluated, but the report is missing"
        return StageState(stage="eval", status="partial", detail=detail)
    detail = f"{body['images']} images, {body['told']}"
    outputs = _outputs(config, folder)
    return StageState(stage="eval", status="done", detail=detail, outputs=outputs)


def _finished(config: EvalConfig, inputs: Inputs) -> tuple[str, dict[str, Any]] | None:
    """Return folder and manifest of the finished evaluation of `inputs`, or None."""
    folder = folder_of(config, inputs)
    listing = _files_below(folder)
    body = manifest.read_if_complete(storage.join(folder, MANIFEST), KIND, listing)
    return (folder, body) if body and body["fingerprint"] == inputs.fingerprint else None


def _files_below(folder: str) -> dict[str, int]:
    """Return the sizes of an evaluation's files by the names that its manifest has."""
    found = dict(storage.sizes(folder))
    for below in ("samples", *_sweep_folders(folder)):
        sizes = storage.sizes(storage.join(folder, below))
        found |= {storage.join(below, name): size for name, size in sizes.items()}
    return found


def _sweep_folders(folder: str) -> Iterator[str]:
    for sweep in storage.listdir(storage.join(folder, sweeps.FOLDER)):
        for value in storage.listdir(storage.join(folder, sweeps.FOLDER, sweep)):
            yield storage.join(sweeps.FOLDER, sweep, value)


def _sampled(found: Found) -> int | None:
    """Return how many images an unfinished evaluation has; None: it has not begun."""
    try:
        work = found.evaluation.chunks
    except ImagenError:
        return None
    there = storage.sizes(storage.join(found.folder, "samples"))
    return sum(len(c.items) for c in work if storage.name(c.path) in there) or None


def _assembled(config: EvalConfig) -> str | None:
    """Return the fingerprint of the cascade that lies assembled, None when there is none."""
    try:
        path = storage.join(config.cascade, cascade.MANIFEST)
        return manifest.read(path, "cascade")["fingerprint"]
    except ImagenError:
        return None


def _outputs(config: EvalConfig, folder: str) -> tuple[str, ...]:
    own = tuple(storage.join(folder, name) for name in (GRID, PREVIEW, METRICS, CONFIG))
    return (*own, storage.join(config.evals, REPORT))


def run(config: EvalConfig, address: str | None = None, lineup: Lineup | None = None) -> StageState:
    """Evaluate a line-up, unless that is done; return the state afterwards.

    None: the newest snapshot of every member, which are assembled, too. Raises CheckpointError,
    ShardError or ConfigError before anything is sampled; claim.Taken when another is at work.
    """
    config = absolute(config)
    work(config, address, lineup)
    return state(config, lineup)


def work(config: EvalConfig, address: str | None, lineup: Lineup | None) -> bool:
    """Evaluate a line-up as `run` does; return False when it was done already, by whomever."""
    found = Found.of(config, lineup)
    check_sampling(of_members(config, found.inputs), found.inputs)
    extractors.check(config.eval)
    prepared = reference.open_data(config.index)
    check_data(found.inputs, prepared)
    if lineup is None:
        assemble(config, found.inputs)
    fresh = found.done is None and _claimed(found, prepared, address)
    if found.done is None or not storage.exists(storage.join(config.evals, REPORT)):
        report.write(config)
    return fresh


def _claimed(found: Found, prepared: Prepared, address: str | None) -> bool:
    """Evaluate with a claim; return False when it was finished while we waited for that."""
    with claim(found.folder) as check:
        if _finished(found.config, found.inputs) is not None:
            return False
        evaluate(found.evaluation, prepared, address, check)
        storage.delete(failure(found.config, found.folder))
        curves.tell(found.config, found.folder)
        return True


def failure(config: EvalConfig, folder: str) -> str:
    """Return the path of the note about an evaluation that failed."""
    return storage.join(config.evals, FAILED, f"{storage.name(folder)}.json")


def assemble(config: EvalConfig, inputs: Inputs) -> None:
    """Assemble members into `<out>/cascade`, one process at a time. Raises claim.Taken."""
    fingerprint = encoder_fingerprint(config.text)
    deadline = time.monotonic() + ASSEMBLING_S
    while True:
        try:
            with claim(storage.join(config.evals, ASSEMBLING)):
                cascade.assemble(config.cascade, inputs.snapshots, config.text, fingerprint)
            return
        except Taken:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def plan(config: EvalConfig, lineup: Lineup | None = None) -> list[str]:
    """Return what `run` would do, one line each; touches nothing. Raises ConfigError."""
    options, chosen = config.eval.options, prompts.items(config.eval)
    distinct = len({item.prompt for item in chosen})
    lines = [f"{len(chosen)} images of {distinct} prompts, seeds from {config.eval.seed}"]
    values = sweeps.points(config)
    if values:
        count = len(values) * len(sweeps.items(config))
        lines.append(f"{count} images of {len(values)} values in sweeps")
    for name, member in config.members.items():
        sampling = options.resolve(name, member.sampling)
        how = f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance_scale:g}"
        lines.append(f"{name}: {told(*member.shape)} px, {how}")
    return lines + _readiness(config, lineup)


def _readiness(config: EvalConfig, lineup: Lineup | None) -> list[str]:
    try:
        found = Found.of(config, lineup)
    except ImagenError as err:
        return [f"not ready: {err.message}", *([f"hint: {err.hint}"] if err.hint else [])]
    inputs, seen = found.inputs, found.inputs.images_seen
    lines = [f"{n}: {folder}, {seen[n]:,} images seen" for n, folder in inputs.snapshots.items()]
    others = [other for other in lineups.lineups(config) if other.snapshots != inputs.snapshots]
    left = sum(not is_done(config, other) for other in others)
    if left:
        lines.append(f"older line-ups without a result, for --all: {left}")
    return [*lines, f"done in {found.folder}" if found.done else "to do: sample, judge, report"]
