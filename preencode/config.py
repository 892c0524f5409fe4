"""The config sections that this stage owns: `source` and `preencode`."""

from dataclasses import dataclass, field

from imagen.errors import ConfigError
from imagen.member import MemberConfig
from imagen.project import ProjectConfig
from preencode.sources.config import SourceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorsConfig:
    """What runs the text encoder."""

    actors: int | None = None
    """Ray actors, each with one core; None: all that fit, never more than shards."""
    gpus_per_actor: float = 0.0
    """GPUs of each actor; 0: the encoder runs on its core."""
    batch_tokens: int | None = None
    """Tokens of one forward pass; None: 1,024 on a core, 16,384 on a GPU. Less: less memory."""

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise ConfigError(f"actors {self.actors} is less than 1", "leave it out for one a core")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ConfigError(f"batch_tokens {self.batch_tokens} is less than 1")
        if self.gpus_per_actor < 0:
            raise ConfigError(f"gpus_per_actor {self.gpus_per_actor} is negative")
        if self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ConfigError(f"gpus_per_actor {self.gpus_per_actor} is above 1, but not whole")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreencodeConfig(ProjectConfig):
    """A project and how its data is brought in and encoded.

    Members are for training: without them, this stage still indexes and encodes.
    """

    members: dict[str, MemberConfig] = field(default_factory=dict)
    """The U-Nets of the cascade, in order; none where something else is trained."""
    source: SourceConfig | None = None
    """What `import` brings in; without effect when `data.tars` names tars to use in place."""
    preencode: ActorsConfig = field(default_factory=ActorsConfig)
    """What runs the text encoder."""

    def __post_init__(self) -> None:
        if self.members:
            ProjectConfig.__post_init__(self)  # super() does not work in a dataclass with slots
        elif not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed {self.seed} is not in [0, 2^32)")
        if self.source is None and not self.data.tars:
            raise ConfigError(
                "there is no data: neither `source` nor `data.tars` is given",
                "add `source: {name: digits, shards: 8}`, or point data.tars at a folder of tars",
            )
