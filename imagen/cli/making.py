"""From what is asked for to written pictures: plan before anything is loaded, then sample."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import imagen
from imagen import manifest, storage
from imagen.cli import output
from imagen.cli.arguments import Wanted, options, wanted
from imagen.config import build, to_tree
from imagen.errors import CheckpointError, ConfigError

if TYPE_CHECKING:  # torch costs seconds: `--help` and wrong arguments answer at once
    from imagen.cascade import Cascade, Edit, SampleOptions
    from imagen.member import MemberConfig

BATCH_IMAGES = 16
"""Images sampled at a time. It decides memory and speed, never a picture."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a cascade's manifest says, known before any weights are read."""

    fingerprint: str
    members: "dict[str, MemberConfig]"
    provenances: dict[str, dict[str, Any]]

    def drawn(self, until: str | None) -> "MemberConfig":
        """Return the member whose images are the result."""
        return self.members[until or list(self.members)[-1]]


Editing = Callable[[Described], "tuple[Edit, dict[str, Any]]"]
"""Returns the edit of a call and what its record says of it."""


def describe(folder: str) -> Described:
    """Return the members of a cascade directory. Raises CheckpointError."""
    from imagen.cascade import MANIFEST
    from imagen.member import MemberConfig

    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        raise CheckpointError(
            f"`{folder}` is no cascade: it has no {MANIFEST}",
            "`python -m eval CONFIG` assembles one from trained members",
        )
    whole = manifest.read(path, "cascade", CheckpointError)
    body = whole["members"]
    members = {name: build(MemberConfig, entry["config"], path) for name, entry in body.items()}
    provenances = {name: entry["provenance"] for name, entry in body.items()}
    return Described(whole["fingerprint"], members, provenances)


def make(args: argparse.Namespace, editing: Editing | None = None) -> None:
    """Sample as the command line says; print the path of each picture."""
    images = wanted(args)
    outputs = output.plan(images, args.out, args.count, args.members)
    if args.resume:
        output.check_resumable(outputs)
    elif not args.overwrite:
        output.refuse_overwriting(outputs)
    chosen = options(args)
    described = describe(args.cascade)
    _check_names(args, described)
    edit, told = editing(described) if editing is not None else (None, None)
    resolved = _resolve(images, described, chosen, edit)
    asked = {
        "sampling": resolved,
        "negative": chosen.negative,
        "precision": chosen.precision,
        "edit": told,
        "members": args.members,
    }
    if args.resume:
        outputs = output.left(outputs, images, described.fingerprint, asked)
    cascade, device = _load(args) if outputs else (None, "")
    facts = {
        "command": ["imagen", *args.words],
        **asked,
        "cascade_path": args.cascade,
        "code_version": imagen.__version__,
        "device": device,
        "images_sampled": len(images),
    }
    if cascade is not None:
        _write(cascade, outputs, images, chosen, edit, facts)


def _write(
    cascade: "Cascade",
    outputs: Sequence[output.Output],
    images: Sequence[Wanted],
    chosen: "SampleOptions",
    edit: "Edit | None",
    facts: Mapping[str, Any],
) -> None:
    """Sample and write pictures batch by batch: who stops it keeps those that are finished."""
    numbers = [i for out in outputs for i in out.images]
    members = len(facts["sampling"])
    groups = [outputs[i : i + BATCH_IMAGES] for i in range(0, len(outputs), BATCH_IMAGES)]
    with _progress(len(numbers), members) as on_step:
        for group in groups:
            start = time.monotonic()
            mine = [i for out in group for i in out.images]
            made = sample(cascade, {i: images[i] for i in mine}, chosen, edit, on_step)
            took = {"seconds": round(time.monotonic() - start, 3), "cascade": cascade.provenance}
            for out in group:
                storage.put(out.path, output.draw(out, images, made))
                storage.put(out.record, output.record(out, images, {**facts, **took}))
    for out in outputs:
        print(out.path)


def _check_names(args: argparse.Namespace, described: Described) -> None:
    """Raise ConfigError for a member that the cascade has not."""
    asked = [(f"--until {args.until}", args.until)] if args.until else []
    for word in args.settings:
        member, dot, _ = word.partition("=")[0].rpartition(".")
        asked += [(f"--set {word}", member)] if dot else []
    for option, name in asked:
        if name not in described.members:
            raise ConfigError(
                f"{option}: the cascade has no member {name}",
                f"members: {', '.join(described.members)}",
            )


def _resolve(
    images: Sequence[Wanted],
    described: Described,
    chosen: "SampleOptions",
    edit: "Edit | None",
) -> dict[str, dict[str, Any]]:
    """Return how each member that runs is sampled. Raises ConfigError for what cannot be."""
    from imagen.request import Request, plan

    request = Request([i.prompt for i in images], [i.seed for i in images], chosen, edit)
    running = plan(request, described.members, described.provenances)
    last = list(running.values())[-1]
    if last.network.channels not in (1, 3, 4):
        raise ConfigError(
            f"the cascade draws {last.network.channels} channels, pictures have 1, 3 or 4",
            "sample with the library: imagen.cascade.Cascade.sample()",
        )
    masked = edit is not None and edit.mask is not None
    return {name: _told(member, masked) for name, member in running.items()}


def _told(member: "MemberConfig", masked: bool) -> dict[str, Any]:
    """Return how a member is sampled, without the keys that have no effect on it."""
    unread = ("sampler", "stochasticity") if masked else ()
    unread += ("aug_level",) if member.network.kind == "base" else ()
    kept = {k: v for k, v in to_tree(member.sampling).items() if k not in unread}
    return {"size": to_tree(member.size), **kept}


def _load(args: argparse.Namespace) -> "tuple[Cascade, str]":
    import torch

    from imagen.cascade import Cascade

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Cascade.load(args.cascade, device, args.encoder), device


def sample(
    cascade: "Cascade",
    images: Mapping[int, Wanted],
    chosen: "SampleOptions",
    edit: "Edit | None",
    on_step: Callable[[str, int, int], None],
) -> dict[str, dict[int, np.ndarray]]:
    """Return the pictures of each member that runs, uint8 (h, w, c), by the numbers of `images`."""
    from imagen.data.images import to_uint8

    made: dict[str, dict[int, np.ndarray]] = {}
    numbers = list(images)
    for start in range(0, len(numbers), BATCH_IMAGES):
        batch = numbers[start : start + BATCH_IMAGES]
        prompts, seeds = [images[i].prompt for i in batch], [images[i].seed for i in batch]
        for name, x0 in cascade.sample(prompts, seeds, chosen, on_step, edit).items():
            pictures = to_uint8(x0).permute(0, 2, 3, 1).cpu().numpy()
            made.setdefault(name, {}).update(zip(batch, pictures, strict=True))
    return made


@contextmanager
def _progress(images: int, members: int) -> Iterator[Callable[[str, int, int], None]]:
    """Yield an `on_step` that draws on stderr, when that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}
        batches = -(-images // BATCH_IMAGES)

        def on_step(member: str, step: int, steps: int) -> None:
            del step
            if member not in tasks:
                name = f"{member} ({len(tasks) + 1} of {members})"
                tasks[member] = progress.add_task(name, total=steps * batches)
            progress.update(tasks[member], advance=1)

        yield on_step
