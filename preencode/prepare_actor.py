"""The Ray actor of `prepare`: one core, one tar at a time."""

import ray

from imagen.errors import ImagenError
from preencode import prepare_shard
from preencode.noting import Worker


@ray.remote(max_restarts=0)  # a restarting actor fails queued calls; the driver replaces it instead
class PrepareActor:
    """Brings the images of tars to the sizes of members."""

    def __init__(self, job: prepare_shard.Job) -> None:
        self.job = job

    def process(
        self, todo: prepare_shard.Todo
    ) -> tuple[Worker, prepare_shard.ShardReport | ImagenError]:
        """Work on one tar; return (who did it, report), or the error that names what is wrong."""
        try:
            return Worker.here(), prepare_shard.process(self.job, todo)
        except ImagenError as err:
            return Worker.here(), err
