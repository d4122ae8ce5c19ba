"""Approximate indexes (FAISS) against exact retrieval: recall, what it costs the task, speed, memory, building.

Takes vectors, returns numbers; the program `indexes` brings the vectors of a run. Every index is built on one thread
with FAISS's fixed seeds, since threads would change the links of HNSW and the means of k-means: the same vectors give
the same index, bit by bit. Only times differ from run to run.

Legend: B anchors, N candidates, K cut-off, D width, M places of lists to look at again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrec_mt.retrieval.baselines.ranker import without_self
from torchrec_mt.retrieval.index_grid import Structure
from torchrec_mt.retrieval.metrics import Relevant, ranking_metrics
from torchrec_mt.retrieval.topk import Catalogue

DEPTH = 100
"""Candidates that are asked for; what `recall_100` and the task's own Recall@100 look at."""
_SAME_SCORE = 1e-6
"""Unit vectors' scores that are no farther apart are equal in float32."""
_ONE_BY_ONE, _BATCH, _ROUNDS = 256, 1024, 3
_PAIRS_AT_ONCE = 1 << 16

Search = Callable[[np.ndarray, int], np.ndarray]
"""Takes anchor_BD and k, returns rows_BK, best first, -1 padded."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a task asks of the index.

    Args:
        anchor_BD: unit vectors, float32. self_B: the candidate that is the anchor itself, which no list holds; None
            where anchors are no candidates. relevant: the task's right answers, per anchor.
    """

    anchor_BD: np.ndarray
    self_B: np.ndarray | None
    relevant: Relevant


@dataclass(frozen=True, kw_only=True)
class Point:
    """A setting on a task's anchors.

    Args:
        recall_10, recall_100: share of the exact best 10 and 100 that is found. task_recall_100: the task's own
            Recall@100, against its right answers.
        one_by_one: queries a second, one to a call, on one thread. batch: in one call of up to 1,024, on all threads.
    """

    recall_10: float
    recall_100: float
    task_recall_100: float
    one_by_one: float
    batch: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A setting: an index, and how it is searched. bytes: of the index as a file. tasks: its point on each task."""

    factory: str
    build: str
    search: str
    bytes: int
    build_seconds: float
    tasks: dict[str, Point]


def measure(
    candidate_ND: Tensor,
    questions: Mapping[str, Questions],
    wanted: Sequence[Structure],
    *,
    threads: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Measured, list[Measured]]:
    """Exact retrieval of this project, and every setting of the wanted indexes, on every task.

    Args:
        candidate_ND: unit vectors of the catalogue, float32 on the CPU. questions: by task.
        threads: for queries in a batch.
        progress: told what is measured, how many settings are done, of how many.
    """
    found: list[Measured] = []
    total = sum(len(one.searches) for one in wanted)

    def told(what: str) -> None:
        if progress:
            progress(what, len(found), total)

    told("exact")
    catalogue, vector_ND = Catalogue(candidate_ND, copy=True), np.ascontiguousarray(candidate_ND.numpy())

    def exactly(anchor_BD: np.ndarray, k: int) -> np.ndarray:
        return catalogue.topk(torch.from_numpy(anchor_BD), k)[1].numpy()

    best = {name: ranked(exactly, asked, DEPTH) for name, asked in questions.items()}

    def points(search: Search) -> dict[str, Point]:
        return {name: _point(search, asked, best[name], vector_ND, threads) for name, asked in questions.items()}

    exact = Measured(
        factory="exact", build="", search="", bytes=vector_ND.nbytes, build_seconds=0.0, tasks=points(exactly)
    )
    for one in wanted:
        told(one.factory)
        index, seconds, size = built(one, vector_ND)
        for parameters in one.searches:
            told(f"{one.factory} {parameters}")
            found.append(
                Measured(
                    factory=one.factory,
                    build=one.build,
                    search=parameters,
                    bytes=size,
                    build_seconds=seconds,
                    tasks=points(searching(index, parameters)),
                )
            )
    told("done")
    return exact, found


def built(structure: Structure, vector_ND: np.ndarray) -> tuple[Any, float, int]:
    """The index of the vectors, the seconds that it took on one thread, and its bytes as a file."""
    import faiss
    from threadpoolctl import threadpool_limits

    index = faiss.index_factory(vector_ND.shape[1], structure.factory, faiss.METRIC_INNER_PRODUCT)
    _set(index, structure.build)
    with threadpool_limits(1):
        start = time.perf_counter()
        index.train(vector_ND)
        index.add(vector_ND)
        seconds = time.perf_counter() - start
    return index, seconds, faiss.serialize_index(index).nbytes


def searching(index: Any, parameters: str) -> Search:
    """A search of a built index with parameters, which stay set in it until another's are."""
    _set(index, parameters)
    return lambda anchor_BD, k: index.search(anchor_BD, k)[1]


def _set(index: Any, parameters: str) -> None:
    import faiss

    space: Any = faiss.ParameterSpace()
    if parameters:
        space.set_index_parameters(index, parameters)


def ranked(search: Search, asked: Questions, k: int) -> np.ndarray:
    """The k best of each anchor, itself left out: one more is asked for where it may be found. rows_BK, -1 padded."""
    parts = [np.zeros((0, k), np.int64)]
    for start in range(0, len(asked.anchor_BD), _BATCH):
        here = slice(start, start + _BATCH)
        if asked.self_B is None:
            parts.append(search(asked.anchor_BD[here], k))
        else:
            rows_BK = search(asked.anchor_BD[here], k + 1)
            parts.append(without_self(rows_BK, asked.self_B[here], k, same_entity=True))
    return np.concatenate(parts)


def _point(search: Search, asked: Questions, best_BK: np.ndarray, vector_ND: np.ndarray, threads: int) -> Point:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        rows_BK = ranked(search, asked, DEPTH)
    own_B = ranking_metrics(rows_BK, asked.relevant, [f"recall@{DEPTH}"])[f"recall@{DEPTH}"]
    judged_B = own_B[~np.isnan(own_B)]
    one_by_one, batch = _rates(search, asked.anchor_BD, DEPTH + (asked.self_B is not None), threads)
    return Point(
        recall_10=share_found(rows_BK[:, :10], best_BK[:, :10], asked.anchor_BD, vector_ND),
        recall_100=share_found(rows_BK, best_BK, asked.anchor_BD, vector_ND),
        task_recall_100=float(judged_B.mean()) if len(judged_B) else 0.0,
        one_by_one=one_by_one,
        batch=batch,
    )


def share_found(rows_BK: np.ndarray, best_BK: np.ndarray, anchor_BD: np.ndarray, vector_ND: np.ndarray) -> float:
    """Share of the exact best that is found, the mean over anchors.

    Equal vectors can stand for each other: what scores as high as the last of the exact best counts, too.
    """
    first_B = np.arange(len(best_BK))[:, None] * len(vector_ND)
    there_BK = (rows_BK >= 0) & np.isin(first_B + rows_BK, (first_B + best_BK)[best_BK >= 0])
    size_B = (best_BK >= 0).sum(axis=1)
    last_B = best_BK[np.arange(len(best_BK)), np.maximum(size_B - 1, 0)]
    limit_B = _scores(anchor_BD, vector_ND, np.arange(len(best_BK)), last_B) - _SAME_SCORE
    b_M, place_M = np.nonzero((rows_BK >= 0) & ~there_BK)
    there_BK[b_M, place_M] = _scores(anchor_BD, vector_ND, b_M, rows_BK[b_M, place_M]) >= limit_B[b_M]
    asked_B = size_B > 0
    return float((there_BK.sum(axis=1)[asked_B] / size_B[asked_B]).mean()) if asked_B.any() else 1.0


def _scores(anchor_BD: np.ndarray, vector_ND: np.ndarray, b_M: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    """Inner products of pairs in float64."""
    parts = [np.zeros(0)]
    for start in range(0, len(b_M), _PAIRS_AT_ONCE):
        here = slice(start, start + _PAIRS_AT_ONCE)
        parts.append((anchor_BD[b_M[here]].astype(np.float64) * vector_ND[row_M[here]]).sum(axis=1))
    return np.concatenate(parts)


def _rates(search: Search, anchor_BD: np.ndarray, k: int, threads: int) -> tuple[float, float]:
    """Queries a second, one by one on one thread and in one batch on all; the best of three rounds."""
    from threadpoolctl import threadpool_limits

    few_BD, many_BD = anchor_BD[:_ONE_BY_ONE], anchor_BD[:_BATCH]

    def seconds(run: Callable[[], object]) -> float:
        times = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    with threadpool_limits(1):
        one = seconds(lambda: [search(few_BD[b : b + 1], k) for b in range(len(few_BD))])
    with threadpool_limits(threads):
        return len(few_BD) / one, len(many_BD) / seconds(lambda: search(many_BD, k))


def recommended(measured: Sequence[Measured], wishes: Mapping[str, float]) -> Measured | None:
    """Of the settings that find at least the wished share of the exact best 100 on each of the tasks the fastest, one
    by one and with all tasks asked equally often; None where no setting does.

    Args:
        wishes: by task.
    """
    enough = [one for one in measured if all(one.tasks[name].recall_100 >= wish for name, wish in wishes.items())]
    return min(enough, key=lambda one: sum(1 / one.tasks[name].one_by_one for name in wishes), default=None)
