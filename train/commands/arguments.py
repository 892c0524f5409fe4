"""What the commands of the train stage share of their command lines."""

import argparse

from imagen import config as configs
from imagen.errors import ConfigError
from train.config import TrainStageConfig


def load(args: argparse.Namespace) -> tuple[TrainStageConfig, str]:
    """Return the config of a command line and the member that it names. Raises ConfigError."""
    chosen = [o.partition("=")[2] for o in args.overrides if o.startswith("member=")]
    if len(chosen) != 1:
        raise ConfigError("which member to train?", "add member=base, or member=sr1")
    overrides = [o for o in args.overrides if not o.startswith("member=")]
    config = configs.load_config(TrainStageConfig, args.config, overrides)
    config.of(chosen[0])
    return config, chosen[0]
