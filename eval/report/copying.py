"""Drawing or copying: distances to training images, and the nearest ones beside the samples."""

from html import escape
from typing import Any

from eval.figures import figure, told
from eval.history import Evaluation
from eval.page import image, paragraph, section, table
from eval.report.images import columns

NEAREST = "nearest.png"


def memorisation(newest: Evaluation) -> str:
    """Return the section on memorisation."""
    body = newest.metrics.get("memorisation")
    if not body:
        return ""
    intro = (
        f"Distance to the nearest training image: {body['measure']}." if "measure" in body else ""
    )
    return section(
        "Drawing or copying?", paragraph(intro) if intro else "", _distances(body), _judged(body),
        _pairs(newest, body),
    )  # fmt: skip


def _distances(body: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{body[key][q]:.3f}" for q in ("least", "p05", "median", "p95"))]
        for name, key in (("samples", "samples"), ("held-out real images", "heldout"))
        if body.get(key, {}).get("n")
    ]
    head = ["", "least", "5 %", "median", "95 %"]
    return table(head, rows, "distances to training images") if rows else ""


def _judged(body: dict[str, Any]) -> str:
    parts = []
    if "ratio_of_medians" in body:
        parts.append(
            f"The median is {body['ratio_of_medians']:.2f} times that of real held-out images: "
            "near 0 is copying, near 1 is drawing, far above 1 is unlike any real image."
        )
    if "nearer_than_heldout" in body:
        near, how = figure(body["nearer_than_heldout"]), told("memorisation.nearer_than_heldout")
        parts.append(
            f"In {how.text(near.value)} of all pairs ({how.interval(near.interval)}) a sample is "
            "nearer to the training images than a held-out real image is: 50 % for new pictures "
            "of the same world, 100 % for copies."
        )
    if "distinct_nearest" in body:
        parts.append(f"The samples have {body['distinct_nearest']} different nearest images.")
    return paragraph(" ".join(parts)) if parts else ""


def _pairs(newest: Evaluation, body: dict[str, Any]) -> str:
    pairs = body.get("pairs", [])
    if not pairs or not newest.has(NEAREST):
        return ""
    figures = []
    shown = columns(newest.file(NEAREST), len(pairs))
    for pair, (sample, original) in zip(pairs, shown, strict=True):
        row = newest.images[pair["image"]] if newest.images else pair
        said = f"{row.get('prompt') or '(no text)'}, seed {row.get('seed')}: {pair['distance']:.3f}"
        said += _verdict(row)
        images = image(sample, "sample", "thumbnail pixels")
        images += image(original, "nearest training image", "thumbnail pixels")
        figures.append(f"<figure>{images}<figcaption>{escape(said)}</figcaption></figure>")
    title = "<h3>Samples nearest to a training image (right), beside it</h3>"
    return f'{title}<div class="pairs">{"".join(figures)}</div>'


def _verdict(row: dict[str, Any]) -> str:
    if "seen" not in row:
        return ""
    return ", nothing seen" if row["seen"] in (None, -1) else f", seen as {row['seen']}"
