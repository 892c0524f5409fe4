"""The samples of the page: a grid with a slider over checkpoints, and an animation of denoising."""

from collections.abc import Sequence
from html import escape

from eval.history import Evaluation, History
from eval.page import folded, image, paragraph, section
from eval.report.images import film, smallest
from imagen.errors import ImagenError

GRID, FILM = "grid.png", "denoising.webp"
MOST_FRAMES = 24
BUDGET_BYTES = 1_400_000
"""Of all grids together; base64 makes them a third larger."""
WIDTHS_PX = (1100, 800, 600, 420)
FILM_BYTES = 500_000


def samples(found: History) -> str:
    """Return the section of samples."""
    newest = found.newest
    assert newest is not None, "a page is of at least one evaluation"
    shown = [e for e in chosen(found.comparable) if e.has(GRID)]
    frames = _frames(shown)
    note = (
        "Each row is one prompt. Every group shows one seed, as each member of the cascade made it."
    )
    if len(frames) > 1:
        note += (
            " The prompts, the seeds and the noise are the same at every checkpoint: what changes "
            "is the model."
        )
        if len(frames) < len(found.comparable):
            note += f" {len(frames)} of {len(found.comparable)} checkpoints are shown."
    return section("Samples", paragraph(note), _slider(shown, frames), _film(newest))


def chosen(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return at most `MOST_FRAMES` of them, evenly, the first and the newest always among them."""
    count = len(evaluations)
    if count <= MOST_FRAMES:
        return list(evaluations)
    return [evaluations[round(i * (count - 1) / (MOST_FRAMES - 1))] for i in range(MOST_FRAMES)]


def _frames(shown: Sequence[Evaluation]) -> list[bytes]:
    """Return the grids, all made as wide as their number allows."""
    pictures = [one.file(GRID) for one in shown]
    frames: list[bytes] = []
    for width in WIDTHS_PX:
        frames = [smallest(picture, width) for picture in pictures]
        if sum(map(len, frames)) <= BUDGET_BYTES:
            break
    return frames


def _slider(shown: Sequence[Evaluation], frames: Sequence[bytes]) -> str:
    if not frames:
        return paragraph("No evaluation has a grid.")
    images = []
    for i, (one, frame) in enumerate(zip(shown, frames, strict=True)):
        label = told(one)
        more = f'data-label="{escape(label, quote=True)}"'
        more += "" if i == len(frames) - 1 else " hidden"
        alt = f"grid of samples, a row for each prompt, after {label}"
        images.append(image(frame, alt, "grid", more))
    box = (
        '<div class="wide scrolls" tabindex="0" role="region" aria-label="grid of samples">'
        f"{''.join(images)}</div>"
    )
    if len(frames) == 1:
        return f"<figure>{box}<figcaption>{escape(told(shown[0]))}</figcaption></figure>"
    last = len(frames) - 1
    return (
        '<div data-slider><div class="control" hidden>'
        '<button type="button" aria-label="earlier checkpoint">\u2190</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="checkpoint">'
        '<button type="button" aria-label="later checkpoint">\u2192</button>'
        f'<output aria-live="polite">{escape(told(shown[-1]))}</output></div>{box}</div>'
    )


def told(one: Evaluation) -> str:
    """Return of what an evaluation is: 38,400 images seen (base 38,400, sr1 28,800)."""
    members = ", ".join(f"{name} {count:,}" for name, count in one.images_seen.items())
    alone = len(one.images_seen) == 1 and one.at in one.images_seen.values()
    return f"{one.at:,} images seen ({next(iter(one.images_seen)) if alone else members})"


def _film(newest: Evaluation) -> str:
    if not newest.has(FILM):
        return ""
    try:
        shown = film(newest.file(FILM), FILM_BYTES)
    except (ImagenError, OSError) as err:
        return paragraph(f"{FILM} cannot be shown: {err}")
    if shown is None:
        return paragraph(f"The animation of a denoising is too large for this page: {FILM}")
    alt = "animation: samples become clear step by step, member after member"
    return folded("From noise to picture (animation)", image(shown, alt, "grid pixels"))
