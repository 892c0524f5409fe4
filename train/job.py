"""Which member of which config to train, and from what data."""

from dataclasses import dataclass
from typing import Any

from imagen import storage
from imagen.data import shard_cache
from imagen.data.embeddings import EmbeddingSet
from imagen.data.order import Order
from imagen.data.prepared import Prepared
from imagen.data.resize import open_set
from imagen.data.shard_cache import ShardCache
from train import data, rundir
from train.attempts import Launch
from train.config import TrainConfig, TrainStageConfig

CACHE = shard_cache.FOLDER
"""Local copies of remote tars and embeddings; local data sets are read in place."""


@dataclass(frozen=True, slots=True)
class Job:
    """Which member of which config to train; `launch` is unique to one call of the program."""

    config: TrainStageConfig
    member: str
    launch: str
    accept: tuple[str, ...] = ()
    """Names of the run's identity that may differ from its checkpoints': asked for by hand."""
    init_from: str = ""
    """As the config has it; in `config` that may be settled already (train/initial.py)."""

    @property
    def train(self) -> TrainConfig:
        """How the member is trained."""
        return self.config.of(self.member)

    @property
    def run_dir(self) -> str:
        """Where everything of the run is."""
        return self.config.run_dir(self.member)

    @property
    def checkpoints(self) -> str:
        """Where its checkpoints are."""
        return storage.join(self.run_dir, rundir.CHECKPOINTS)

    @property
    def attempts(self) -> Launch:
        """Starts and failures of this launch."""
        return Launch(self.run_dir, self.launch)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The data of a run and its order."""

    prepared: Prepared
    """The images as they are read: the data set's own, or at the member's size (data.prepare)."""
    embeddings: EmbeddingSet | None
    """None: the member takes no text."""
    order: Order
    identity: dict[str, Any]
    cache: ShardCache

    @classmethod
    def open(cls, config: TrainStageConfig, member: str) -> "Inputs":
        """Open the data of a member. Raises ShardError, ConfigError."""
        train, network = config.of(member), config.members[member].network
        cache = ShardCache(CACHE, int(train.cache_gb * 1e9))
        source = prepared = Prepared.open(config.index, cache)
        if config.data.prepare:
            folder, target = config.prepared_dir(member), config.target(member)
            prepared = open_set(folder, source, target, cache)
        embeddings = None
        if network.text_dim:
            embeddings = EmbeddingSet.find(config.embeddings, config.text, prepared, cache)
        encoder = None if embeddings is None else embeddings.fingerprint
        sizes = [shard.train for shard in prepared.shards]
        order = Order(sizes, config.seed, train.lanes, train.window, train.global_batch)
        identity = rundir.identity(config, member, source.fingerprint, encoder)
        return cls(prepared, embeddings, order, identity, cache)

    def samples(self, config: TrainStageConfig, member: str) -> data.Samples:
        """Return the training samples of a member by position."""
        train, network = config.of(member), config.members[member].network
        draws = data.Draws(
            seed=config.seed,
            shape=config.members[member].shape,
            previous_shape=config.previous_shape(member),
            channels=network.channels,
            caption_drop=train.caption_drop,
            crop_px=train.crop_px,
            flip=train.flip,
            self_conditioning=network.self_conditioning,
        )
        return data.Samples(self.prepared, self.embeddings, self.order, draws)
