"""Exact top-k against numpy's stable full sort: ties, blocks, exclusion, too few candidates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mt.retrieval.topk import exact_topk


def slow_twin(anchors: np.ndarray, candidates: np.ndarray, k: int, exclude: np.ndarray | None) -> np.ndarray:
    rows = np.full((len(anchors), k), -1)
    for number, anchor in enumerate(anchors):
        order = np.argsort(-(candidates @ anchor), kind="stable")
        if exclude is not None:
            order = order[order != exclude[number]]
        rows[number, : min(k, len(order))] = order[:k]
    return rows


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**31),
    anchors=st.integers(1, 7),
    candidates=st.integers(1, 40),
    k=st.integers(1, 45),
    block=st.integers(1, 50),
    levels=st.integers(1, 4),
    excluding=st.booleans(),
)
def test_equals_a_full_stable_sort(
    seed: int, anchors: int, candidates: int, k: int, block: int, levels: int, excluding: bool
) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers, few levels: sums are exact and ties are many.
    anchor_BD = rng.integers(-levels, levels + 1, (anchors, 3)).astype(np.float32)
    candidate_ND = rng.integers(-levels, levels + 1, (candidates, 3)).astype(np.float32)
    exclude = rng.integers(-1, candidates, anchors) if excluding else None
    scores, rows = exact_topk(
        torch.from_numpy(anchor_BD),
        torch.from_numpy(candidate_ND),
        k,
        exclude_B=None if exclude is None else torch.from_numpy(exclude),
        block=block,
    )
    np.testing.assert_array_equal(rows.numpy(), slow_twin(anchor_BD, candidate_ND, k, exclude))
    real = rows.numpy() >= 0
    expected = np.take_along_axis(anchor_BD @ candidate_ND.T, np.maximum(rows.numpy(), 0), axis=1)
    np.testing.assert_array_equal(scores.numpy()[real], expected[real])
    assert np.isneginf(scores.numpy()[~real]).all()


def test_no_anchors() -> None:
    scores, rows = exact_topk(torch.zeros(0, 4), torch.zeros(5, 4), 3)
    assert scores.shape == rows.shape == (0, 3)


def test_any_block_size_gives_the_same_rows() -> None:
    torch.manual_seed(0)
    anchors, candidates = torch.randn(50, 8), torch.randn(3000, 8).round(decimals=1)
    expected = exact_topk(anchors, candidates, 100, block=3000)[1]
    for block in (7, 100, 999):
        assert torch.equal(exact_topk(anchors, candidates, 100, block=block)[1], expected)


def test_score_bits_do_not_depend_on_the_block() -> None:
    torch.manual_seed(0)
    anchors, candidates = torch.randn(3, 64), torch.randn(500, 64)
    expected = exact_topk(anchors, candidates, 20)[0]
    for block in (1, 13, 100):
        assert torch.equal(exact_topk(anchors, candidates, 20, block=block)[0], expected)


def test_vectors_that_no_ranking_can_order() -> None:
    candidates = torch.randn(5, 4)
    candidates[3, 1] = float("nan")
    with pytest.raises(ValueError, match="candidates row 3 holds NaN"):
        exact_topk(torch.randn(2, 4), candidates, 3)


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    torch.manual_seed(0)
    anchors, candidates = torch.randint(-3, 4, (64, 8)).float(), torch.randint(-3, 4, (5000, 8)).float()
    expected = exact_topk(anchors, candidates, 100)[1]
    assert torch.equal(exact_topk(anchors.cuda(), candidates.cuda(), 100)[1].cpu(), expected)
