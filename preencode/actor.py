"""The Ray actor that works on shards: one core, one encoder, one shard at a time."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import ray

from imagen import staging, storage
from imagen.data.tars import Tar
from imagen.errors import ConfigError, ImagenError, ShardError, StorageError
from imagen.text.encoder import TextEncoder, load_encoder
from preencode import shard, verify
from preencode.noting import Worker


@ray.remote(max_restarts=0)  # a restarting actor fails queued calls; the driver replaces it instead
class EncodeActor:
    """Works on shards, and reads the next one meanwhile. The encoder is loaded when it is needed.

    Each method returns (who did it, result or the error that names what is wrong).
    """

    def __init__(self, job: shard.Job) -> None:
        import torch

        torch.set_num_threads(1)  # spinning threads halve the work done per core
        storage.sweep_temporary(staging.STAGING)
        self.job = job
        self._encoder: TextEncoder | None = None
        self._loading = threading.Lock()
        self._reader = ThreadPoolExecutor(1)
        self._ahead: dict[Tar, Future[shard.Read]] = {}

    def process(
        self, tar: Tar, ahead: Tar | None = None
    ) -> tuple[Worker, shard.ShardReport | ImagenError]:
        """Work on one tar; `ahead` is read meanwhile, because it will be asked for next."""
        try:
            read = self._read(tar).result()
            self._ahead = {} if ahead is None else {ahead: self._read(ahead)}
            return Worker.here(), shard.finish(self.job, read, self._load)
        except (ImagenError, OSError, MemoryError, RuntimeError) as err:
            return Worker.here(), _told(err, tar)

    def publish_encoder(self) -> tuple[Worker, ImagenError | None]:
        """Publish encoder.json and the embedding of the empty caption, unless they are there."""
        try:
            return Worker.here(), shard.ensure_encoder(self.job, self._load())
        except ImagenError as err:
            return Worker.here(), err

    def verify_encoder(self) -> tuple[Worker, list[str] | ImagenError]:
        """Check encoder.json and the embedding of the empty caption."""
        try:
            return Worker.here(), list(verify.check_encoder(self.job, self._load()))
        except ImagenError as err:
            return Worker.here(), err

    def verify(self, tar: Tar, captions: int) -> tuple[Worker, verify.Findings | ImagenError]:
        """Check one shard, and encode `captions` of its captions again."""
        try:
            return Worker.here(), verify.check_shard(self.job, tar, captions, self._load)
        except (ImagenError, OSError, MemoryError, RuntimeError) as err:
            return Worker.here(), _told(err, tar)

    def _read(self, tar: Tar) -> "Future[shard.Read]":
        begun = self._ahead.pop(tar, None)
        return begun or self._reader.submit(shard.read, self.job, tar, self._load)

    def _load(self) -> TextEncoder:
        with self._loading:
            if self._encoder is None:
                self._encoder = _load(self.job)
            return self._encoder


def _told(err: Exception, tar: Tar) -> ImagenError:
    """Return what a machine did to a shard as an error of that shard; raise what is a bug."""
    import torch

    if isinstance(err, ImagenError):
        return err
    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        what, hint = "there is not enough memory", "set a smaller preencode.batch_tokens"
        return ShardError(f"`{tar}`: {what}: {err}", hint)
    if isinstance(err, OSError):
        return StorageError(f"`{tar}`: {type(err).__name__}: {err}")
    raise err


def _load(job: shard.Job) -> TextEncoder:
    encoder = load_encoder(job.loaded, job.device, job.batch_tokens)
    if encoder.fingerprint != job.fingerprint:
        raise ConfigError(
            f"text.encoder `{job.text.encoder}` is another one on this node "
            f"({encoder.fingerprint}) than on the driver's ({job.fingerprint})",
            "give text.revision, or the same files on every node",
        )
    return encoder
