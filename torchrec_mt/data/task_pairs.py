"""Pairs of one task with all that logQ, masks and hard negatives must know of them. Between stream and collate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from torchrec_mt.data.collate import TaskPairs
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.links import Links
from torchrec_mt.data.mined import MinedFolder
from torchrec_mt.data.negatives import Mined, Named, NegativesConfig, NegativeSource, Sampler
from torchrec_mt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PairRules:
    """What a task's loss wants of its pairs: the way back to anchors, and weights by grade."""

    symmetric: bool = False
    grades: Literal["none", "linear", "exponential"] = "none"


class PairMaker:
    """Adds shares, expected draws, blocked ids and hard negatives to the pairs of one task.

    Raises:
        UserError: a source of negatives that the dataset does not have.
    """

    def __init__(
        self, dataset: PreparedDataset, name: str, config: NegativesConfig, rules: PairRules, sampler: Sampler
    ) -> None:
        info = dataset.manifest.tasks[name]
        self._name, self._config, self._rules, self._sampler = name, config, rules, sampler
        self._same_entity = info.anchor == info.candidate
        total = max(info.pairs["train"], 1)
        self._share_N = (dataset.frequencies(name) / total).astype(np.float32)
        self._known, self._ignored = dataset.known_candidates(name), dataset.ignored_candidates(name)
        self._anchor_share_N = (dataset.anchor_frequencies(name) / total).astype(np.float32)
        self._known_anchors = dataset.known_anchors(name)
        self._lists = [
            (_open_list(dataset, name, source), source.count)
            for source in config.of(name)
            if isinstance(source, Named | Mined)
        ]

    def __call__(
        self,
        anchor_B: np.ndarray,
        candidate_B: np.ndarray,
        weight_B: np.ndarray,
        grade_B: np.ndarray,
        drawn_id_M: np.ndarray,
        rng: np.random.Generator,
    ) -> TaskPairs:
        """The pairs with what belongs to them.

        Args:
            drawn_id_M: all draws of the candidate entity. rng: chooses among hard negatives.
        """
        private_BH, log_count_BH, listed = self._private(anchor_B, rng)
        anchors = self._known_anchors_of(anchor_B, candidate_B) if self._rules.symmetric else None
        return TaskPairs(
            anchor_B=anchor_B,
            candidate_B=candidate_B,
            weight_B=self._by_grade(weight_B, grade_B),
            share_B=self._share_N[candidate_B],
            drawn_B=self._sampler.expected(self._name, candidate_B),
            share_M=self._share_N[drawn_id_M],
            drawn_M=self._sampler.expected(self._name, drawn_id_M),
            stretches=self._sampler.stretches[self._name],
            blocked=self._blocked(anchor_B, candidate_B, listed),
            private_BH=private_BH,
            private_log_count_BH=log_count_BH,
            anchor_share_B=self._anchor_share_N[anchor_B] if self._rules.symmetric else None,
            known_anchors=anchors,
        )

    def _by_grade(self, weight_B: np.ndarray, grade_B: np.ndarray) -> np.ndarray:
        match self._rules.grades:
            case "none":
                return weight_B
            case "linear":
                return weight_B * grade_B
            case "exponential":
                return weight_B * (np.exp2(grade_B) - 1)

    def _blocked(
        self, anchor_B: np.ndarray, candidate_B: np.ndarray, listed: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids that shared columns must not hold for an anchor. An anchor's list of hard negatives is among them: these
        have columns of their own, so each product is estimated from one place only."""
        if self._config.mask == "none":
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        own = (np.arange(len(anchor_B)), candidate_B)
        if self._config.mask == "known" and self._rules.grades == "none" and not self._lists:
            # The pair's own candidate is a known one, the anchor itself never: no entry stands twice.
            return joined([self._known.of(anchor_B), *([(own[0], anchor_B)] if self._same_entity else [])])
        entries = [own, listed]
        if self._config.mask == "known":
            # With grades an anchor's other positives stay: their order is what is to be learned.
            left_out = self._known if self._rules.grades == "none" else self._ignored
            entries += [] if left_out is None else [left_out.of(anchor_B)]
            entries += [(own[0], anchor_B)] if self._same_entity else []
        return merged(entries)

    def _known_anchors_of(self, anchor_B: np.ndarray, candidate_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._config.mask == "none":
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        entries = [(np.arange(len(anchor_B)), anchor_B)]
        if self._config.mask == "known":
            entries.append(self._known_anchors.of(candidate_B))
            entries += [(entries[0][0], candidate_B)] if self._same_entity else []
        return merged(entries)

    def _private(
        self, anchor_B: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, np.ndarray | None, tuple[np.ndarray, np.ndarray]]:
        """Hard negatives of each anchor (rows_BH, log of their expected copies) and the lists they were chosen from.

        From a list of n, min(count, n) neighbours from a random start (round the end) are taken: each member with
        probability min(count, n) / n, none twice.
        """
        if not self._lists:
            return None, None, (np.zeros(0, np.int64), np.zeros(0, np.int64))
        lists = [links.of(anchor_B) for links, _ in self._lists]
        chosen = [
            _choose(found, len(anchor_B), count, rng) for found, (_, count) in zip(lists, self._lists, strict=True)
        ]
        id_BH = np.concatenate(chosen, axis=1)
        count_BH = sum(
            _expected(found, len(anchor_B), count, id_BH) for found, (_, count) in zip(lists, self._lists, strict=True)
        )
        with np.errstate(divide="ignore"):
            log_count_BH = np.where(id_BH >= 0, np.log(count_BH), np.inf).astype(np.float32)
        return np.where(id_BH >= 0, id_BH, max(int(id_BH.max(initial=0)), 0)), log_count_BH, merged(lists)


def joined(entries: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Entries of lists that have none in common, by owner: runs are merged, nothing is sorted anew."""
    owner_L = np.concatenate([owner for owner, _ in entries]).astype(np.int64)
    id_L = np.concatenate([ids for _, ids in entries]).astype(np.int64)
    order = np.argsort(owner_L, kind="stable")
    return owner_L[order], id_L[order]


def merged(entries: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Entries of all lists, each once, by owner and id."""
    owner_L = np.concatenate([owner for owner, _ in entries]).astype(np.int64)
    id_L = np.concatenate([ids for _, ids in entries]).astype(np.int64)
    width = int(id_L.max(initial=0)) + 1
    key_L = np.unique(owner_L * width + id_L)
    return key_L // width, key_L % width


def _choose(found: tuple[np.ndarray, np.ndarray], anchors: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Chosen ids of each anchor, id_BH with -1 where its list is shorter."""
    owner_L, id_L = found
    length_B = np.bincount(owner_L, minlength=anchors)
    first_B = np.cumsum(length_B) - length_B
    start_B = (rng.random(anchors) * length_B).astype(np.int64)
    step_H = np.arange(count)
    at_BH = first_B[:, None] + (start_B[:, None] + step_H) % np.maximum(length_B, 1)[:, None]
    ids = np.append(id_L, -1)
    return np.where(step_H < length_B[:, None], ids[np.minimum(at_BH, len(id_L))], -1)


def _expected(found: tuple[np.ndarray, np.ndarray], anchors: int, count: int, id_BH: np.ndarray) -> np.ndarray:
    """Copies that one list is expected to give of each id, for its anchor: count_BH."""
    owner_L, id_L = found
    length_B = np.bincount(owner_L, minlength=anchors)
    share_B = np.minimum(count, length_B) / np.maximum(length_B, 1)
    width = int(max(id_L.max(initial=0), id_BH.max(initial=0))) + 1
    member_BH = np.isin(np.arange(anchors)[:, None] * width + np.maximum(id_BH, 0), owner_L * width + id_L)
    return np.where(member_BH & (id_BH >= 0), share_B[:, None], 0.0)


def _open_list(dataset: PreparedDataset, task: str, source: NegativeSource) -> Links:
    match source:
        case Named():
            links = dataset.named_negatives(task)
            if links is None:
                raise UserError(
                    f"negatives: task '{task}' has a source of kind 'named', but its data names no negatives: give "
                    '`pairs.negatives` or a role "negative" in the dataset, or leave the source out'
                )
            return links
        case Mined(path=path):
            return MinedFolder.open(path).of_task(dataset, task)
    raise AssertionError(source)
