"""Writes a checkpoint as torch.distributed.checkpoint plans it: each rank one file, rank 0 the rest."""

import json
import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.checkpoint.utils import find_tensor_shard
from torch.futures import Future

from torchrec_mt.errors import CannotWriteError, first_line
from torchrec_mt.training.checkpoints.commit import Commit, FileRecord, data_file, state_file, tensors_file
from torchrec_mt.training.checkpoints.files import Bytes, Files
from torchrec_mt.training.checkpoints.index import Index, Stored, Written
from torchrec_mt.training.checkpoints.layout import (
    DTYPE_NAMES,
    block_rows,
    blocks_of,
    checksum,
    header,
    piece_key,
)
from torchrec_mt.training.checkpoints.shelf import Shelf


class PiecesSavePlanner(DefaultSavePlanner):
    """Torch's planner, which otherwise looks for pieces in tensors only, and not for holes where one rank saves.

    Args:
        ready: waits until the tensors may be read; where it fails on one rank, the save fails on all.
    """

    def __init__(self, ready: Callable[[], None]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._ready = ready

    def create_local_plan(self) -> SavePlan:
        """Torch's own, of tensors that are there."""
        self._ready()
        return super().create_local_plan()

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The value that a piece of the plan stands for."""
        return find_tensor_shard(self.state_dict[index.fqn], index)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Torch's own.

        Raises:
            ValueError: a tensor of which no rank holds some part, or of a dtype that no file can hold.
        """
        plans, metadata = super().create_global_plan(all_plans)
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            if tensor.properties.dtype not in DTYPE_NAMES:
                raise ValueError(f"'{name}' is of {tensor.properties.dtype}, which checkpoints do not hold")
            if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size):
                raise ValueError(f"no rank holds some part of '{name}'")
        return plans, metadata


class Writer(StorageWriter):
    """One save.

    Args:
        state, rank_state: JSON; the same on all ranks, and this rank's own.
    """

    def __init__(
        self, files: Files, shelf: Shelf, *, step: int, marks: tuple[str, ...], state: str, rank_state: str
    ) -> None:
        self._files, self._shelf = files, shelf
        self._step, self._marks, self._state, self._rank_state = step, marks, state, rank_state
        self._rank = 0
        self._folder, self._attempt = "", ""
        self._rank_states: list[str] = []

    def reset(self, checkpoint_id: object = None) -> None:
        """A writer is for one save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Learns which rank this is."""
        self._rank = kwargs["rank"]

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Sends this rank's small state to rank 0, with its plan."""
        return replace(plan, storage_data=self._rank_state)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Rank 0: makes the folder, and tells all ranks where to write."""
        self._rank_states = [plan.storage_data for plan in plans]
        self._attempt = secrets.token_hex(6)
        with self._told():
            self._folder = self._shelf.begin(self._step, self._attempt)
        return [replace(plan, storage_data=(self._folder, self._attempt)) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's file; a rank with nothing to write writes none."""
        self._folder, self._attempt = plan.storage_data
        done: Future[list[WriteResult]] = Future()
        with self._told():
            done.set_result(self._write_file(plan.items, planner) if plan.items else [])
        return done

    def _write_file(self, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        # Wide types first: then every piece begins where its type wants it.
        items = sorted(items, key=lambda item: -_data(item).properties.dtype.itemsize)
        keys = [_key(item) for item in items]
        if len(set(keys) - {"__metadata__"}) < len(keys):
            raise ValueError(f"two tensors would have one name in a file: {sorted(keys)!s:.300}")
        head, begins = header({key: _type_and_sizes(item) for key, item in zip(keys, items, strict=True)})
        sums: dict[str, list[str]] = {key: [] for key in keys}
        size, whole = 0, xxhash.xxh3_128()

        def parts() -> Iterator[Bytes]:
            nonlocal size
            for key, part in self._parts(head, items, planner):
                if key:
                    sums[key].append(checksum(part))
                whole.update(part)
                size += len(part)
                yield part

        name = data_file(self._rank, self._attempt)
        self._files.write(f"{self._folder}/{name}", parts())
        file = Written(
            head=FileRecord(size=len(head), xxh3_128=checksum(head)),
            whole=FileRecord(size=size, xxh3_128=whole.hexdigest()),
        )
        results = []
        for key, item in zip(keys, items, strict=True):
            rows = block_rows(*_type_and_sizes(item))
            stored = Stored(file=name, begin=begins[key], block_rows=rows, blocks=tuple(sums[key]))
            results.append(WriteResult(item.index, item.tensor_storage_size() or 0, (stored, file)))
        return results

    @staticmethod
    def _parts(head: bytes, items: list[WriteItem], planner: SavePlanner) -> Iterator[tuple[str, Bytes]]:
        """All bytes of the file, with the key of the piece that they belong to."""
        yield "", head
        for item in items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            for block in blocks_of(tensor, block_rows(*_type_and_sizes(item))):
                yield _key(item), block

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Rank 0: writes what is left, makes the checkpoint count, and removes those that are not to be kept.

        Raises:
            CannotWriteError: a rank's file is not to be seen here, no room, or an old checkpoint cannot be removed.
        """
        with self._told():
            self._commit(metadata, results)
        self._prune()

    def _commit(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        metadata.storage_data, written = {}, {}
        for result in (result for of_rank in results for result in of_rank):
            stored, file = result.storage_data
            metadata.storage_data[result.index] = stored
            written[stored.file] = file
        records = {name: file.whole for name, file in written.items()}
        self._check_seen(records)
        index = Index(metadata, {name: file.head for name, file in written.items()})
        state = json.loads(f'{{"state": {self._state}, "ranks": [{", ".join(self._rank_states)}]}}')
        for name, data in (
            (tensors_file(self._attempt), index.dumps()),
            (state_file(self._attempt), (json.dumps(state, indent=1) + "\n").encode()),
        ):
            self._files.write(f"{self._folder}/{name}", [data])
            records[name] = FileRecord(size=len(data), xxh3_128=checksum(data))
        commit = Commit(
            step=self._step,
            sequence=self._shelf.next_sequence(),
            attempt=self._attempt,
            ranks=len(self._rank_states),
            marks=self._marks,
            files=records,
        )
        self._shelf.publish(self._folder, commit)

    def _check_seen(self, records: dict[str, FileRecord]) -> None:
        for name, record in records.items():
            path = f"{self._folder}/{name}"
            if not self._files.exists(path) or self._files.size(path) != record.size:
                raise CannotWriteError(
                    f"rank 0 does not see '{self._files.where(path)}', which another rank wrote: name a folder "
                    "for checkpoints that all machines share"
                )

    def _prune(self) -> None:
        try:
            self._shelf.prune()
        except OSError as error:
            raise CannotWriteError(
                f"the checkpoint of step {self._step} is written, but an older one under '{self._files.where()}' "
                f"cannot be removed ({error}): remove it by hand, or give this program the right to"
            ) from None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Says what a user can mend; on the rank where it went wrong, so that all ranks hear the same."""
        try:
            yield
        except OSError as error:
            free = self._files.free_bytes()
            room = "" if free is None else f"; {free:,} bytes are free there"
            missing = isinstance(error, FileNotFoundError)  # rank 0 has made the folder
            remedy = "name a folder that all machines share" if missing else "free some space or write elsewhere"
            raise CannotWriteError(
                f"the checkpoint of step {self._step} cannot be written under '{self._files.where()}': rank "
                f"{self._rank} says {first_line(error)}{room}: {remedy}; earlier checkpoints are as they were"
            ) from None

    def abandon(self) -> None:
        """Rank 0: frees the room of a save that failed."""
        if self._rank_states and self._folder:
            self._shelf.abandon(self._folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """Never chosen by a path."""
        return False


def _data(item: WriteItem) -> TensorWriteData:
    assert item.tensor_data is not None
    return item.tensor_data


def _type_and_sizes(item: WriteItem) -> tuple[torch.dtype, torch.Size]:
    return _data(item).properties.dtype, _data(item).chunk.sizes


def _key(item: WriteItem) -> str:
    data = _data(item)
    return piece_key(item.index.fqn, data.size, data.chunk.offsets, data.chunk.sizes)
