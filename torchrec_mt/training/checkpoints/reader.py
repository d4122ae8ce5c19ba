"""Reads a checkpoint as torch.distributed.checkpoint plans it. Every byte is checked before it is believed.

A part of a piece is read as the blocks of rows that it lies in, so no rank reads or hashes much more than it wants. A
load that fails leaves the targets half filled.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.distributed.checkpoint.utils import find_tensor_shard
from torch.futures import Future

from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.errors import UserError, first_line
from torchrec_mt.training.checkpoints.commit import Commit, DamagedCheckpointError, state_file, tensors_file
from torchrec_mt.training.checkpoints.files import Files, read_into
from torchrec_mt.training.checkpoints.index import Index, Stored
from torchrec_mt.training.checkpoints.layout import as_bytes, as_rows, checksum, rows_and_bytes


class PiecesLoadPlanner(DefaultLoadPlanner):
    """Torch's planner, which otherwise looks for pieces in tensors only."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Torch's own would put None in the place of what is no tensor."""
        super().set_up_planner({}, metadata, is_coordinator)
        self.state_dict = state_dict

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The tensor that a piece of the plan is to be read into."""
        return find_tensor_shard(self.state_dict[index.fqn], index)


class Reader(StorageReader):
    """One checkpoint.

    Raises:
        DamagedCheckpointError: a file is missing or of another size, or index or small state are not as written.
    """

    def __init__(self, files: Files, folder: str, commit: Commit) -> None:
        self._files, self._folder, self._commit = files, folder, commit
        for name, record in commit.files.items():
            self._check_size(name, record.size)
        self._index = Index.loads(self._small_file(tensors_file(commit.attempt)))
        self.state: dict[str, Any] = json.loads(self._small_file(state_file(commit.attempt)))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, by name."""
        told = self._index.metadata.state_dict_metadata
        return {name: tuple(tensor.size) for name, tensor in told.items() if isinstance(tensor, TensorStorageMetadata)}

    def _damaged(self, file: str, what: str) -> DamagedCheckpointError:
        return DamagedCheckpointError.of(self._files.where(f"{self._folder}/{file}"), what)

    def _check_size(self, file: str, size: int) -> None:
        try:
            found = self._files.size(f"{self._folder}/{file}")
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise self._damaged(file, "is missing" if missing else f"cannot be read ({first_line(error)})") from None
        if found != size:
            raise self._damaged(file, f"is damaged (it has {found:,} bytes and should have {size:,})")

    def _small_file(self, file: str) -> bytes:
        try:
            data = self._files.read(f"{self._folder}/{file}")
        except OSError as error:
            raise self._damaged(file, f"cannot be read ({first_line(error)})") from None
        if checksum(data) != self._commit.files[file].xxh3_128:
            raise self._damaged(file, "is damaged (its checksum differs)")
        return data

    def check(self, tensors: Mapping[str, Tensor | Pieces], *, partial: bool) -> None:
        """Whether the checkpoint holds what is wanted.

        Args:
            partial: it may hold more.

        Raises:
            UserError: a tensor that it lacks, one of another shape or dtype, or one that nobody wants.
        """
        saved = self._index.metadata.state_dict_metadata
        place = f"the checkpoint '{self._files.where(self._folder)}'"
        missing = sorted(set(tensors) - set(saved))
        if missing:
            raise UserError(f"{place} holds no {_some(missing)}: it is of another model; load it with its own config")
        extra = sorted(set(saved) - set(tensors))
        if extra and not partial:
            raise UserError(f"{place} also holds {_some(extra)}: it is of another model; load it with its own config")
        for name, value in tensors.items():
            found = saved[name]
            assert isinstance(found, TensorStorageMetadata)
            if (found.size, found.properties.dtype) != (value.shape, value.dtype):
                raise UserError(
                    f"{place} holds '{name}' as {found.properties.dtype} {[*found.size]}, and {value.dtype} "
                    f"{[*value.shape]} is wanted: it is of another model; load it with its own config"
                )

    def fill(self, tensors: Mapping[str, Tensor | Pieces]) -> None:
        """Reads into the tensors. Needs no other rank.

        Raises:
            DamagedCheckpointError: some bytes are not as they were written.
        """
        planner = PiecesLoadPlanner()
        planner.set_up_planner(dict(tensors), self.read_metadata())
        plan = planner.finish_plan(self.prepare_local_plan(planner.create_local_plan()))
        self.read_data(plan, planner).wait()

    def reset(self, checkpoint_id: object = None) -> None:
        """A reader is for one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Torch's metadata."""
        return self._index.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fills the targets of the plan, file by file."""
        by_file: dict[str, list[tuple[ReadItem, Stored]]] = defaultdict(list)
        for item in plan.items:
            stored: Stored = self._index.metadata.storage_data[item.storage_index]
            by_file[stored.file].append((item, stored))
        for name, items in by_file.items():
            try:
                with self._files.open(f"{self._folder}/{name}") as file:
                    head = self._index.heads[name]
                    self._read(file, name, 0, memoryview(bytearray(head.size)), head.xxh3_128)
                    for item, stored in items:
                        self._read_item(file, item, stored, planner)
            except OSError as error:
                raise self._damaged(name, f"cannot be read ({first_line(error)})") from None
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, file: IO[Any], name: str, offset: int, target: memoryview, wanted: str) -> None:
        if not read_into(file, offset, target):
            raise self._damaged(name, "is damaged (it ends early)")
        if checksum(target) != wanted:
            end = offset + len(target)
            raise self._damaged(name, f"is damaged (the checksum of its bytes {offset:,} to {end:,} differs)")

    def _read_item(self, file: IO[Any], item: ReadItem, stored: Stored, planner: LoadPlanner) -> None:
        tensor = self._index.metadata.state_dict_metadata[item.storage_index.fqn]
        assert isinstance(tensor, TensorStorageMetadata)
        assert item.storage_index.index is not None
        dtype, sizes = tensor.properties.dtype, tensor.chunks[item.storage_index.index].sizes or torch.Size([1])
        offsets, lengths = item.storage_offsets or torch.Size([0]), item.lengths or torch.Size([1])
        rows, row_bytes = rows_and_bytes(dtype, sizes)
        resolved = planner.resolve_tensor(item)
        target = as_rows(resolved)
        straight = target.device.type == "cpu" and target.is_contiguous() and lengths[1:] == sizes[1:]
        buffer = None
        for block in range(offsets[0] // stored.block_rows, -(-(offsets[0] + lengths[0]) // stored.block_rows)):
            start, end = block * stored.block_rows, min((block + 1) * stored.block_rows, rows)
            first, last = max(start, offsets[0]), min(end, offsets[0] + lengths[0])
            place, digest = stored.begin + start * row_bytes, stored.blocks[block]
            wanted = target[first - offsets[0] : last - offsets[0]]
            if straight and (first, last) == (start, end):
                self._read(file, stored.file, place, as_bytes(wanted), digest)
                continue
            if buffer is None:
                buffer = torch.empty(min(stored.block_rows, rows), *sizes[1:], dtype=dtype)
            self._read(file, stored.file, place, as_bytes(buffer[: end - start]), digest)
            found = buffer[first - start : last - start]
            for dim in range(1, len(sizes)):
                found = found.narrow(dim, offsets[dim], lengths[dim])
            wanted.copy_(found)
        planner.commit_tensor(item, resolved)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """Never chosen by a path."""
        return False


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
