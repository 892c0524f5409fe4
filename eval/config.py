"""What an evaluation samples and how it is judged."""

import math
from dataclasses import dataclass, field
from typing import Literal

from imagen import storage
from imagen.cascade import SampleOptions
from imagen.errors import ConfigError
from imagen.project import ProjectConfig, absolute_path

DIGITS, SHAPES = "digits", "shapes"
GENERATED = (DIGITS, SHAPES)
"""Values of `prompts` that are no files."""
UNSTATED = "not stated"
"""A licence that nobody has named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig:
    """The part of the samples that `grid.png` shows."""

    prompts: int = 10
    """Rows: the first prompts."""
    seeds: int = 4
    """Samples of each prompt, each shown as every member of the cascade made it."""

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.seeds < 1:
            raise ConfigError(
                f"a grid of {self.prompts} prompts x {self.seeds} seeds shows nothing"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesConfig:
    """In which features samples and real images are compared: Fréchet distance and its kin."""

    network: str = "pca"
    """`pca`: principal components of the training images, which need no weights; `inception`: the
    network of FID; `package.module:function`: one of your own; `none`."""
    weights: str = ""
    """Path of inception's weights; empty: they are downloaded once."""
    reference: str = ""
    """Statistics of real images by `python -m eval statistics`; empty: of the training images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepsConfig:
    """Samples of the first prompts again, with one setting changed; an empty list is no sweep."""

    guidance: tuple[float, ...] = ()
    """Guidance scales of the base member; the others keep theirs."""
    steps: tuple[int, ...] = ()
    """Sampler steps of every member."""
    samplers: tuple[str, ...] = ()
    """Samplers of every member."""
    aug_level: tuple[float, ...] = ()
    """Noise levels of the low-resolution image of every super-resolution member."""
    count: int = 40
    """Images of each value, the first ones of the evaluation."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"sweeps.count {self.count} samples nothing")
        for name in ("guidance", "steps", "samplers", "aug_level"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ConfigError(f"sweeps.{name} {list(values)} has a value twice")
        if not all(math.isfinite(value) for value in self.guidance):
            raise ConfigError(
                f"sweeps.guidance {list(self.guidance)} has a value that is no number"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSection:
    """The `eval:` section."""

    prompts: str = DIGITS
    """`digits`: every phrasing of every digit in turn; `shapes`: scenes of coloured shapes; else a
    text file, one prompt a line."""
    count: int = 200
    """Images to sample: the prompts are gone through again and again, each time with new seeds."""
    seed: int = 1000
    """Sampling seed of image 0; image i has seed + i."""
    guidance_scale: float | None = None
    """Guidance of every member; None: what each member's config says."""
    steps: int | None = None
    """Sampler steps of every member; None: what each member's config says."""
    sampler: str | None = None
    """Sampler of every member; None: what each member's config says."""
    grid: GridConfig = field(default_factory=GridConfig)
    """The labelled grid."""
    judge: Literal["digits", "shapes", "none"] = "digits"
    """Who says whether an image shows what its prompt asks for; needs `prompts` of that name."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """How like the real images the samples are as a whole."""
    clip: str = ""
    """CLIP of Hugging Face, name or folder, to score how text and image fit; empty: none."""
    sweeps: SweepsConfig = field(default_factory=SweepsConfig)
    """What changes with guidance, steps, sampler and low-resolution noise."""
    wandb: str = ""
    """Weights & Biases project that the figures go to; empty: none."""

    @property
    def options(self) -> SampleOptions:
        """How to sample, where it differs from the members' own configs."""
        return SampleOptions(
            guidance_scale=self.guidance_scale, steps=self.steps, sampler=self.sampler
        )

    def __post_init__(self) -> None:
        _ = self.options  # refuses an unknown sampler
        if self.count < 1:
            raise ConfigError(f"count {self.count} samples nothing")
        if self.prompts == DIGITS and self.count % 10:
            raise ConfigError(
                f"count {self.count} is not a multiple of 10, so digits would not be balanced",
                f"use {self.count // 10 * 10 + 10}",
            )
        if self.judge not in ("none", self.prompts):
            raise ConfigError(
                f"judge {self.judge} cannot judge the prompts of `{self.prompts}`",
                f"set eval.judge=none, or eval.prompts={self.judge}",
            )
        if not 0 <= self.seed <= 2**32 - self.count:
            raise ConfigError(f"seed {self.seed} and the {self.count} from it are not in [0, 2^32)")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishConfig:
    """The `publish:` section: which cascade goes where, and what its card says of it."""

    to: str = ""
    """Folder or URL that holds nothing else; empty: `<out>/published`."""
    evaluation: str = "newest"
    """`newest`; `best` by a figure; or the name of an evaluation: that one for good."""
    by: str = ""
    """Figure that says which is best; empty: the first headline that there is."""
    layout: Literal["imagen", "hub"] = "imagen"
    """`hub`: the card begins with the fields that the Hugging Face hub reads."""
    weights_license: str = UNSTATED
    """Licence of the weights."""
    data_license: str = UNSTATED
    """Licence of the images that they were trained on."""

    def __post_init__(self) -> None:
        if self.by and self.evaluation != "best":
            raise ConfigError(
                f"by {self.by} says which evaluation is best, evaluation is {self.evaluation}",
                "set publish.evaluation=best, or leave out publish.by",
            )
        if not self.evaluation:
            raise ConfigError("evaluation is empty", "say newest, best, or the name of one")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig(ProjectConfig):
    """Everything the eval stage reads."""

    eval: EvalSection = field(default_factory=EvalSection)
    """What to sample and how to judge it."""
    publish: PublishConfig | None = None
    """How an evaluated cascade is published; None: not as a stage of the pipeline."""

    @property
    def published(self) -> str:
        """Folder or URL that the cascade is published to."""
        to = self.publish.to if self.publish else ""
        return absolute_path(to) if to else storage.join(self.out, "published")

    def __post_init__(self) -> None:
        ProjectConfig.__post_init__(self)
        channels = self.members["base"].network.channels
        if self.eval.judge == DIGITS and channels not in (1, 3):
            raise ConfigError(f"judge digits wants grey or colour images, not {channels} channels")
        if self.eval.judge == SHAPES and channels != 3:
            raise ConfigError(f"judge shapes wants colour images, not {channels} channels")
