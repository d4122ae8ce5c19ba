"""The synthetic shop's truth: against counts of many events, and against a slow twin."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from torchrec_mt.data.sources.shop_choice import CLUSTER, LEAF, Pool, SegmentKeys, rankings
from torchrec_mt.data.sources.synthetic_shop import SyntheticShop, write_synthetic_shop

# Few products and many events; half of the time is the test period; the truth holds every candidate.
BUSY = SyntheticShop(
    kind="synthetic_shop", products=120, queries=12, events=300_000, leaves=7, styles=2, brands_per_leaf=3,
    test_share=0.5, cold_share=0.2, view_noise=0.1, basket_noise=0.2, click_noise=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("busy")
    write_synthetic_shop(BUSY, path)
    return path


def rows_of_the_test(path: Path, name: str) -> pd.DataFrame:
    table = pq.read_table(path / f"{name}.parquet").to_pandas()
    return table[table.time >= pd.Timestamp(BUSY.test_from)]


def drawn_pairs(path: Path, task: str) -> pd.DataFrame:
    """Independent draws of the test period as columns anchor, candidate."""
    match task:
        case "search":
            clicks = rows_of_the_test(path, "clicks")
            return clicks[["query_id", "product_id"]].set_axis(["anchor", "candidate"], axis=1)
        case "similar":
            views = rows_of_the_test(path, "views").sort_values(["session_id", "position"])
            first, last = views.groupby("session_id").first(), views.groupby("session_id").last()
            # Half of the sessions forwards, half backwards: the truth does not know which view came first.
            back = (first.index % 2 == 1)[:, None]
            ends = np.stack([first.product_id.to_numpy(dtype=object), last.product_id.to_numpy(dtype=object)], axis=1)
            return pd.DataFrame(np.where(back, ends[:, ::-1], ends), columns=["anchor", "candidate"])
        case _:
            baskets = rows_of_the_test(path, "baskets")
            pairs = baskets[baskets.line == 0].merge(baskets[baskets.line == 1], on="basket_id")
            return pairs[["product_id_x", "product_id_y"]].set_axis(["anchor", "candidate"], axis=1)


def truth(path: Path, task: str) -> pd.DataFrame:
    return pq.read_table(path / f"truth_{task}.parquet").to_pandas().set_axis(["anchor", "candidate", "score"], axis=1)


def chi_square(counted: pd.DataFrame) -> float:
    """Standard deviations by which counts differ from expectations; cells that expect less than 5 are one cell."""
    rare = counted.expected < 5
    cells = pd.concat(
        [counted.loc[~rare, ["n", "expected"]], counted[rare].groupby("anchor")[["n", "expected"]].sum()],
        ignore_index=True,
    )
    cells = cells[cells.expected > 0]
    freedom = len(cells) - counted.anchor.nunique()
    return float((((cells.n - cells.expected) ** 2 / cells.expected).sum() - freedom) / np.sqrt(2 * freedom))


def compare(path: Path, task: str, scores: pd.DataFrame) -> float:
    pairs = drawn_pairs(path, task)
    drawn = pairs.value_counts().rename("n").reset_index()
    counted = scores.merge(drawn, on=["anchor", "candidate"], how="left").fillna({"n": 0})
    # The anchor itself is not in the truth: compare with the draws of others.
    counted["expected"] = counted.n.groupby(counted.anchor).transform("sum") * (
        counted.score / counted.score.groupby(counted.anchor).transform("sum")
    )
    assert counted.n.sum() > 10_000
    return chi_square(counted)


@pytest.mark.parametrize("task", ["search", "similar", "complement"])
def test_truth_is_what_happens(busy: Path, task: str) -> None:
    assert abs(compare(busy, task, truth(busy, task))) < 4


@pytest.mark.parametrize("task", ["search", "similar", "complement"])
def test_the_comparison_would_notice_a_wrong_truth(busy: Path, task: str) -> None:
    wrong = truth(busy, task)
    wrong["score"] = wrong.score**0.9
    assert compare(busy, task, wrong) > 8


def test_scores_are_probabilities_best_first_with_ties_by_id(busy: Path) -> None:
    for task, anchors in (("search", 12), ("similar", 120), ("complement", 120)):
        scores = truth(busy, task)
        total = scores.groupby("anchor").score.sum()
        assert len(total) == anchors
        assert (total <= 1 + 1e-9).all()
        if task == "search":
            assert total.to_numpy() == pytest.approx(np.ones(anchors))
        assert not (scores.anchor == scores.candidate).any()
        assert (scores.score > 0).all()
        best_first = scores.sort_values(["anchor", "score", "candidate"], ascending=[True, False, True], kind="stable")
        assert best_first.index.equals(scores.index)


def test_a_shallow_truth_is_the_beginning_of_the_whole_one(busy: Path, tmp_path: Path) -> None:
    write_synthetic_shop(replace(BUSY, truth_depth=7), tmp_path)
    for task in ("search", "similar", "complement"):
        first = truth(busy, task).groupby("anchor").head(7).reset_index(drop=True)
        pd.testing.assert_frame_equal(truth(tmp_path, task), first)


def test_without_noise_only_the_plan_is_in_the_truth(tmp_path: Path) -> None:
    write_synthetic_shop(replace(BUSY, events=1_000, view_noise=0.0, basket_noise=0.0, click_noise=0.0), tmp_path)
    leaf = pq.read_table(tmp_path / "products.parquet").to_pandas().set_index("product_id").category
    similar, complement = truth(tmp_path, "similar"), truth(tmp_path, "complement")
    assert (leaf[similar.anchor].to_numpy() == leaf[similar.candidate].to_numpy()).all()
    assert (leaf[complement.anchor].to_numpy() != leaf[complement.candidate].to_numpy()).all()
    assert complement.groupby("anchor").score.sum().to_numpy() == pytest.approx(np.ones(120))


def make_pool(rng: np.random.Generator) -> Pool:
    """90 products of 3 leaves x 2 styles x 2 brands; some not on sale, some of equal weight."""
    keys = SegmentKeys(3, 2, 2)
    leaf, style, slot = rng.integers(3, size=90), rng.integers(2, size=90), rng.integers(2, size=90)
    weight = rng.integers(0, 12, size=90).astype(float)
    return Pool(keys, np.stack([keys.key(level, leaf, style, slot) for level in range(5)]), weight)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.6])
def test_rankings_equal_their_slow_twin(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    pool = make_pool(rng)
    key_AJ = np.array(
        [[pool.keys.offsets[CLUSTER] + 1, pool.keys.offsets[CLUSTER] + 4], [pool.keys.offsets[LEAF] + 2, 0]]
    )
    share_AJ = np.array([[0.7, 0.3], [1.0, 0.0]]) * (1 - noise)
    product_AD, score_AD = rankings(pool, key_AJ, share_AJ, noise, depth=8)
    for row, (keys, shares) in enumerate(zip(key_AJ, share_AJ, strict=True)):
        scores = noise * pool.weight_N
        for key, share in zip(keys, shares, strict=True):
            inside = (pool.key_LN == key).any(axis=0)
            scores = scores + inside * share * pool.weight_N / pool.weight_N[inside].sum()
        # Rounded, for the two ways to add differ in the last bit where products tie.
        best = sorted((-round(score, 12), product) for product, score in enumerate(scores) if score > 0)[:8]
        assert product_AD[row].tolist() == [product for _, product in best]
        assert score_AD[row].tolist() == pytest.approx([-score for score, _ in best])


def test_rankings_fill_up_with_nothing() -> None:
    pool = make_pool(np.random.default_rng(0))
    key = pool.keys.offsets[CLUSTER]
    product_AD, score_AD = rankings(pool, np.array([[key]]), np.array([[1.0]]), 0.0, depth=80)
    size = int(((pool.key_LN[CLUSTER] == key) & (pool.weight_N > 0)).sum())
    assert (product_AD[0, size:] == -1).all()
    assert (score_AD[0, size:] == 0).all()
    assert score_AD.sum() == pytest.approx(1.0)


def test_draws_come_from_their_segment_by_weight() -> None:
    rng = np.random.default_rng(1)
    pool = make_pool(rng)
    key = int(pool.keys.offsets[LEAF]) + 1
    drawn = np.bincount(pool.draw(rng, np.full(60_000, key)), minlength=90) / 60_000
    inside = pool.key_LN[LEAF] == key
    expected = np.where(inside, pool.weight_N, 0) / pool.weight_N[inside].sum()
    assert (drawn[expected == 0] == 0).all()
    assert np.abs(drawn - expected).max() < 0.006
