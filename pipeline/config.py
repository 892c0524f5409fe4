"""The configs of all stages from one file, all checked before the first stage starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.config import EvalConfig
from imagen.config import load_config
from preencode.config import PreencodeConfig
from train.config import TrainStageConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """One config file as each stage reads it."""

    path: str
    """Path or URL of the file."""
    overrides: tuple[str, ...]
    """`a.b=c` settings that come on top of the file."""
    preencode: PreencodeConfig
    train: TrainStageConfig
    eval: EvalConfig

    @property
    def out(self) -> str:
        """Folder or URL below which everything is written."""
        return self.train.out

    @property
    def arguments(self) -> tuple[str, ...]:
        """The config as a stage's command line takes it."""
        return (self.path, *self.overrides)


def load(path: str, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Return the checked configs of all stages. Raises ConfigError."""
    config = PipelineConfig(
        path=path,
        overrides=tuple(overrides),
        preencode=load_config(PreencodeConfig, path, overrides),
        train=load_config(TrainStageConfig, path, overrides),
        eval=load_config(EvalConfig, path, overrides),
    )
    for member in config.train.members:
        config.train.of(member)  # each member says how it is trained
    return config
