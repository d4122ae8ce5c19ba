"""Exact top-k by blocks against a stable argsort of the whole score matrix."""

import numpy as np
import pytest
import torch

from torchrec_mt.retrieval import topk
from torchrec_mt.retrieval.topk import exact_topk


def slow_topk(scores_BN: np.ndarray, k: int, exclude_B: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One anchor at a time, everything sorted; equal scores keep their row order."""
    scores_BK = np.full((len(scores_BN), k), -np.inf, np.float32)
    rows_BK = np.full((len(scores_BN), k), -1)
    for b, scores_N in enumerate(scores_BN):
        order = [row for row in np.argsort(-scores_N, kind="stable") if exclude_B is None or row != exclude_B[b]][:k]
        scores_BK[b, : len(order)], rows_BK[b, : len(order)] = scores_N[order], order
    return scores_BK, rows_BK


def whole_vectors(shape: tuple[int, int], low: int, high: int, seed: int) -> torch.Tensor:
    """Small whole numbers: every sum is exact, so equal scores are equal whoever adds them up."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("block", [1, 7, 64, 200, 65536])
@pytest.mark.parametrize(
    ("B", "N", "D", "k", "high"),
    [
        (1, 1, 1, 1, 3),
        (5, 3, 4, 10, 3),  # N < k
        (4, 10, 4, 10, 3),  # N = k
        (33, 200, 8, 10, 1),  # a handful of distinct scores
        (9, 200, 2, 100, 0),  # all scores equal
        (70, 500, 16, 37, 100),  # few ties
    ],
)
def test_equals_a_stable_argsort(B: int, N: int, D: int, k: int, high: int, block: int, exclude: bool) -> None:
    anchors, candidates = whole_vectors((B, D), -high, high, 1), whole_vectors((N, D), -high, high, 2)
    left_out = torch.arange(B) % (N + 1) - 1 if exclude else None  # -1, 0, 1, ...
    scores, rows = exact_topk(anchors, candidates, k, exclude_B=left_out, block=block)
    expected_scores, expected_rows = slow_topk(
        (anchors @ candidates.T).numpy(), k, None if left_out is None else left_out.numpy()
    )
    np.testing.assert_array_equal(rows.numpy(), expected_rows)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


def test_no_candidates_and_no_anchors() -> None:
    scores, rows = exact_topk(torch.ones(2, 3), torch.ones(0, 3), 2)
    assert rows.tolist() == [[-1, -1], [-1, -1]]
    assert scores.tolist() == [[-np.inf, -np.inf]] * 2
    scores, rows = exact_topk(torch.ones(0, 3), torch.ones(4, 3), 2)
    assert rows.shape == scores.shape == (0, 2)


def test_more_anchors_than_go_at_once() -> None:
    anchors, candidates = whole_vectors((5000, 4), -2, 2, 3), whole_vectors((90, 4), -2, 2, 4)
    _, rows = exact_topk(anchors, candidates, 5)
    np.testing.assert_array_equal(rows.numpy(), slow_topk((anchors @ candidates.T).numpy(), 5)[1])


def test_random_vectors_against_float64() -> None:
    generator = torch.Generator().manual_seed(5)
    anchors, candidates = torch.randn(50, 64, generator=generator), torch.randn(3000, 64, generator=generator)
    scores, rows = exact_topk(anchors, candidates, 20, block=999)
    exact_BN = anchors.double().numpy() @ candidates.double().numpy().T
    np.testing.assert_allclose(scores.numpy(), -np.sort(-exact_BN, axis=1)[:, :20], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact_BN, rows.numpy(), axis=1), scores.numpy(), rtol=1e-5, atol=1e-5)


def test_ties_where_torch_would_choose_freely() -> None:
    candidates = torch.eye(3).repeat(2000, 1)  # rows 0, 3, 6, ... point along the first axis, and so on
    anchors = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, -1.0, 0.0]])
    scores, rows = exact_topk(anchors, candidates, 4)
    assert rows.tolist() == [[0, 1, 2, 3], [0, 3, 6, 9], [2, 5, 8, 11]]
    assert scores.tolist() == [[0.0] * 4, [1.0] * 4, [0.0] * 4]


def test_scores_that_another_order_of_sums_would_round_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of large and small numbers that cancel: all that is left is rounding. The two ways agree bit by bit."""
    generator = torch.Generator().manual_seed(6)
    half = torch.randn(4000, 32, generator=generator) * 10.0 ** (12 * torch.rand(4000, 32, generator=generator) - 6)
    order = torch.randperm(64, generator=generator)
    candidates = torch.cat([half, -half], dim=1)[:, order]
    anchors = torch.randn(5, 32, generator=generator).repeat(1, 2)[:, order]
    found = {}
    for way, scanned_from in (("scan", 1), ("whole", 1 << 30)):
        monkeypatch.setattr(topk, "_SCANNED_FROM", scanned_from)
        found[way] = exact_topk(anchors, candidates, 120)
    assert torch.equal(found["scan"][0], found["whole"][0])
    assert torch.equal(found["scan"][1], found["whole"][1])


def test_the_whole_catalogue_is_ranked_at_any_depth() -> None:
    """Deep rankings are sorted, shallow ones selected; in blocks, whose best are looked at again once they are many."""
    generator = torch.Generator().manual_seed(7)
    anchors, candidates = torch.randn(9, 16, generator=generator), torch.randn(3000, 16, generator=generator)
    scores, rows = exact_topk(anchors, candidates, 3100, exclude_B=torch.arange(9), block=128)
    assert (rows[:, 2999:] == -1).all()
    assert [sorted(row) for row in rows[:, :2999].tolist()] == [[*range(b), *range(b + 1, 3000)] for b in range(9)]
    for k in (1, 100, 187, 188, 1500, 2999):
        shallow = exact_topk(anchors, candidates, k, exclude_B=torch.arange(9), block=128)
        assert torch.equal(shallow[0], scores[:, :k])
        assert torch.equal(shallow[1], rows[:, :k])
