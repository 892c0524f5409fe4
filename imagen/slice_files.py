"""Storage for torch.distributed.checkpoint: the slices of a rank, as safetensors files.

Programs of others open our checkpoints with it:
`dcp.load(state, storage_reader=Reader(checkpoint.look_into(folder, images_seen)))`.
"""

import dataclasses
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import safetensors.torch
import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from imagen import checkpoint, manifest, slices, storage
from imagen.checkpoint import Contents
from imagen.errors import StorageError
from imagen.retrying import PATIENT, Patience, patiently
from imagen.slices import Slice, Whole

FILE_BYTES = 256 * 2**20
"""A rank begins another file after this many bytes, which it holds in memory at a time."""


class Writer(StorageWriter):
    """Writes a rank's share as safetensors files, and last, on the coordinator, the manifest."""

    def __init__(
        self,
        folder: str,
        body: Mapping[str, Any],
        first: Callable[[], None] | None = None,
        patience: Patience = PATIENT,
        replace: bool = True,
    ) -> None:
        self.folder, self.body, self.first = folder, body, first
        self.patience, self.replace = patience, replace

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing: a writer is for one checkpoint."""

    def set_up_storage_writer(self, *_: Any, **__: Any) -> None:
        """Do what comes first: an error here is told to all ranks."""
        if self.first is not None:
            self.first()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give each rank names of files that no other attempt uses."""
        attempt = uuid.uuid4().hex[:12]
        named = (f"{attempt}-{rank:05d}" for rank in range(len(plans)))
        return [
            dataclasses.replace(p, storage_data=name) for p, name in zip(plans, named, strict=True)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's items, each file whole."""
        results: list[WriteResult] = []
        for number, items in enumerate(_files(plan.items)):
            file = f"{checkpoint.DATA}-{plan.storage_data}-{number:03d}.safetensors"
            results += self._write(file, items, planner)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _write(self, file: str, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        tensors = {}
        for item in items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor), "checkpoints hold tensors only"
            tensors[_name(item)] = tensor.contiguous()
        data = safetensors.torch.save(tensors)
        self._put(file, data)
        entry, places = {"bytes": len(data), "crc32c": storage.crc32c(data)}, slices.spans(data)
        results = []
        for item in items:
            start, size = places[_name(item)]
            place = (file, entry, start, size, storage.crc32c(data[start : start + size]))
            results.append(WriteResult(item.index, size, place))
        return results

    def _put(self, file: str, data: bytes) -> None:
        path = storage.join(self.folder, file)
        patiently(lambda: storage.put(path, data), path, self.patience)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publish the layout, and then the manifest, which lists every file."""
        layout, files = _layout(metadata, [r for rank in results for r in rank])
        data = slices.to_json(layout)
        name = f"{checkpoint.LAYOUT}-{uuid.uuid4().hex[:12]}.json"
        self._put(name, data)
        files[name] = {"bytes": len(data), "crc32c": storage.crc32c(data)}
        body = {**self.body, "layout": name, "files": files}
        patiently(lambda: self._publish(body), self.folder, self.patience)

    def _publish(self, body: Mapping[str, Any]) -> None:
        """Write the manifest, unless a successor is there, who took this writer for dead."""
        while not self._published(body):  # another one came between look and write: look again
            pass

    def _published(self, body: Mapping[str, Any]) -> bool:
        path = storage.join(self.folder, checkpoint.MANIFEST)
        before, there = storage.version_if_there(path), storage.sizes(self.folder)
        other = manifest.read_if_complete(path, checkpoint.KIND, there)
        if other is not None and not self.replace and other["files"] != body["files"]:
            for name in body["files"]:
                storage.delete(storage.join(self.folder, name))
            return True
        lost = [name for name, e in body["files"].items() if there.get(name) != e["bytes"]]
        if lost:
            raise StorageError(
                f"`{storage.join(self.folder, lost[0])}` was deleted or changed before its "
                "checkpoint was complete",
                "another start of this run has taken this one for dead; nothing is to be done",
            )
        return manifest.replace(path, checkpoint.KIND, body, before)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Tell DCP that this storage is never chosen by a path."""
        del checkpoint_id
        return False


def _name(item: WriteItem) -> str:
    """Return the name of an item in its file: the tensor's, and where a part of it begins."""
    assert item.tensor_data is not None, "checkpoints hold tensors only"
    if item.tensor_data.chunk.sizes == item.tensor_data.size:
        return item.index.fqn
    return f"{item.index.fqn}@{','.join(map(str, item.tensor_data.chunk.offsets))}"


def _files(items: list[WriteItem]) -> Iterator[list[WriteItem]]:
    """Yield the items of one file after the other."""
    group, size = [], 0
    for item in items:
        size += item.tensor_storage_size() or 0
        if group and size > FILE_BYTES:
            yield group
            group, size = [], item.tensor_storage_size() or 0
        group.append(item)
    if group:
        yield group


def _layout(
    metadata: Metadata, results: list[WriteResult]
) -> tuple[slices.Layout, dict[str, dict[str, Any]]]:
    """Return where every tensor is, and the entries of all data files."""
    files: dict[str, dict[str, Any]] = {}
    parts: dict[str, list[Slice]] = defaultdict(list)
    for result in results:
        file, entry, start, size, crc = result.storage_data
        whole, at = metadata.state_dict_metadata[result.index.fqn], result.index.offset
        assert isinstance(whole, TensorStorageMetadata), "checkpoints hold tensors only"
        assert at is not None, "items of tensors have an offset"
        shape = next(tuple(c.sizes) for c in whole.chunks if c.offsets == at)
        files[file] = entry
        parts[result.index.fqn].append(Slice(file, start, size, crc, tuple(at), shape))
    layout = {}
    for name, found in parts.items():
        whole = metadata.state_dict_metadata[name]
        assert isinstance(whole, TensorStorageMetadata), "checkpoints hold tensors only"
        layout[name] = Whole(whole.properties.dtype, tuple(whole.size), tuple(found))
    return layout, files


class Reader(StorageReader):
    """Reads the slices that a rank needs, each verified by its own checksum."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing: a reader is for one checkpoint."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the shapes and boxes of all tensors."""
        return Metadata({name: _stored(whole) for name, whole in self.contents.layout.items()})

    def set_up_storage_reader(self, *_: Any, **__: Any) -> None:
        """Do nothing: the contents are known."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Leave the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors that the plan names."""
        layout = self.contents.layout
        wanted: dict[Slice, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            wanted[_slice(layout, item.storage_index)].append(item)
        for part, data in slices.read(self.contents.folder, wanted):
            for item in wanted[part]:
                whole = layout[item.storage_index.fqn]
                box = torch.frombuffer(data, dtype=whole.dtype).reshape(part.shape)
                for axis, (start, length) in enumerate(
                    zip(item.storage_offsets, item.lengths, strict=True)
                ):
                    box = box.narrow(axis, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(box)
                planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Tell DCP that this storage is never chosen by a path."""
        del checkpoint_id
        return False


def _stored(whole: Whole) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(s.offset), torch.Size(s.shape)) for s in whole.slices]
    properties = TensorProperties(dtype=whole.dtype)
    return TensorStorageMetadata(properties, torch.Size(whole.shape), chunks)


def _slice(layout: slices.Layout, index: MetadataIndex) -> Slice:
    at = tuple(index.offset or ())
    found = layout[index.fqn].slices
    hint = found[index.index] if index.index is not None else found[0]
    if hint.offset == at:
        return hint
    return next(part for part in found if part.offset == at)
