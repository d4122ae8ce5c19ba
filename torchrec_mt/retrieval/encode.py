"""Vectors of whole entities from the model: every rank encodes, and keeps, its part.

Legend: N entities (P of this rank's part), E entities of a forward pass, D width.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator
from torchrec_mt.distributed.collectives import gather, max_over_ranks, rank_and_size, sum_over_ranks
from torchrec_mt.distributed.sharding import pad_rows
from torchrec_mt.errors import UserError
from torchrec_mt.models.two_tower import TwoTower

Vectors = Callable[[str, np.ndarray, "Side"], np.ndarray]
"""Entity, rows and side -> vector_MD. Called on every rank."""

BLOCK = 4096
"""Entities of a forward pass. Passes hold the same entities on any number of ranks, so their bits are the same (unless
tables are split by row: then parts of a bag are summed in another order)."""


class Side(NamedTuple):
    """As what entities are encoded: candidates of all tasks, or anchors or candidates of a task."""

    task: str | None = None
    anchors: bool = False


CANDIDATES = Side()


def anchors_of(task: str) -> Side:
    """The anchors of a task."""
    return Side(task, anchors=True)


def candidates_of(model: nn.Module, task: str) -> Side:
    """The candidates of a task: those of all tasks, unless the model gives candidates a vector per task."""
    two_tower = next((module for module in model.modules() if isinstance(module, TwoTower)), None)
    return Side(task) if two_tower is not None and two_tower.per_task_candidates else CANDIDATES


def space_name(entity: str, side: Side) -> str:
    """What a space of candidates is called by: its entity, and its task where each has one of its own."""
    return entity if side.task is None else f"{entity}@{side.task}"


@dataclass(frozen=True)
class Part:
    """What one rank holds of an entity's vectors: those at positions first, first + 1, ... of the ids asked for."""

    first: int
    vector_PD: Tensor


def encode_part(
    model: nn.Module,
    collator: Collator,
    entity: str,
    id_N: np.ndarray,
    *,
    side: Side = CANDIDATES,
    device: torch.device,
    block: int = BLOCK,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Part:
    """Unit vectors of this rank's part of the entities.

    Ranks take runs of whole blocks, in rank order. Called on every rank.

    Args:
        id_N: catalogue rows. block: entities per rank and forward pass.
        folder: where to keep the vectors in a memory-mapped file, which goes when they go; none is memory.

    Raises:
        UserError: on every rank, vectors that are no finite numbers: training went wrong.
    """
    rank, world_size = rank_and_size()
    starts = _starts(len(id_N), block, world_size)
    own, passes = starts[rank], max(len(part) for part in starts)
    first = int(own[0]) if len(own) else len(id_N)
    rows = min(len(id_N), int(own[-1]) + block) - first if len(own) else 0
    vector_PD: Tensor | None = None
    training = model.training
    model.eval()
    with torch.no_grad():
        for number in range(passes):
            # Every rank takes part in every pass; one without a block of its own left repeats the first.
            start = int(own[number]) if number < len(own) else 0
            ids = id_N[start : start + block]
            block_ED = _encoded(model, pad_rows(collator.entities(entity, ids).to(device)), entity, side)
            if vector_PD is None:
                vector_PD = _room(rows, block_ED.shape[1], device, folder)
            if number < len(own):
                vector_PD[start - first : start - first + len(ids)] = block_ED.to(vector_PD.device)
            if progress:
                progress(min((number + 1) * block * world_size, len(id_N)), len(id_N))
    model.train(training)
    assert vector_PD is not None, "there are entities"
    part = Part(first, vector_PD)
    broken, position = _not_finite(part, len(id_N), device, block)
    if broken:
        kind = "anchors" if side.anchors else "candidates"
        what = entity if side.task is None else f"{entity}, as {kind} of '{side.task}'"
        raise UserError(
            f"{broken} of {len(id_N)} vectors of {what} are no finite numbers, the first that of "
            f"'{collator.id_of(entity, int(id_N[position]))}': the weights have diverged; train again with a lower "
            "optim.table_rate or optim.dense_rate, or look for extreme numbers in the data",
            exit_code=1,
        )
    return part


def _encoded(model: nn.Module, batch: Batch, entity: str, side: Side) -> Tensor:
    if side.task is None:
        vectors_ED: Tensor = model(batch, {}).negative[entity]
        return vectors_ED
    if side.anchors:
        vectors_ED = model(batch, {side.task: entity}).anchor[side.task]
        return vectors_ED
    vectors_ED = model(batch, {}, candidates_of={side.task: entity}).candidate[side.task]
    return vectors_ED


def encode(
    model: nn.Module,
    collator: Collator,
    entity: str,
    id_N: np.ndarray,
    *,
    side: Side = CANDIDATES,
    device: torch.device,
    block: int = BLOCK,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The vectors of all parts, in the order of id_N, on every rank: vector_ND. Otherwise as `encode_part`."""
    own = encode_part(model, collator, entity, id_N, side=side, device=device, block=block, progress=progress)
    _, world_size = rank_and_size()
    blocks = [len(part) for part in _starts(len(id_N), block, world_size)]
    longest = max(blocks) * block
    padded = torch.nn.functional.pad(own.vector_PD, (0, 0, 0, longest - len(own.vector_PD)))
    parts = gather(padded).view(world_size, longest, -1)
    return torch.cat([part[: count * block] for part, count in zip(parts, blocks, strict=True)])[: len(id_N)]


def vectors_of(model: nn.Module, collator: Collator, device: torch.device) -> Vectors:
    """Vectors of a few chosen rows, encoded again: what lies in parts on ranks is not asked."""

    def vectors(entity: str, row_M: np.ndarray, side: Side) -> np.ndarray:
        return encode(model, collator, entity, row_M, side=side, device=device).cpu().numpy()

    return vectors


def _starts(count: int, block: int, world_size: int) -> list[np.ndarray]:
    """First positions of the blocks of each rank."""
    return np.array_split(np.arange(0, count, block), world_size)


def _room(rows: int, width: int, device: torch.device, folder: Path | None) -> Tensor:
    """Room for vectors, in memory or in a file of the folder that has no name and goes with its last user."""
    if folder is None or not rows:
        return torch.empty(rows, width, device=device)
    with tempfile.TemporaryFile(dir=folder) as file:
        return torch.from_numpy(np.memmap(file, np.float32, mode="w+", shape=(rows, width)))


def _not_finite(part: Part, count: int, device: torch.device, block: int) -> tuple[int, int]:
    """How many vectors of all ranks hold NaN or infinity, and the position of the first."""
    broken, first = 0, count
    for start in range(0, len(part.vector_PD), block):
        wrong_E = (~torch.isfinite(part.vector_PD[start : start + block])).any(dim=1)
        if bool(wrong_E.any()):
            broken, first = broken + int(wrong_E.sum()), min(first, part.first + start + int(wrong_E.nonzero()[0]))
    total = int(sum_over_ranks(torch.tensor(broken, device=device)))
    return total, count - max_over_ranks(count - first, device)
