"""What `imagen plan` prints: tables for people, plain when piped."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table

from imagen.cli.plan_subjects import Subject
from imagen.member import MemberConfig
from imagen.memory import GB, Setting, Usage, sampling_curve, training_curve
from imagen.memory.estimate import training_fixed
from imagen.memory.fit import MOST_IMAGES, Fit, fit, usable, ways
from imagen.presets import CASCADES, PRESETS

MICROBATCHES = (1, 4, 16, 64)
"""Rows of the table where no microbatch is asked for."""
_PLAIN_WIDTH = 160
_PLENTY = 8
"""Images that keep a GPU busy."""


def _console() -> Console:
    """Return standard output; piped, it has no colours and never breaks a line."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def _table(console: Console, *columns: str, left: int = 1) -> Table:
    """Return a table whose first `left` columns are words and the others numbers."""
    table = Table(box=box.SIMPLE if console.is_terminal else None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    return table


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Show on stderr, when that is a terminal, what is being estimated."""
    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else contextlib.nullcontext():
        yield


def _size(num_bytes: int) -> str:
    """Return gigabytes, or megabytes below one of them."""
    return f"{num_bytes / GB:.2f} GB" if num_bytes >= GB else f"{num_bytes / 10**6:.1f} MB"


def _pixels(member: MemberConfig) -> str:
    height, width = member.shape
    return f"{height} x {width}"


def print_presets() -> None:
    """Print all presets and cascades with their sizes."""
    console = _console()
    table = _table(console, "preset", "for", "text encoder", "pixels", "parameters", left=3)
    for preset in PRESETS.values():
        size = _pixels(preset.member)
        row = (preset.name, preset.summary, preset.encoder, size, f"{preset.parameters:,}")
        table.add_row(*row)
    console.print(table)
    table = _table(console, "cascade", "for", "members", "parameters", left=3)
    for cascade in CASCADES.values():
        total = sum(PRESETS[name].parameters for name in cascade.presets)
        table.add_row(cascade.name, cascade.summary, ", ".join(cascade.presets), f"{total:,}")
    console.print()
    console.print(table)


def print_plan(subjects: Sequence[Subject], microbatch: int | None, card_gb: float | None) -> None:
    """Print what each subject needs and, for a card, what fits. Raises ConfigError."""
    if card_gb is not None:
        usable(card_gb)  # refuses a card that is none before minutes are spent
    console = _console()
    fixed = []
    for subject in subjects:
        images = microbatch or subject.microbatch
        with _progress(f"estimating {subject.name}"):
            usages = _usages(subject, (images,) if images else MICROBATCHES)
        _print_memory(console, subject, usages)
        fixed.append(usages[0][1].fixed)
        if card_gb is not None:
            _print_fit(console, subject, card_gb)
    if len(subjects) > 1:
        console.print(
            f"Weights, gradients, optimizer and EMA of all {len(subjects)}: {_size(sum(fixed))}; "
            f"trained one at a time, as `python -m train` does, at most {_size(max(fixed))}."
        )


def _usages(subject: Subject, images: Sequence[int]) -> list[tuple[int, Usage, Usage]]:
    """Return (images, training, sampling) for each number of images."""
    training = training_curve(subject.member, subject.setting)
    sampling_setting = replace(subject.setting, precision="fp32")  # as cascades are sampled
    sampling = sampling_curve(subject.member, sampling_setting)
    return [(n, training.at(n), sampling.at(n)) for n in images]


def _title(subject: Subject, usage: Usage) -> str:
    setting, about = subject.setting, subject.preset
    parts = [setting.precision, setting.optimizer, f"{setting.tokens} text tokens"]
    if setting.checkpoint_levels:
        parts.append(f"levels {','.join(map(str, setting.checkpoint_levels))} checkpointed")
    if setting.crop_px:
        parts.append(f"crops of {setting.crop_px} px")
    summary = f" ({about.summary}; {about.encoder})" if about else ""
    first = f"{subject.name}: {_pixels(subject.member)}, {usage.parameters:,} parameters{summary}"
    return f"{first}\ntraining in {', '.join(parts)}; sampling in fp32"


def _print_memory(
    console: Console, subject: Subject, usages: Sequence[tuple[int, Usage, Usage]]
) -> None:
    table = _table(
        console, "images", "weights", "gradients", "optimizer", "EMA", "bf16 copies",
        "activations", "training", "sampling", left=0,
    )  # fmt: skip
    for images, training, sampling in usages:
        needs = (
            training.weights, training.gradients, training.optimizer, training.ema,
            training.casts, training.activations, training.total, sampling.total,
        )  # fmt: skip
        table.add_row(str(images), *map(_size, needs))
    images, training, _ = usages[-1]
    console.print(_title(subject, training), style="bold", markup=False)
    console.print(table)
    if training.update > training.casts + training.activations:
        console.print(f"The optimizer's step needs {_size(training.update)} of its own.")
    largest = training.largest
    assert largest is not None, "a network makes activations"
    console.print(
        f"largest activation at {images}: {largest}, {_size(largest.num_bytes)}", markup=False
    )
    console.print()


def _print_fit(console: Console, subject: Subject, card_gb: float) -> None:
    """Print the largest microbatch of each way to train, or what fits instead."""
    table = _table(console, "precision", "checkpointed", "optimizer", "largest microbatch", left=3)
    fits = []
    for setting in ways(subject.member, subject.setting):
        with _progress(f"fitting {subject.name} to {card_gb:g} GB"):
            fits.append(fit(subject.member, setting, card_gb))
        found = fits[-1]
        levels = "all levels" if found.checkpointed else "none"
        table.add_row(found.precision, levels, found.optimizer, _most(found.images))
    room = f"{_size(usable(card_gb))} of {_size(int(card_gb * 2**30))} for tensors"
    console.print(f"on a card of {card_gb:g} GB ({room}):", style="bold")
    console.print(table)
    console.print(_advice(subject, fits, card_gb), markup=False)
    console.print()


def _most(images: int) -> str:
    more = " or more" if images == MOST_IMAGES else ""
    return f"{images}{more}" if images else "none"


def _advice(subject: Subject, fits: Sequence[Fit], card_gb: float) -> str:
    with_adamw = [found for found in fits if found.optimizer == "adamw" and found.images]
    if not with_adamw:
        only = "fits with Adafactor only" if any(found.images for found in fits) else "does not fit"
        smaller = _smaller(subject, card_gb)
        return f"{only}; {smaller or 'no smaller preset of this size does either'}"
    most = max(with_adamw, key=lambda found: found.images)
    # in the order of time, so the first that does not starve the card is the fastest
    best = next((found for found in with_adamw if found.images >= _PLENTY), most)
    levels = list(range(len(subject.member.network.widths))) if best.checkpointed else []
    return (
        f"suggested: precision: {best.precision}, checkpoint_levels: {levels}, "
        f"microbatch: up to {_most(best.images)}"
    )


def _smaller(subject: Subject, card_gb: float) -> str | None:
    """Return which preset of the same size and kind fits a card, the largest first."""
    mine = subject.member
    parameters = training_fixed(mine, subject.setting.optimizer).parameters
    for preset in PRESETS.values():
        other = preset.member
        same = (other.shape, other.network.kind) == (mine.shape, mine.network.kind)
        if not same or preset.parameters >= parameters:
            continue
        setting = Setting(precision="bf16", crop_px=preset.crop_px)
        with _progress(f"trying {preset.name}"):
            found = fit(other, setting, card_gb)
        if found.images:
            return f"{preset.name} does, with a microbatch of {found.images} in bf16"
    return None
