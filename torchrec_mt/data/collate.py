"""Collate: catalogue rows of a step -> Batch, vectorised, from the memory-mapped store.

Stands between the reader (which pairs) and the model (which tensors). Bags get weights that sum to 1, so that a
sum-pooled weighted lookup is the (weighted) mean of a bag.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torchrec import KeyedJaggedTensor

from torchrec_mt.batch import Backward, Batch, EntityRows, Entries, Negatives, Pairs, Private
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.slots import Slot, assign_slots
from torchrec_mt.data.store import EntityStore
from torchrec_mt.schema import OOV_ROW


@dataclass(frozen=True)
class TaskPairs:
    """Pairs of one task as catalogue rows, before they become a Batch. Shapes and meaning as in `batch.Pairs`.

    M are all draws of the candidate entity, whether the task takes them or not.

    `blocked` and `known_anchors` are (owner_L, id_L); `private_BH` holds catalogue rows.
    """

    anchor_B: np.ndarray
    candidate_B: np.ndarray
    weight_B: np.ndarray
    share_B: np.ndarray
    drawn_B: np.ndarray
    share_M: np.ndarray
    drawn_M: np.ndarray
    stretches: tuple[tuple[int, int], ...]
    blocked: tuple[np.ndarray, np.ndarray]
    private_BH: np.ndarray | None = None
    private_log_count_BH: np.ndarray | None = None
    anchor_share_B: np.ndarray | None = None
    known_anchors: tuple[np.ndarray, np.ndarray] | None = None


def uniform_hash(values: np.ndarray, key: int) -> np.ndarray:
    """A number in [0, 1) per value: the same for the same (value, key), whatever its batch (splitmix64)."""
    mixed = values.astype(np.uint64) + np.uint64((key * 0x9E3779B97F4A7C15) % 2**64)
    with np.errstate(over="ignore"):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


class Collator:
    """Turns catalogue rows into a Batch.

    Args:
        dataset: the prepared dataset.
        id_dropout: share of lookups per id feature, `{(entity, feature): share}`, replaced by the out-of-vocabulary
            row.
    """

    def __init__(self, dataset: PreparedDataset, id_dropout: dict[tuple[str, str], float] | None = None) -> None:
        self._dataset = dataset
        self._slots = assign_slots(dataset.manifest)
        self._stores = {entity: EntityStore.open(dataset, entity) for entity in dataset.manifest.entities}
        self._id_dropout = id_dropout or {}

    def id_of(self, entity: str, row: int) -> str:
        """The user's id of a catalogue row."""
        return str(self._dataset.read(self._dataset.entity_path(entity), ["id"])["id"][row])

    def entities(self, entity: str, id_E: np.ndarray) -> Batch:
        """A Batch of the given entities alone, in the given order, without pairs: for encoding a catalogue."""
        return self._batch({entity: id_E}, dropout_key=None, pairs={}, negatives={})

    def __call__(self, pairs: dict[str, TaskPairs], negatives: dict[str, np.ndarray], dropout_key: int | None) -> Batch:
        """A Batch of pairs and drawn negatives.

        Args:
            pairs: per task. negatives: per candidate entity, catalogue rows id_M.
            dropout_key: seeds the dropout of ids (None: no dropout).
        """
        tasks = self._dataset.manifest.tasks
        used: dict[str, list[np.ndarray]] = {entity: [] for entity in self._stores}
        for name, task in pairs.items():
            used[tasks[name].anchor].append(task.anchor_B)
            used[tasks[name].candidate].append(task.candidate_B)
            if task.private_BH is not None:
                used[tasks[name].candidate].append(task.private_BH.ravel())
        for entity, id_M in negatives.items():
            used[entity].append(id_M)
        distinct = {entity: np.unique(np.concatenate(ids)) for entity, ids in used.items() if ids}
        return self._batch(distinct, dropout_key, pairs, negatives)

    def _batch(
        self,
        distinct: dict[str, np.ndarray],
        dropout_key: int | None,
        pairs: dict[str, TaskPairs],
        negatives: dict[str, np.ndarray],
    ) -> Batch:
        starts = dict(zip(distinct, np.cumsum([0] + [len(ids) for ids in distinct.values()]), strict=False))

        def rows(entity: str, ids: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.searchsorted(distinct[entity], ids))

        tasks = self._dataset.manifest.tasks
        return Batch(
            features=self._features(distinct, dropout_key),
            entities={
                entity: EntityRows(
                    start=int(starts[entity]),
                    stop=int(starts[entity]) + len(ids),
                    id_E=torch.from_numpy(ids),
                    dense_ED=torch.from_numpy(self._stores[entity].dense(ids)),
                )
                for entity, ids in distinct.items()
            },
            pairs={name: _pairs(task, tasks[name].anchor, tasks[name].candidate, rows) for name, task in pairs.items()},
            negatives={
                entity: Negatives(row_M=rows(entity, ids), id_M=torch.from_numpy(ids))
                for entity, ids in negatives.items()
            },
        )

    def _features(self, distinct: dict[str, np.ndarray], dropout_key: int | None) -> KeyedJaggedTensor:
        values, weights, lengths = [], [], []
        for slot in self._slots:
            for entity, ids in distinct.items():
                slot_values, slot_weights, slot_lengths = self._bags(slot, entity, ids, dropout_key)
                values.append(slot_values)
                weights.append(slot_weights)
                lengths.append(slot_lengths)
        return KeyedJaggedTensor(
            keys=[slot.key for slot in self._slots],
            values=torch.from_numpy(np.concatenate(values).astype(np.int64)),
            weights=torch.from_numpy(np.concatenate(weights)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        )

    def _bags(
        self, slot: Slot, entity: str, ids: np.ndarray, dropout_key: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        feature = slot.features.get(entity)
        if feature is None:
            return np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(len(ids), np.int64)
        bags = self._stores[entity].bags(feature, ids)
        values, lengths_E = bags.values, bags.lengths_E
        share = self._id_dropout.get((entity, feature), 0.0)
        if dropout_key is not None and share > 0:
            values = np.where(uniform_hash(np.repeat(ids, lengths_E), dropout_key) < share, OOV_ROW, values)
        if bags.weights is None:
            return values, np.repeat(1.0 / np.maximum(lengths_E, 1), lengths_E).astype(np.float32), lengths_E
        owner = np.repeat(np.arange(len(ids)), lengths_E)
        totals_E = np.bincount(owner, weights=bags.weights, minlength=len(ids))
        return values, (bags.weights / totals_E[owner]).astype(np.float32), lengths_E


def _pairs(task: TaskPairs, anchor: str, candidate: str, rows: Callable[[str, np.ndarray], torch.Tensor]) -> Pairs:
    private = backward = None
    if task.private_BH is not None and task.private_log_count_BH is not None:
        private = Private(rows(candidate, task.private_BH), torch.from_numpy(task.private_log_count_BH))
    if task.anchor_share_B is not None and task.known_anchors is not None:
        backward = Backward(torch.from_numpy(task.anchor_share_B), _entries(task.known_anchors))
    return Pairs(
        anchor_B=rows(anchor, task.anchor_B),
        candidate_B=rows(candidate, task.candidate_B),
        anchor_id_B=torch.from_numpy(task.anchor_B),
        candidate_id_B=torch.from_numpy(task.candidate_B),
        weight_B=torch.from_numpy(task.weight_B),
        share_B=torch.from_numpy(task.share_B),
        drawn_B=torch.from_numpy(task.drawn_B),
        share_M=torch.from_numpy(task.share_M),
        drawn_M=torch.from_numpy(task.drawn_M),
        stretches=task.stretches,
        blocked=_entries(task.blocked),
        private=private,
        backward=backward,
    )


def _entries(entries: tuple[np.ndarray, np.ndarray]) -> Entries:
    return Entries(*(torch.from_numpy(part) for part in entries))
