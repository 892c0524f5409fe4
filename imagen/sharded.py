"""Checkpoints on torch.distributed.checkpoint: all ranks write and read a share, without pickle.

Any sharding that PyTorch knows can be saved on one number of ranks and opened on another. Of
replicated tensors one copy is written. The files are those of imagen/checkpoint.py; what makes them
is imagen/slice_files.py.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_local_save_plan,
)
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from imagen import checkpoint, storage
from imagen.checkpoint import Contents
from imagen.errors import ImagenError
from imagen.retrying import PATIENT, Patience
from imagen.slice_files import Reader, Writer


def write(
    folder: str,
    images_seen: int,
    staged: "Staged",
    meta: Mapping[str, Any],
    group: dist.ProcessGroup | None = None,
    first: Callable[[], None] | None = None,
    patience: Patience = PATIENT,
    replace: bool = True,
) -> None:
    """Write a checkpoint below `folder`; all ranks of `group` call it, None: this process alone.

    `first` is done before, and there is no manifest without it. Without `replace` a complete
    checkpoint that is there already stays. Raises on every rank what one has raised, StorageError
    as a rule: there is no manifest then.
    """
    own = storage.join(folder, checkpoint.folder_name(images_seen))
    body = {"images_seen": images_seen, "meta": dict(meta)}
    writer = Writer(own, body, first, patience, replace)
    with _agreed():
        alone = group is None
        save({}, storage_writer=writer, planner=staged, process_group=group, no_dist=alone)


def read_into(
    state: dict[str, torch.Tensor], contents: Contents, group: dist.ProcessGroup | None = None
) -> None:
    """Fill `state` from a checkpoint, in place: each rank of `group` reads only what it holds.

    Raises DamagedError or StorageError on every rank when one fails; `state` is spoiled then.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _agreed():
        reader, alone = Reader(contents), group is None
        load(state, storage_reader=reader, planner=planner, process_group=group, no_dist=alone)


@contextlib.contextmanager
def _agreed() -> Iterator[None]:
    """Raise what the first rank that failed has raised."""
    # told by each call without a process group; a filter for the whole process, because
    # catch_warnings is not for threads
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    try:
        yield
    except CheckpointException as err:
        rank, (cause, _) = min(err.failures.items(), key=lambda item: item[0])
        if isinstance(cause, ImagenError):
            raise cause from cause.__cause__
        raise RuntimeError(f"rank {rank} failed: {err}") from cause


class Staged(DefaultSavePlanner):
    """A plan of what this rank saves, with copies in host memory: training may go on at once."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        super().set_up_planner(dict(state))
        self.plan = create_default_local_save_plan(self.state_dict, False)
        self._copies = {item.index: self._copy(item) for item in self.plan.items}
        if any(tensor.is_cuda for tensor in state.values()):
            torch.cuda.synchronize()
        self.state_dict = {}  # what is live changes

    def _copy(self, item: WriteItem) -> torch.Tensor:
        tensor = super().resolve_data(item)
        assert isinstance(tensor, torch.Tensor), "checkpoints hold tensors only"
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return copy.copy_(tensor.detach(), non_blocking=True)

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Keep the plan that was made with the copies."""
        del state_dict, storage_meta
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        """Return the plan that was made with the copies."""
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        """Return the copy that an item stands for."""
        return self._copies[write_item.index]
