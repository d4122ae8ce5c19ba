"""Batch: what crosses from the reader to the model, every distinct entity once.

Legend: B pairs of a task, E rows (distinct entities of the batch, all entity types one after the other), M drawn
negatives, H hard negatives of an anchor, L entries of a sparse list, D width of dense features. A `row` is a position
among the rows of its entity in the batch, an `id` an entity's row in its catalogue.

One KeyedJaggedTensor holds the bags of all E rows. Features of *different* entities that read the same table share a
key (query text and product title both travel under `tokens/0`), so a table is looked up once per step and, with an
optimizer fused into its backward, updated once.
"""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor


class _Movable:
    """`to`, `pin_memory` and `record_stream` for dataclasses of tensors, dicts and each other."""

    def _map(self, function: Any) -> Self:
        assert is_dataclass(self)
        return type(self)(**{f.name: _map_value(getattr(self, f.name), function) for f in fields(self)})

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same on a device."""
        return self._map(lambda tensor: tensor.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in page-locked memory, so that the copy to a GPU can overlap with compute."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that `stream` uses these tensors (TorchRec's pipelines call this)."""
        self._map(lambda tensor: (tensor.record_stream(stream), tensor)[1])


def _map_value(value: Any, function: Any) -> Any:
    match value:
        case _Movable():
            return value._map(function)
        case dict():
            return {key: _map_value(item, function) for key, item in value.items()}
        case Tensor() | KeyedJaggedTensor():
            return function(value)
        case _:
            return value


@dataclass(frozen=True)
class EntityRows(_Movable):
    """Rows [start, stop) of the batch belong to one entity type.

    Args:
        id_E: catalogue rows (int64). dense_ED: its dense features side by side (float32).
    """

    start: int
    stop: int
    id_E: Tensor
    dense_ED: Tensor


@dataclass(frozen=True)
class Entries(_Movable):
    """A sparse list of (position among the B pairs, id): owner_L ascending, id_L catalogue rows, no entry twice."""

    owner_L: Tensor
    id_L: Tensor


@dataclass(frozen=True)
class Private(_Movable):
    """Hard negatives of each anchor alone.

    Args:
        row_BH: rows among the candidate entity's. log_count_BH: log of how many copies the anchor's lists are expected
            to give of each; infinite where an anchor has fewer than H (the row then means nothing).
    """

    row_BH: Tensor
    log_count_BH: Tensor


@dataclass(frozen=True)
class Backward(_Movable):
    """For the direction from candidate to anchor: share_B of the anchors, and the anchors known of each candidate."""

    share_B: Tensor
    known: Entries


@dataclass(frozen=True)
class Pairs(_Movable):
    """Pairs of one task, and what logQ and masks must know of them.

    Args:
        anchor_B, candidate_B: rows among their entity's. anchor_id_B, candidate_id_B: the same as catalogue rows.
        weight_B: loss weights.
        share_B: share of the task's training pairs that hold the candidate. drawn_B: copies of the candidate that the
            task's draws on all ranks are expected to hold. share_M, drawn_M: the same of the candidate entity's drawn
            negatives on this rank.
        stretches: which stretches [start, stop) of each lane's draws of the candidate entity are the task's.
        blocked: ids that an anchor must not be compared with among the shared columns.
        private: hard negatives; None where the task has none. backward: None where the loss has one direction.
        counts: pairs on each rank; none where all have as many.
    """

    anchor_B: Tensor
    candidate_B: Tensor
    anchor_id_B: Tensor
    candidate_id_B: Tensor
    weight_B: Tensor
    share_B: Tensor
    drawn_B: Tensor
    share_M: Tensor
    drawn_M: Tensor
    stretches: tuple[tuple[int, int], ...]
    blocked: Entries
    private: Private | None = None
    backward: Backward | None = None
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Negatives(_Movable):
    """Negatives drawn for one candidate entity, all its tasks' side by side: rows and catalogue rows.

    Args:
        lanes: that drew, each as many, side by side over all ranks (`data/lanes.py`); None: one on each rank.
        counts: negatives on each rank; none where all have as many.
    """

    row_M: Tensor
    id_M: Tensor
    lanes: int | None = None
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch(_Movable):
    """One step's input on one rank: the bags of all E rows, and what refers to them, by entity and by task name."""

    features: KeyedJaggedTensor
    entities: dict[str, EntityRows]
    pairs: dict[str, Pairs]
    negatives: dict[str, Negatives]

    @property
    def num_pairs(self) -> int:
        """Pairs of all tasks on this rank."""
        return sum(len(pairs.weight_B) for pairs in self.pairs.values())
