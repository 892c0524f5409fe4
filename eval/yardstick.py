"""What samples are held against: real images, a judge that learns from them, their statistics."""

import sys
from dataclasses import dataclass, field
from typing import Any

from eval import extractors, reference, statistics
from eval.components import Components
from eval.config import DIGITS, SHAPES, EvalSection
from eval.features import colours, evenly
from eval.judge import Judge
from eval.measures.scenes import Pairs, attributes, pairs_of, scene_of
from eval.originals import PreparedSource
from eval.reference import Reference
from eval.statistics import Statistics
from imagen import manifest, storage
from imagen.data.images import decode
from imagen.data.prepared import Prepared
from imagen.data.shape_check import check
from imagen.errors import ConfigError, ShardError
from imagen.member import MemberConfig

MOST_LOOKED_AT = 10_000
"""Training images that a network looks at where no reference is given; a file can have more."""
MOST_FITTED = 5_000
"""Training images that principal components are fitted to, evenly spread."""
MOST_SCENES = 300
"""Held-out images that the judge of shapes is tried on."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Real images and what has been learnt from them."""

    training: Reference
    heldout: Reference
    judge: Judge | None = None
    """None: nobody judges digits."""
    trained: Pairs | None = None
    """(colour, shape) pairs that training captions speak of; None: nobody judges shapes."""
    scenes: dict[str, Any] = field(default_factory=dict)
    """How many of the real held-out images the judge of shapes finds right."""
    components: Components | None = None
    """None: samples are compared in another network's features, or not at all."""
    statistics: Statistics | None = None
    """What the features of samples are compared with."""
    left_out: str = ""
    """Why there are none to compare with, where a reference was given."""


def yardstick(
    prepared: Prepared, last: MemberConfig, section: EvalSection, keep: str = ""
) -> Yardstick:
    """Read the real images, let the judge learn from them, and take their statistics.

    `keep`: folder for statistics that take long, which are of the data set and a network alone.

    Raises ShardError or ConfigError when there is nothing to learn from; best before anything is
    sampled.
    """
    shape, channels = last.shape, last.network.channels
    training = reference.load(prepared, "train", shape, channels)
    if not training.images:
        raise ShardError(
            f"none of the {training.total} training images is readable: {dict(training.unreadable)}"
        )
    heldout = reference.load(prepared, "heldout", shape, channels)
    components, found, left_out = None, None, ""
    if section.features.network == extractors.PCA:
        components = Components.fit(evenly(training.images, MOST_FITTED))
        rows = components(colours(training.images))
        what = f"{len(rows):,} of {training.total:,} training images"
        found = Statistics.of(components.fingerprint, what, rows)
    elif extractors.has_network(section.features):
        found, left_out = _statistics(prepared, last, section, keep)
    if section.judge == SHAPES:
        trained, scenes = _shapes(prepared, training, heldout, last)
    else:
        trained, scenes = None, {}
    judge = Judge.fit(training.images, training.labels()) if section.judge == DIGITS else None
    return Yardstick(training, heldout, judge, trained, scenes, components, found, left_out)


def _shapes(
    prepared: Prepared, training: Reference, heldout: Reference, last: MemberConfig
) -> tuple[Pairs, dict[str, Any]]:
    """Return the pairs of training captions, and the verdicts on real held-out images.

    Raises ConfigError when captions speak of no shapes.
    """
    trained = pairs_of(training.captions)
    if not trained:
        raise ConfigError(
            f"no training caption speaks of shapes, for example {training.captions[0]!r}",
            "set eval.judge=none for data that is not of shapes",
        )
    verdicts = []
    for where, caption in list(zip(heldout.where, heldout.captions, strict=True))[:MOST_SCENES]:
        (planes,) = decode(prepared.image(*where), (last.shape,), last.network.channels)
        verdicts.append(check(planes.transpose(1, 2, 0), scene_of(caption)))
    return trained, attributes(verdicts)


def _statistics(
    prepared: Prepared, last: MemberConfig, section: EvalSection, keep: str
) -> tuple[Statistics | None, str]:
    """Return the statistics of the reference file, or else of the training images.

    None, and why, where the file is of another size: the base alone, say, is not compared with what
    the whole cascade draws.
    """
    network = extractors.network_fingerprint(section.features)
    look = statistics.Look(last.shape, last.network.channels, network)
    if section.features.reference:
        found, left_out = statistics.check(section.features.reference, look)
        if left_out:
            print(f"warning: no distance to the reference: {left_out}", file=sys.stderr)
        return found, left_out
    source = PreparedSource(prepared, ("train",), MOST_LOOKED_AT)
    path = ""
    if keep:
        path = storage.join(keep, f"{manifest.fingerprint(look.identity(source))}.safetensors")
        if storage.exists(path):
            return statistics.load(path), ""
    extract = extractors.load(section.features, device())
    found = statistics.gather(source, look, extract)
    if path:
        statistics.save(path, found)
    return found, ""


def device() -> str:
    """Return where networks run on this machine."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
