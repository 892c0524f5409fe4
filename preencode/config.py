"""The config sections that this stage owns: `source` and `preencode`."""

from dataclasses import dataclass, field
from typing import Literal

from imagen.errors import ConfigError
from imagen.project import ProjectConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """What `import` brings in."""

    name: Literal["digits"]
    """digits: 1,797 real handwritten digits that come with scikit-learn."""
    shards: int = 8
    """Number of tar shards, of equal size up to one sample."""

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 1000:
            raise ConfigError(f"shards {self.shards} is not in [1, 1000]")


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorsConfig:
    """What runs the text encoder."""

    actors: int | None = None
    """Ray actors, each with one core; None: all that fit, never more than shards."""
    gpus_per_actor: float = 0.0
    """GPUs of each actor; 0: the encoder runs on its core."""

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise ConfigError(f"actors {self.actors} is less than 1", "leave it out for one a core")
        if self.gpus_per_actor < 0:
            raise ConfigError(f"gpus_per_actor {self.gpus_per_actor} is negative")
        if self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ConfigError(f"gpus_per_actor {self.gpus_per_actor} is above 1, but not whole")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreencodeConfig(ProjectConfig):
    """A project and how its data is brought in and encoded."""

    source: SourceConfig | None = None
    """What `import` brings in; without effect when `data.tars` names tars to use in place."""
    preencode: ActorsConfig = field(default_factory=ActorsConfig)
    """What runs the text encoder."""

    def __post_init__(self) -> None:
        ProjectConfig.__post_init__(self)  # super() does not work in a dataclass with slots
        if self.source is None and not self.data.tars:
            raise ConfigError(
                "there is no data: neither `source` nor `data.tars` is given",
                "add `source: {name: digits, shards: 8}`, or point data.tars at a folder of tars",
            )
