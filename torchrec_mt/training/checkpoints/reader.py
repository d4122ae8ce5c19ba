"""Reads a checkpoint as torch.distributed.checkpoint plans it. Every byte is checked before it is believed.

A part of a piece is read as the blocks of rows that it lies in, so no rank reads or hashes much more than it wants. A
load that fails leaves the targets half filled.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
from torchrec_mt.training.checkpoints.blocks import Block, runs_of
from torchrec_mt.training.checkpoints.commit import Commit, DamagedCheckpointError, state_file, tensors_file
from torchrec_mt.training.checkpoints.files import Files, read_into
from torchrec_mt.training.checkpoints.index import Index, Stored
from torchrec_mt.training.checkpoints.layout import as_bytes, as_rows, checksum, rows_and_bytes

_THREADS = 2
"""That read and check; a core does either at about the speed of the system's cache."""


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
        return {name: tuple(tensor.size) for name, tensor in self._tensors()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The same."""
        return {name: tensor.properties.dtype for name, tensor in self._tensors()}

    def _tensors(self) -> Iterator[tuple[str, TensorStorageMetadata]]:
        for name, tensor in self._index.metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            yield name, tensor

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
        with ThreadPoolExecutor(_THREADS, "reader") as pool:
            for name, items in by_file.items():
                blocks = [self._head(name)]
                for item, stored in items:
                    blocks.extend(self._blocks(item, stored, planner))
                for _ in pool.map(partial(self._read_blocks, name), runs_of(blocks, _THREADS)):
                    pass  # raises what a run raised
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _head(self, name: str) -> Block:
        """What stands before the pieces, which nobody wants but which is to be whole."""
        head = self._index.heads[name]
        return Block(0, head.xxh3_128, torch.empty(head.size, dtype=torch.uint8), shape=(head.size,), offsets=(0,))

    def _blocks(self, item: ReadItem, stored: Stored, planner: LoadPlanner) -> Iterator[Block]:
        """Those in which the rows lie that an item wants."""
        tensor = self._index.metadata.state_dict_metadata[item.storage_index.fqn]
        assert isinstance(tensor, TensorStorageMetadata)
        assert item.storage_index.index is not None
        dtype, sizes = tensor.properties.dtype, tensor.chunks[item.storage_index.index].sizes or torch.Size([1])
        offsets, lengths = item.storage_offsets or torch.Size([0]), item.lengths or torch.Size([1])
        rows, row_bytes = rows_and_bytes(dtype, sizes)
        target = as_rows(planner.resolve_tensor(item))
        for block in range(offsets[0] // stored.block_rows, -(-(offsets[0] + lengths[0]) // stored.block_rows)):
            start, end = block * stored.block_rows, min((block + 1) * stored.block_rows, rows)
            first, last = max(start, offsets[0]), min(end, offsets[0] + lengths[0])
            yield Block(
                stored.begin + start * row_bytes,
                stored.blocks[block],
                target[first - offsets[0] : last - offsets[0]],
                shape=(end - start, *sizes[1:]),
                offsets=(first - start, *offsets[1:]),
            )

    def _read_blocks(self, name: str, blocks: Sequence[Block]) -> None:
        room = max((block.bytes for block in blocks if not block.is_straight), default=0)
        buffer = torch.empty(room, dtype=torch.uint8)
        try:
            with self._files.open(f"{self._folder}/{name}") as file:
                for block in blocks:
                    if block.is_straight:
                        self._read(file, name, block, as_bytes(block.target))
                    else:
                        found = buffer[: block.bytes]
                        self._read(file, name, block, as_bytes(found))
                        block.take(found)
        except OSError as error:
            raise self._damaged(name, f"cannot be read ({first_line(error)})") from None

    def _read(self, file: IO[Any], name: str, block: Block, target: memoryview) -> None:
        if not read_into(file, block.begin, target):
            raise self._damaged(name, "is damaged (it ends early)")
        if checksum(target) != block.digest:
            end = block.begin + len(target)
            raise self._damaged(name, f"is damaged (the checksum of its bytes {block.begin:,} to {end:,} differs)")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """Never chosen by a path."""
        return False


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
