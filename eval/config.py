"""What an evaluation samples and how it is judged."""

from dataclasses import dataclass, field
from typing import Literal

from imagen.cascade import SampleOptions
from imagen.errors import ConfigError
from imagen.project import ProjectConfig

DIGITS = "digits"


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
class EvalSection:
    """The `eval:` section."""

    prompts: str = DIGITS
    """`digits`: every phrasing of every digit in turn; else a text file, one prompt a line."""
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
    judge: Literal["digits", "none"] = "digits"
    """Who says whether an image shows what its prompt asks for; needs `prompts: digits`."""

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
        if self.judge == "digits" and self.prompts != DIGITS:
            raise ConfigError(
                f"judge digits cannot judge the prompts of `{self.prompts}`",
                "set eval.judge=none, or eval.prompts=digits",
            )
        if not 0 <= self.seed <= 2**32 - self.count:
            raise ConfigError(f"seed {self.seed} and the {self.count} from it are not in [0, 2^32)")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig(ProjectConfig):
    """Everything the eval stage reads."""

    eval: EvalSection = field(default_factory=EvalSection)
    """What to sample and how to judge it."""

    def __post_init__(self) -> None:
        ProjectConfig.__post_init__(self)
        channels = self.members["base"].network.channels
        if self.eval.judge == "digits" and channels not in (1, 3):
            raise ConfigError(f"judge digits wants grey or colour images, not {channels} channels")
