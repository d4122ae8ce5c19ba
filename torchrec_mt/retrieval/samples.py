"""Samples of a judgement to look at, `samples.json`: lists of a few anchors, cosines of a few hundred, a map.

What is shown is chosen on the main rank (`choose`), every rank encodes the rows that it takes (`encode_chosen`), and
the main one tells it as JSON (`samples_json`). All is drawn from seed 0.

Legend: B anchors of a sample, R their right answers, S anchors whose lists are shown, K shown places.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.ranker import Ranker
from torchrec_mt.retrieval.cosines import cosines_json
from torchrec_mt.retrieval.encode import Side, Vectors, anchors_of
from torchrec_mt.retrieval.evaluator import EvaluateConfig, split_anchors, split_relevant
from torchrec_mt.retrieval.layout import agreement, nearest, plane
from torchrec_mt.retrieval.metrics import Relevant, hits_of
from torchrec_mt.retrieval.shown import Label, labels_of
from torchrec_mt.retrieval.slices import BANDS, category_feature, popularity_bands

FORMAT = 1
SHOWN, PER_BAND = 8, 3
"""Places of a list, and anchors of the head, the torso and the tail each."""
SCORED, RIGHT, DEPTH = 300, 5, 100
"""Anchors whose cosines are counted, right answers of each, and how deep a list is searched for a wrong one."""
MAPPED = 2000


@dataclass(frozen=True)
class TaskSample:
    """What is looked at of one task; anchors and answers are catalogue rows.

    Args:
        anchor_B: whose cosines are counted, ascending. right_R: some right answers of theirs, of anchor owner_R.
        wrong_B: the first answer of each list that is not right, -1 where there is none.
        shown_S: whose lists are shown. list_SK: best first, -1 padded. right_SK: which answers are right.
        relevant_S: right answers in all.
    """

    anchor_B: np.ndarray
    owner_R: np.ndarray
    right_R: np.ndarray
    wrong_B: np.ndarray
    shown_S: np.ndarray
    list_SK: np.ndarray
    right_SK: np.ndarray
    relevant_S: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """What is looked at.

    Args:
        tasks: by name. shown: the same anchors for all tasks of an entity, by that entity. band: 0 head, 1 torso or
            2 tail of each, -1 where nothing is known. mapped: rows of the map, by candidate entity, ascending.
    """

    tasks: dict[str, TaskSample]
    shown: dict[str, np.ndarray]
    band: dict[str, np.ndarray]
    mapped: dict[str, np.ndarray]


@dataclass(frozen=True)
class Encoded:
    """Vectors of some rows, which are ascending."""

    row_M: np.ndarray
    vector_MD: np.ndarray

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of the given rows, all of which are there."""
        return self.vector_MD[np.searchsorted(self.row_M, rows)]


def choose(dataset: PreparedDataset, rankers: Mapping[str, Ranker], config: EvaluateConfig) -> Chosen:
    """Chooses what is looked at: anchors with right answers, spread over head, torso and tail.

    Args:
        rankers: the model by task.
    """
    info, rng = dataset.manifest.tasks, np.random.default_rng(0)
    asked = {name: _asked(dataset, name, config) for name in rankers}
    rankers = {name: ranker for name, ranker in rankers.items() if len(asked[name][0])}
    shown, band = {}, {}
    for entity in dict.fromkeys(info[name].anchor for name in rankers):
        names = [name for name in rankers if info[name].anchor == entity]
        count_N = np.sum([dataset.anchor_frequencies(name) for name in names], axis=0)
        shown[entity], band[entity] = _spread([asked[name][0] for name in names], count_N, rng)
    return Chosen(
        tasks={
            name: _task_sample(*asked[name], ranker, shown[info[name].anchor], dataset, info[name].candidate, rng)
            for name, ranker in rankers.items()
        },
        shown=shown,
        band=band,
        mapped={
            entity: np.sort(rng.choice(count, min(count, MAPPED), replace=False))
            for entity in dict.fromkeys(info[name].candidate for name in rankers)
            for count in [dataset.manifest.entities[entity].count]
        },
    )


def _asked(dataset: PreparedDataset, task: str, config: EvaluateConfig) -> tuple[np.ndarray, Relevant]:
    anchor_B, relevant = split_anchors(dataset, task, config), split_relevant(dataset, task, config)
    some_B = relevant.count_B > 0
    return anchor_B[some_B], relevant.of_anchors(some_B)


def _spread(
    judged: Sequence[np.ndarray], count_N: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Anchors of each band, those first that most tasks ask about: rows and bands."""
    every, tasks = np.unique(np.concatenate(judged), return_counts=True)
    every = every[np.lexsort((rng.random(len(every)), -tasks))]
    if not count_N.any():
        some = every[: PER_BAND * len(BANDS)]
        return some, np.full(len(some), -1)
    band = popularity_bands(count_N)[every]
    some = np.concatenate([np.flatnonzero(band == number)[:PER_BAND] for number in range(len(BANDS))])
    return every[some], band[some]


def _task_sample(
    anchor_A: np.ndarray,
    relevant: Relevant,
    ranker: Ranker,
    shown: np.ndarray,
    dataset: PreparedDataset,
    candidate: str,
    rng: np.random.Generator,
) -> TaskSample:
    """Of the anchors that are judged (A)."""
    size = dataset.manifest.entities[candidate].count
    scored = np.sort(rng.choice(len(anchor_A), min(len(anchor_A), SCORED), replace=False))
    some = _rows(relevant, scored)
    ranked_BK = ranker(anchor_A[scored], min(DEPTH, size))
    wrong_BK = (ranked_BK >= 0) & ~_right(ranked_BK, some)
    first_B = wrong_BK.argmax(axis=1)
    wrong_B = np.where(wrong_BK.any(axis=1), ranked_BK[np.arange(len(scored)), first_B], -1)
    owner_R = np.repeat(np.arange(len(scored)), some.count_B)
    order = np.lexsort((rng.random(len(owner_R)), owner_R))
    kept = order[np.arange(len(order)) - some.offsets[owner_R] < RIGHT]
    mine = np.flatnonzero(np.isin(anchor_A, shown))
    ours = _rows(relevant, mine)
    list_SK = ranker(anchor_A[mine], min(SHOWN, size))
    return TaskSample(
        anchor_B=anchor_A[scored],
        owner_R=owner_R[kept],
        right_R=some.items[kept],
        wrong_B=wrong_B,
        shown_S=anchor_A[mine],
        list_SK=list_SK,
        right_SK=_right(list_SK, ours),
        relevant_S=ours.count_B,
    )


def _rows(relevant: Relevant, rows: np.ndarray) -> Relevant:
    """Right answers of some anchors; rows ascending."""
    keep_B = np.zeros(len(relevant.count_B), bool)
    keep_B[rows] = True
    return relevant.of_anchors(keep_B)


def _right(ranked_BK: np.ndarray, relevant: Relevant) -> np.ndarray:
    hits, right_BK = hits_of(ranked_BK, relevant), np.zeros(ranked_BK.shape, bool)
    right_BK[hits.anchor_H, hits.rank_H] = True
    return right_BK


def encode_chosen(
    dataset: PreparedDataset, chosen: Chosen, vectors: Vectors, sides: Mapping[str, Side]
) -> tuple[dict[str, Encoded], dict[str, Encoded]]:
    """Vectors of all that was chosen, by task: anchors, and candidates. Called on every rank.

    Args:
        sides: as what each task's candidates are encoded (`candidates_of`); tasks of one side share their vectors.
    """
    info = dataset.manifest.tasks
    anchors, candidates = dict[str, Encoded](), dict[str, Encoded]()
    for name, task in chosen.tasks.items():
        rows = np.union1d(task.anchor_B, task.shown_S)
        anchors[name] = Encoded(rows, vectors(info[name].anchor, rows, anchors_of(info[name].trained_as or name)))
    for entity, side in dict.fromkeys((info[name].candidate, sides[name]) for name in chosen.tasks):
        mine = [name for name in chosen.tasks if (info[name].candidate, sides[name]) == (entity, side)]
        tasks = [chosen.tasks[name] for name in mine]
        every = [part.ravel() for task in tasks for part in (task.right_R, task.wrong_B, task.list_SK)]
        rows = np.unique(np.concatenate([chosen.mapped[entity], *every]))
        rows = rows[rows >= 0]
        candidates |= dict.fromkeys(mine, Encoded(rows, vectors(entity, rows, side)))
    return anchors, candidates


def samples_json(
    dataset: PreparedDataset,
    chosen: Chosen,
    anchors: Mapping[str, Encoded],
    candidates: Mapping[str, Encoded],
    *,
    run: str,
) -> dict[str, Any]:
    """What `samples.json` holds, see docs/evaluation.md.

    Args:
        anchors, candidates: see `encode_chosen`; the map of an entity is that of its first task. run: its name.
    """
    info, entities = dataset.manifest.tasks, dataset.manifest.entities
    cosines, lists = {}, {}
    first = {info[name].candidate: name for name in reversed(chosen.tasks)}
    for name, task in chosen.tasks.items():
        found, own = candidates[name], anchors[name]
        mapped_ND = found.of(chosen.mapped[info[name].candidate])
        anchor_BD = own.of(task.anchor_B)
        right_R = np.einsum("rd,rd->r", anchor_BD[task.owner_R], found.of(task.right_R))
        wrong_B = np.einsum("bd,bd->b", anchor_BD, found.of(np.maximum(task.wrong_B, found.row_M[0])))
        wrong_B = np.where(task.wrong_B >= 0, wrong_B, np.nan)
        cosines[name] = cosines_json(right_R, task.owner_R, wrong_B, anchor_BD @ mapped_ND.T)
        lists[name] = _lists(dataset, info[name].candidate, task, own, found)
    return {
        "format": FORMAT,
        "about": {
            "run": run,
            "dataset": dataset.manifest.name,
            "entities": {entity: about.count for entity, about in entities.items()},
            "date": time.strftime("%Y-%m-%d %H:%M"),
        },
        "cosines": cosines,
        "lists": [
            {
                "entity": entity,
                "tasks": [name for name in chosen.tasks if info[name].anchor == entity],
                "anchors": [
                    {
                        **label.to_json(),
                        "band": BANDS[band] if band >= 0 else None,
                        "lists": {name: lists[name][row] for name in lists if row in lists[name]},
                    }
                    for row, band, label in zip(
                        rows.tolist(), chosen.band[entity].tolist(), labels_of(dataset, entity, rows), strict=True
                    )
                ],
            }
            for entity, rows in chosen.shown.items()
        ],
        "maps": {
            entity: _map(dataset, entity, rows, candidates[first[entity]]) for entity, rows in chosen.mapped.items()
        },
    }


def _lists(
    dataset: PreparedDataset, entity: str, task: TaskSample, anchors: Encoded, found: Encoded
) -> dict[int, dict[str, Any]]:
    """The list of each shown anchor, by its row."""
    row_P = np.unique(task.list_SK[task.list_SK >= 0])
    labels: dict[int, Label] = dict(zip(row_P.tolist(), labels_of(dataset, entity, row_P), strict=True))
    told = {}
    for at, anchor in enumerate(task.shown_S.tolist()):
        filled = task.list_SK[at] >= 0
        rows = task.list_SK[at][filled]
        cosine_K = found.of(rows) @ anchors.of(task.shown_S[at])
        told[anchor] = {
            "relevant": int(task.relevant_S[at]),
            "answers": [
                {**labels[row].to_json(), "right": right, "cosine": round(cosine, 4)}
                for row, right, cosine in zip(
                    rows.tolist(), task.right_SK[at][filled].tolist(), cosine_K.tolist(), strict=True
                )
            ],
        }
    return told


def _map(dataset: PreparedDataset, entity: str, rows: np.ndarray, found: Encoded) -> dict[str, Any]:
    """Places in whole thousandths with title and category, and how well neighbours agree in category."""
    vector_ND = found.of(rows)
    place_N2 = plane(vector_ND)
    labels = labels_of(dataset, entity, rows)
    said: dict[str, Any] = {"count": dataset.manifest.entities[entity].count, "agreement": None}
    known = np.array([label.category is not None for label in labels])
    if category_feature(dataset, entity) is not None and known.sum() > 1:
        _, code_N = np.unique([label.category or "" for label in labels], return_inverse=True)
        code_N, share_C = code_N[known], np.bincount(code_N[known]) / known.sum()
        said["agreement"] = {
            "vectors": agreement(nearest(vector_ND[known], 10), code_N),
            "chance": float(share_C @ share_C),
        }
    said["points"] = [
        [*place, label.text, label.category]
        for place, label in zip((place_N2 * 1000).round().astype(int).tolist(), labels, strict=True)
    ]
    return said
