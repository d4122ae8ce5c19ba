"""`make bench-topk`: exact top-k beside FAISS's flat index, in one process; medians of interleaved rounds.

Results are compared first: the same rows as FAISS wherever scores are apart. Prints a table, and as its last line one
JSON object of the worst ratios (see docs/benchmarks.md).
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from torchrec_mt.models.losses.walk import product_dtype
from torchrec_mt.retrieval.scan import block_size
from torchrec_mt.retrieval.topk import Catalogue

DIM, ANCHORS, ROUNDS = 64, 512, 5
GRID = [(candidates, k, ANCHORS) for candidates in (500_000, 1_000_000, 5_000_000) for k in (10, 100)]
"""Where the threshold bites early: candidates, k, anchors."""
REST = [
    (100_000, 10, ANCHORS),
    (100_000, 100, ANCHORS),
    (100_000, 1000, ANCHORS),
    (500_000, 1000, ANCHORS),
    (100_000, 100, 1),
    (1_000_000, 100, 1),
]
CPU = torch.device("cpu")
BF16 = product_dtype("auto", CPU) == torch.bfloat16


def unit_vectors(count: int, seed: int) -> Tensor:
    """Random directions."""
    vectors = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def product(anchor_BD: Tensor, vector_ND: Tensor) -> Callable[[], None]:
    """All scores in float32, block by block into the same memory, nothing kept: the least that a scan must do."""
    block = block_size(torch.float32, CPU)
    out = torch.empty(len(anchor_BD), block)

    def run() -> None:
        for start in range(0, len(vector_ND), block):
            block_CD = vector_ND[start : start + block]
            torch.mm(anchor_BD, block_CD.T, out=out[:, : len(block_CD)])

    return run


def scores(anchor_BD: Tensor, vector_ND: Tensor) -> None:
    """`anchors @ candidates.T` as one writes it: a matrix of scores for every million candidates."""
    for start in range(0, len(vector_ND), 1_000_000):
        anchor_BD @ vector_ND[start : start + 1_000_000].T


def check_equal(anchor_BD: Tensor, vector_ND: Tensor, rows_BK: np.ndarray, their_rows_BK: np.ndarray) -> float:
    """Share of equal rows; where they differ, the true scores must differ by no more than float32's rounding.

    Raises:
        SystemExit: a difference that rounding does not explain.
    """
    b, place = np.nonzero(rows_BK != their_rows_BK)
    anchors, vectors = anchor_BD.double().numpy(), vector_ND.numpy()
    ours, theirs = (
        (anchors[b] * vectors[rows[b, place]].astype(np.float64)).sum(axis=1) for rows in (rows_BK, their_rows_BK)
    )
    if len(b) and np.abs(ours - theirs).max() > 1e-6:
        raise SystemExit("results differ from FAISS's")
    return 1 - len(b) / rows_BK.size


def measure(vector_ND: Tensor, index: Any, catalogues: dict[str, Catalogue], k: int, anchors: int) -> dict[str, Any]:
    """Seconds of each system for one shape, and the share of rows that equal FAISS's."""
    anchor_BD = unit_vectors(anchors, 1)
    systems: dict[str, Callable[[], Any]] = {
        "FAISS": lambda: index.search(anchor_BD.numpy(), k),
        "scores": partial(scores, anchor_BD, vector_ND),
        "product": product(anchor_BD, vector_ND),
    }
    for name, catalogue in catalogues.items():
        systems[name] = partial(catalogue.topk, anchor_BD, k)
    found = {name: system() for name, system in systems.items()}  # warms up, too
    equal = min(check_equal(anchor_BD, vector_ND, found[name][1].numpy(), found["FAISS"][1]) for name in catalogues)
    repeats = 20 if anchors == 1 else 1
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(ROUNDS):
        for name, system in systems.items():
            start = time.perf_counter()
            for _ in range(repeats):
                system()
            seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(values) for name, values in seconds.items()} | {"equal": equal}


def main() -> None:
    names = {"float32": "float32", "auto": "auto"} if BF16 else {"float32": "float32"}
    results: dict[tuple[int, int, int], dict[str, Any]] = {}
    for candidates in sorted({shape[0] for shape in [*GRID, *REST]}):
        vector_ND = unit_vectors(candidates, 2)
        index = faiss.IndexFlatIP(DIM)
        index.add(vector_ND.numpy())
        # As a server would hold it: FAISS's index, too, is a copy of the vectors made beforehand.
        catalogues = {name: Catalogue(vector_ND, precision=p, copy=True) for name, p in names.items()}
        for shape in [*GRID, *REST]:
            if shape[0] == candidates:
                results[shape] = measure(vector_ND, index, catalogues, *shape[1:])
        del index, catalogues
    show(results)
    print(json.dumps(ratios(results)))


def show(results: dict[tuple[int, int, int], dict[str, Any]]) -> None:
    """The table."""
    table = Table("candidates", "k", "anchors", box=None)
    systems = ["FAISS", "scores", "product", "float32", *(["auto"] if BF16 else [])]
    for column in [*(f"{name} ms" for name in systems), *(f"{name} x FAISS" for name in systems[3:]), "equal rows"]:
        table.add_column(column, justify="right")
    for shape in [*GRID, *REST]:
        found = results[shape]
        times = [f"{1000 * found[name]:,.1f}" for name in systems]
        speeds = [f"{found['FAISS'] / found[name]:.2f}" for name in systems[3:]]
        table.add_row(*(f"{x:,}" for x in shape), *times, *speeds, f"{found['equal']:.5f}")
    Console(width=140).print(table)


def ratios(results: dict[tuple[int, int, int], dict[str, Any]]) -> dict[str, Any]:
    """The machine-readable last line: the worst ratio of each kind."""

    def worst(name: str, shapes: list[tuple[int, int, int]]) -> float:
        return round(min(results[shape]["FAISS"] / results[shape][name] for shape in shapes), 3)

    def most(name: str, over: str) -> float:
        return round(max(results[shape][name] / results[shape][over] for shape in GRID), 3)

    best = "auto" if BF16 else "float32"
    return {
        "speedup_faiss_float32": worst("float32", GRID),
        "speedup_faiss_bf16": worst("auto", GRID) if BF16 else None,
        # Over `anchors @ candidates.T`, by the million; over the same product by blocks, each written over the last.
        "time_over_product": most("float32", "scores"),
        "time_over_product_in_place": most("float32", "product"),
        "best_time_over_product_in_place": most(best, "product"),
        "worst_speedup_anywhere": worst(best, [*GRID, *REST]),
        "worst_speedup_anywhere_float32": worst("float32", [*GRID, *REST]),
    }


if __name__ == "__main__":
    main()
