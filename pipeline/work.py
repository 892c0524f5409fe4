"""How much work is left in each stage, how fast one worker does it, and where that is known from.

A rate that this run's own logs tell is `measured`. Else it is `assumed`: operations over a share of
what the machine's card can do, both told. What can be neither is None, with the reason.
"""

import json
import os
from dataclasses import dataclass, replace
from typing import Literal

from eval import sweeps
from imagen.cascade import SampleOptions
from imagen.errors import ImagenError
from imagen.text import hf
from imagen.text.config import TextConfig
from imagen.text.tiny_t5 import build_model
from pipeline import costs
from pipeline.config import PipelineConfig
from pipeline.costs import Progress
from pipeline.prices import Assumed, Machine
from pipeline.stages import Stage
from preencode import estimate
from runtime.state import StageState
from train import dryrun, flops

Precision = Literal["fp32", "bf16"]

SAME_CARD = 0.03
"""By how much the peak that a log's MFU stands for may differ from a card's."""
UNKNOWN = "not known"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is left of a stage."""

    left: float | None
    """Units to do; None: not known yet."""
    unit: str
    per_s: float | None = None
    """Units a second of one worker; None: not known."""
    source: str = UNKNOWN
    """Where the rate is from, or why there is none."""
    workers: int | None = None
    """Most workers at a time; None: as many as the machine has room for."""
    per_worker: float = 1.0
    """Share of a GPU that a worker takes."""

    @property
    def worker_hours(self) -> float | None:
        """Hours of one GPU or core; None: not known."""
        if self.left == 0:
            return 0.0
        if self.left is None or not self.per_s:
            return None
        return self.left / self.per_s / 3600 * self.per_worker


def left(
    config: PipelineConfig,
    stage: Stage,
    state: StageState,
    progress: Progress,
    machine: Machine,
    assumed: Assumed,
) -> Work:
    """Return what is left of a stage. Touches nothing."""
    if state.status == "done":
        return Work(left=0, unit=progress.unit, source="done")
    if stage.training:
        return of_training(config, stage.training.member, state, progress, machine, assumed)
    if stage.name == "preencode":
        return of_encoding(config, machine, assumed)
    if stage.name == "eval":
        return of_evaluation(config, progress, machine, assumed)
    if stage.name == "prepare":
        return of_preparing(progress)
    if stage.name == "publish":
        return Work(left=None, unit="", source="seconds: draws one image, copies the members")
    return Work(left=None, unit="", source=f"{UNKNOWN}: it depends on where the data is")


def _assumed(
    ops: float, machine: Machine, precision: Precision, assumed: Assumed, unit: str
) -> tuple[float | None, str]:
    """Return units a second of one worker, from operations of a unit, and how that is known."""
    share = assumed.mfu if machine.card else assumed.core_mfu
    peak = peak_of(machine, precision)
    if peak is None:
        return None, f"{UNKNOWN}: train/flops.py has no peak of {machine.card}"
    what = machine.card or "a core, measured here now"
    return share * peak / ops, (
        f"assumed: {share:.0%} of {peak / 1e12:,.3g} TFLOPS ({what}), "
        f"{ops / 1e9:,.3g} GFLOP for each {unit.removesuffix('s')}"
    )


def peak_of(machine: Machine, precision: Precision) -> float | None:
    """Return the operations a second of one worker; None: of an unknown card."""
    if machine.card:  # PyTorch's convolutions round float32 to TF32
        return flops.of_card(machine.card, "tf32" if precision == "fp32" else precision)
    return dryrun.core_peak()


def of_training(
    config: PipelineConfig,
    member: str,
    state: StageState,
    progress: Progress,
    machine: Machine,
    assumed: Assumed,
) -> Work:
    """Return what is left of the training of a member, from its newest checkpoint."""
    train = config.train.of(member)
    ops = flops.training_flops(config.train.members[member], train.crop_px)
    saved = progress.done if state.status == "stale" else costs.done_of(state)
    per_s, source = _measured(progress, ops, machine, train.precision)
    if per_s is None:
        per_s, source = _assumed(ops, machine, train.precision, assumed, "images")
    return Work(
        left=train.total - min(train.total, saved or 0),
        unit="images",
        per_s=per_s,
        source=source,
        workers=train.workers[1],
    )


def _measured(
    progress: Progress, ops: float, machine: Machine, precision: Precision
) -> tuple[float | None, str]:
    """Return the rate of one worker by the run's log, carried over to another card by its MFU."""
    if not progress.per_s or progress.gpu != bool(machine.card):
        return None, UNKNOWN
    each, where = progress.per_s / (progress.workers or 1), "of its log.jsonl"
    wanted = peak_of(machine, precision) if machine.card else None
    if wanted is None or not progress.mfu:
        return each, f"measured: {each:,.3g} images/s a worker {where}"
    if abs(each * ops / progress.mfu / wanted - 1) <= SAME_CARD:
        return each, f"measured: {each:,.3g} images/s of each {machine.card} {where}"
    return progress.mfu * wanted / ops, (
        f"measured: MFU {progress.mfu:.1%} {where}, on another card than {machine.card}"
    )


def of_encoding(config: PipelineConfig, machine: Machine, assumed: Assumed) -> Work:
    """Return what is left to encode."""
    actors = config.preencode.preencode
    share = (machine.card and actors.gpus_per_actor) or 1.0  # without a GPU an actor takes a core
    work = Work(left=None, unit="tokens", workers=actors.actors, per_worker=share)
    try:
        found = estimate.remaining(config.preencode)
    except ImagenError as err:
        return replace(work, source=f"{UNKNOWN} yet: {err.message}")
    if found is None:
        return replace(work, left=0, source="only the manifests are left")
    volume, speed = found
    work = replace(work, left=volume.tokens)
    if speed is not None:
        told = f"measured: {speed.tokens_per_s:,.0f} tokens/s an actor {speed.source}"
        return replace(work, per_s=speed.tokens_per_s, source=told)
    ops = operations_a_token(config.preencode.text)
    if ops is None:
        return replace(work, source=f"{UNKNOWN}: `python -m preencode CONFIG --dry-run --measure`")
    per_s, source = _assumed(ops, machine, "bf16", assumed, "tokens")
    return replace(work, per_s=per_s and per_s * min(1.0, share), source=source)


def operations_a_token(text: TextConfig) -> float | None:
    """Return the operations of a T5 encoder for one token; None: it is no T5, or not here."""
    try:
        shape = _shape(text)
        inner = shape["num_heads"] * shape["d_kv"]
        gated = str(shape.get("feed_forward_proj", "relu")).startswith("gated")
        feed = (3 if gated else 2) * shape["d_model"] * shape["d_ff"]
        return 2.0 * shape["num_layers"] * (4 * shape["d_model"] * inner + feed)
    except (ImagenError, KeyError, TypeError, ValueError, OSError):
        return None


def _shape(text: TextConfig) -> dict:
    if text.encoder == "tiny-t5":
        return build_model().config.to_dict()
    with open(os.path.join(hf.locate(text, download=False), "config.json"), "rb") as file:
        return json.load(file)


def of_preparing(progress: Progress) -> Work:
    """Return what is left to bring to the members' sizes."""
    if progress.total is None or progress.done is None:
        return Work(left=None, unit="shards", source=f"{UNKNOWN}: no shard was prepared yet")
    work = Work(left=progress.total - progress.done, unit="shards")
    if not progress.per_s or not progress.workers:
        return work
    each = progress.per_s / progress.workers
    return replace(work, per_s=each, source=f"measured: {each:.3g} shards/s a core of its log")


def of_evaluation(
    config: PipelineConfig, progress: Progress, machine: Machine, assumed: Assumed
) -> Work:
    """Return what is left to sample; judging and drawing pictures comes on top."""
    section, points = config.eval.eval, sweeps.points(config.eval)
    swept = len(sweeps.items(config.eval)) * len(points)
    todo = section.count - (progress.done or 0)
    ops = todo * operations_an_image(config, section.options)
    ops += sum(operations_an_image(config, p.options) for p in points) * swept / max(1, len(points))
    images = todo + swept
    per_s, source = _assumed(ops / max(1, images), machine, "fp32", assumed, "images")
    return Work(left=images, unit="images", per_s=per_s, source=f"{source}; judging not counted")


def operations_an_image(config: PipelineConfig, options: SampleOptions) -> float:
    """Return the operations of sampling one image with all members."""
    total = 0.0
    for name, member in config.eval.members.items():
        sampling = options.resolve(name, member.sampling)
        guided = bool(member.network.text_dim) and sampling.guidance_scale not in (0, 1)
        forward = flops.training_flops(member) * dryrun.FORWARD
        total += sampling.steps * (2 if guided else 1) * forward
    return total
