"""The Ray actor that works on shards: one core, one encoder, one shard at a time."""

import os

import ray

from imagen.data.tars import Tar
from imagen.errors import ConfigError, ImagenError
from imagen.text.encoder import TextEncoder, load_encoder
from preencode import shard


@ray.remote(max_restarts=0)  # a restarting actor fails queued calls; the driver replaces it instead
class EncodeActor:
    """Works on shards. The encoder is loaded when the first shard needs it."""

    def __init__(self, job: shard.Job) -> None:
        import torch

        torch.set_num_threads(1)  # spinning threads halve the work done per core
        self.job = job
        self._encoder: TextEncoder | None = None

    def process(self, tar: Tar) -> tuple[int, shard.ShardReport | ImagenError]:
        """Work on one tar; return (process id, report), or the error that names what is wrong."""
        try:
            return os.getpid(), shard.process(self.job, tar, self._load)
        except ImagenError as err:
            return os.getpid(), err

    def publish_encoder(self) -> tuple[int, ImagenError | None]:
        """Publish encoder.json and the embedding of the empty caption, unless they are there."""
        try:
            return os.getpid(), shard.ensure_encoder(self.job, self._load())
        except ImagenError as err:
            return os.getpid(), err

    def _load(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = load_encoder(self.job.loaded, self.job.device)
            if self._encoder.fingerprint != self.job.fingerprint:
                raise ConfigError(
                    f"text.encoder `{self.job.text.encoder}` is another one on this node "
                    f"({self._encoder.fingerprint}) than on the driver's ({self.job.fingerprint})",
                    "give text.revision, or the same files on every node",
                )
        return self._encoder
