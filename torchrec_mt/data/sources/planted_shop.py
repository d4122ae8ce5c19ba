"""A made-up shop of two tasks whose relation is planted: what learning them together must do is known beforehand.

    products.parquet          product_id
    similar.parquet           anchor_id, candidate_id, part
    complement.parquet        anchor_id, candidate_id, part
    truth_similar.parquet     anchor_id, candidate_id, score
    truth_complement.parquet  anchor_id, candidate_id, score
    source.json               the settings it was made with, and whether it is whole

Every product p has two independent latent directions z_p and w_p, and how well a candidate c suits an anchor a is

    similar:     z_a z_c
    complement:  s u_a u_c    with u_p along sqrt(|agreement|) z_p + sqrt(1 - |agreement|) w_p, s the agreement's sign

so `agreement` is the correlation of the two tasks' preferences over all pairs of products: at 1 both want the same, at
0 they have nothing to do with each other, at -1 a complement is what is least similar. Whatever it is, either task
alone is of as many factors. The candidate of a pair is drawn by exp(sharpness x preference), never the anchor itself;
anchors are drawn evenly, and z and u have length 1, so no product is popular. `part` is 0 in training, 1 in validation,
2 in the test: split by it. Products carry nothing but their id: all that a model knows of one is its row of a table.

Legend: N products, A anchors of a chunk, F factors, K best candidates, P pairs.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from torchrec_mt.data.sources.raw_tables import NamedParts, write_tables
from torchrec_mt.errors import within

GENERATION = 1
"""Raised when the same settings give other tables."""
TASKS = ("similar", "complement")
PARTS = ("train", "valid", "test")
TRUTH_DEPTH = 200
"""Candidates kept per anchor in the truth tables."""
_CHUNK = 256
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PlantedShop:
    """Two tasks from products to products with a planted relation. The same settings give the same bytes.

    Args:
        products: all of them are anchors and candidates of both tasks; the work grows with their square.
        factors: numbers in each latent direction. One task alone needs vectors as wide; both together need twice as
            much, unless they want the same or the opposite.
        agreement: correlation of the tasks' preferences, from -1 (opposed) over 0 (unrelated) to 1 (the same).
        sharpness: how far choices follow preferences; 0: not at all.
        pairs: training pairs of each task. judged: pairs of each task in validation, and as many in the test.
        common: share of the products that the training pairs of both tasks may hold. The rest is dealt out, half to
            either task; all are judged by both.
    """

    kind: Literal["planted_shop"]
    seed: int = 0
    products: int = 1_000
    factors: int = 6
    agreement: float = 0.0
    sharpness: float = 12.0
    pairs: int = 20_000
    judged: int = 4_000
    common: float = 1.0

    def __post_init__(self) -> None:
        within(self, 0, 2**32 - 1, "seed")
        within(self, 4, 50_000, "products")
        within(self, 1, 1_000, "factors")
        within(self, -1, 1, "agreement")
        within(self, 0, 1_000, "sharpness")
        within(self, 1, 100_000_000, "pairs", "judged")
        within(self, 0, 1, "common")


def write_planted_shop(shop: PlantedShop, folder: Path) -> None:
    """Writes the tables; does nothing where they already lie whole and made with the same settings.

    Raises:
        UserError: a folder that holds tables of somebody else.
    """
    write_tables(folder, {"generation": GENERATION, **asdict(shop)}, lambda: _tables(shop))


def directions(shop: PlantedShop) -> dict[str, tuple[Floats, Floats]]:
    """Vectors whose products are a task's preferences: anchor_NF and candidate_NF by task."""
    rng = np.random.default_rng([shop.seed, 0])
    z_NF, w_NF = map(_unit, rng.normal(size=(2, shop.products, shop.factors)))
    agreement = abs(shop.agreement)
    u_NF = _unit(agreement**0.5 * z_NF + (1 - agreement) ** 0.5 * w_NF)
    return {"similar": (z_NF, z_NF), "complement": (-u_NF if shop.agreement < 0 else u_NF, u_NF)}


def _unit(x_NF: Floats) -> Floats:
    return x_NF / np.linalg.norm(x_NF, axis=1, keepdims=True)


def trained_products(shop: PlantedShop) -> dict[str, NDArray[np.bool_]]:
    """Which products a task's training pairs may hold, bool_N by task."""
    order_N = np.random.default_rng([shop.seed, 1]).permutation(shop.products)
    first = round(shop.common * shop.products)
    found = {}
    for number, task in enumerate(TASKS):
        found[task] = np.zeros(shop.products, bool)
        found[task][order_N[:first]] = True
        found[task][order_N[first + number :: 2]] = True
    return found


def _tables(shop: PlantedShop) -> Iterator[NamedParts]:
    width = len(str(shop.products - 1))
    names = pa.array([f"p{number:0{width}}" for number in range(shop.products)])
    yield "products", [pa.table({"product_id": names})]
    latent = directions(shop)
    trained = trained_products(shop)
    for number, task in enumerate(TASKS):
        anchor_NF, candidate_NF = latent[task]
        parts = []
        for part, name in enumerate(PARTS):
            rng = np.random.default_rng([shop.seed, 2, number, part])
            allowed_N, count = (trained[task], shop.pairs) if name == "train" else (None, shop.judged)
            pair_2P = _pairs(rng, shop.sharpness * anchor_NF, candidate_NF, allowed_N, count)
            parts.append(_table(names, *pair_2P, part=pa.array(np.full(count, part))))
        yield task, parts
    for task in TASKS:
        yield f"truth_{task}", _truth(names, *latent[task])


def _table(names: pa.Array, anchor_P: Rows, candidate_P: Rows, **more: pa.Array) -> pa.Table:
    return pa.table({"anchor_id": names.take(anchor_P), "candidate_id": names.take(candidate_P), **more})


def _pairs(
    rng: np.random.Generator, anchor_NF: Floats, candidate_NF: Floats, allowed_N: NDArray[np.bool_] | None, count: int
) -> tuple[Rows, Rows]:
    """Anchors drawn evenly, ascending, and for each a candidate by the exponential of its preference.

    Args:
        allowed_N: which products may be either; None: all.
    """
    allowed_N = np.ones(len(anchor_NF), bool) if allowed_N is None else allowed_N
    anchor_P = np.sort(rng.choice(np.flatnonzero(allowed_N), count))
    draw_P = rng.random(count)
    candidates = []
    for start in range(0, len(anchor_NF), _CHUNK):
        logit_AN = _preferences(anchor_NF, candidate_NF, start)
        logit_AN[:, ~allowed_N] = -np.inf
        logit_AN -= logit_AN.max(axis=1, keepdims=True)
        below_AN = np.exp(logit_AN).cumsum(axis=1)
        below_AN /= below_AN[:, -1:]
        first, last = np.searchsorted(anchor_P, [start, start + _CHUNK])
        row_P = anchor_P[first:last] - start
        # One search for all rows: row r lies between r and r + 1.
        ends_P = np.searchsorted(
            (below_AN + np.arange(len(below_AN))[:, None]).ravel(), draw_P[first:last] + row_P, side="right"
        )
        candidates.append(ends_P - row_P * len(candidate_NF))
    return anchor_P, np.concatenate(candidates)


def _preferences(anchor_NF: Floats, candidate_NF: Floats, start: int) -> Floats:
    """preference_AN of a chunk of anchors; that of an anchor for itself is -inf."""
    found_AN = anchor_NF[start : start + _CHUNK] @ candidate_NF.T
    row_A = np.arange(len(found_AN))
    found_AN[row_A, start + row_A] = -np.inf
    return found_AN


def _truth(names: pa.Array, anchor_NF: Floats, candidate_NF: Floats) -> Iterator[pa.Table]:
    """The candidates that suit each anchor best, best first."""
    depth = min(TRUTH_DEPTH, len(anchor_NF) - 1)
    for start in range(0, len(anchor_NF), _CHUNK):
        preference_AN = _preferences(anchor_NF, candidate_NF, start)
        best_AK = np.argsort(-preference_AN, axis=1, kind="stable")[:, :depth]
        anchor_P = np.repeat(np.arange(start, start + len(best_AK)), depth)
        score_P = np.take_along_axis(preference_AN, best_AK, axis=1).ravel()
        yield _table(names, anchor_P, best_AK.ravel(), score=pa.array(score_P))
