"""Catalogues large enough for the scan, friendly and hostile, against float64 scores and a stable sort."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchrec_mt.retrieval import scan, topk
from torchrec_mt.retrieval.excluded import Excluded
from torchrec_mt.retrieval.scan import score_error
from torchrec_mt.retrieval.topk import Catalogue

N, D = 20_000, 24
PRECISIONS = ["float32", "bfloat16"]


def slow_topk(anchor_BD: Tensor, vector_ND: Tensor, k: int, banned_BN: np.ndarray | None = None) -> np.ndarray:
    """rows_BK by definition: float64 scores rounded to float32, everything sorted, equal scores by row."""
    score_BN = (anchor_BD.double() @ vector_ND.double().T).float().numpy()
    if banned_BN is not None:
        score_BN = np.where(banned_BN, -np.inf, score_BN)
    order_BN = np.argsort(-score_BN, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(score_BN, order_BN, axis=1) == -np.inf, -1, order_BN)


def random_vectors(count: int, seed: int, width: int = D) -> Tensor:
    return torch.nn.functional.normalize(
        torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def clustered() -> Tensor:
    """Forty directions with hardly any spread: bfloat16 cannot tell the members apart."""
    return torch.nn.functional.normalize(
        random_vectors(40, 3).repeat_interleave(N // 40, dim=0) + 1e-4 * random_vectors(N, 4), dim=1
    )


def with_featureless() -> Tensor:
    """A third of the catalogue knows nothing and has one and the same vector."""
    vectors = random_vectors(N, 5)
    vectors[::3] = vectors[0]
    return vectors


HOSTILE = {
    "random": lambda: random_vectors(N, 1),
    "clustered": clustered,
    "featureless": with_featureless,
    "all equal": lambda: random_vectors(1, 6).expand(N, D).contiguous(),
    "all zero": lambda: torch.zeros(N, D),
    "ascending": lambda: random_vectors(1, 7) * torch.linspace(0, 1, N)[:, None],  # the best come last
    "huge and tiny": lambda: random_vectors(N, 8) * torch.logspace(-18, 17, N)[:, None],
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", HOSTILE)
def test_every_catalogue_is_ranked_exactly(name: str, precision: str) -> None:
    vector_ND = HOSTILE[name]()
    anchor_BD = torch.cat([random_vectors(20, 9), vector_ND[:3], torch.zeros(1, D)])
    catalogue = Catalogue(vector_ND, precision=precision)
    for k in (1, 10, 100):
        scores_BK, rows_BK = catalogue.topk(anchor_BD, k)
        np.testing.assert_array_equal(rows_BK.numpy(), slow_topk(anchor_BD, vector_ND, k))
        exact_BK = (anchor_BD[:, None].double() * vector_ND[rows_BK].double()).sum(dim=2).float()
        assert torch.equal(scores_BK, exact_BK)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("anchors", [1, 30, 600])
def test_few_and_many_anchors(anchors: int, precision: str, copy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One anchor is asked at once, thirty too or (with little room) by a scan, 600 by a scan in two chunks."""
    vector_ND, anchor_BD = random_vectors(N, 1), random_vectors(anchors, 2)
    expected = slow_topk(anchor_BD, vector_ND, 40)
    catalogue = Catalogue(vector_ND, precision=precision, copy=copy)
    np.testing.assert_array_equal(catalogue.topk(anchor_BD, 40)[1].numpy(), expected)
    monkeypatch.setattr(topk, "_SCORES_AT_ONCE", 0)
    np.testing.assert_array_equal(catalogue.topk(anchor_BD, 40)[1].numpy(), expected)


@pytest.mark.parametrize("at_once", [0, 1 << 23])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_exclusions_and_filters(precision: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "_SCORES_AT_ONCE", at_once)
    vector_ND, anchor_BD, rng = random_vectors(N, 1), random_vectors(50, 2), np.random.default_rng(3)
    best = slow_topk(anchor_BD, vector_ND, 60)
    owner = np.repeat(np.arange(50), rng.integers(0, 40, 50))
    # The very best are left out, one of them twice, and some that would not have been ranked.
    row = np.where(rng.random(len(owner)) < 0.7, best[owner, rng.integers(0, 60, len(owner))], rng.integers(-1, N))
    owner, row = np.append(owner, owner[-1]), np.append(row, row[-1])
    banned_BN = np.zeros((50, N), bool)
    banned_BN[owner[row >= 0], row[row >= 0]] = True
    excluded = Excluded(torch.from_numpy(owner), torch.from_numpy(row))
    allowed_N = rng.random(N) < 0.6
    catalogue = Catalogue(vector_ND, precision=precision)
    for allowed in (np.ones(N, bool), allowed_N, np.arange(N) < 45, np.zeros(N, bool)):
        _, rows_BK = catalogue.topk(anchor_BD, 30, excluded=excluded, allowed_N=torch.from_numpy(allowed))
        expected = slow_topk(anchor_BD, vector_ND, 30, banned_BN | ~allowed)
        np.testing.assert_array_equal(rows_BK.numpy(), expected)


def test_an_unlucky_sample_costs_time_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank too high in the sample: the scan keeps too few and must notice."""
    asked: list[int] = []
    whole = Catalogue._score_all
    monkeypatch.setattr(scan, "sampled_rank", lambda candidates, sample, k: 1)
    monkeypatch.setattr(topk, "_SCORES_AT_ONCE", 0)
    monkeypatch.setattr(
        Catalogue,
        "_score_all",
        lambda self, anchor_QD, *rest: (asked.append(len(anchor_QD)), whole(self, anchor_QD, *rest))[1],
    )
    vector_ND, anchor_BD = random_vectors(N, 1), random_vectors(40, 2)
    rows_BK = Catalogue(vector_ND).topk(anchor_BD, 50)[1]
    np.testing.assert_array_equal(rows_BK.numpy(), slow_topk(anchor_BD, vector_ND, 50))
    assert sum(asked) > 20


def test_a_scan_proves_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a plain catalogue the slow way is for one anchor in thousands."""

    def never(self: Catalogue, anchor_QD: Tensor, *rest: object) -> Tensor:
        raise AssertionError(f"{len(anchor_QD)} anchors were scored whole")

    monkeypatch.setattr(Catalogue, "_score_all", never)
    for seed in range(3):
        Catalogue(random_vectors(N, seed)).topk(random_vectors(1000, 100 + seed), 100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_scores_stay_within_their_bound(dtype: torch.dtype, scale: float) -> None:
    """Also where every product rounds the same way: vectors between two numbers of the dtype."""
    between = torch.full((1, 64), 1 + torch.finfo(dtype).eps / 2 * 0.999)
    for vector_ND in (random_vectors(3000, 1, 64), between.expand(30, 64), random_vectors(3000, 2, 64) ** 5):
        anchor_BD = torch.cat([random_vectors(50, 3, 64), between]) * scale
        exact_BN = anchor_BD.double() @ vector_ND.double().T
        found_BN = (anchor_BD.to(dtype) @ vector_ND.to(dtype).T).double()
        longest = float(torch.linalg.vector_norm(vector_ND.double(), dim=1).max())
        assert ((found_BN - exact_BN).abs() <= score_error(anchor_BD, longest, dtype)[:, None]).all()


def test_a_memory_mapped_catalogue(tmp_path: Path) -> None:
    vector_ND, anchor_BD = random_vectors(N, 1), random_vectors(40, 2)
    np.save(tmp_path / "vectors.npy", vector_ND.numpy())
    mapped_ND = torch.from_numpy(np.load(tmp_path / "vectors.npy", mmap_mode="r+"))
    rows_BK = Catalogue(mapped_ND).topk(anchor_BD, 10)[1]
    np.testing.assert_array_equal(rows_BK.numpy(), slow_topk(anchor_BD, vector_ND, 10))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_no_number_is_named(bad: float) -> None:
    vector_ND = random_vectors(N, 1)
    vector_ND[17_001, 3] = bad
    with pytest.raises(ValueError, match="candidates row 17001"):
        Catalogue(vector_ND)
    with pytest.raises(ValueError, match="anchors row 1 "):
        Catalogue(random_vectors(N, 1)).topk(vector_ND[17_000:17_003], 5)


def test_ties_without_end_and_several_exclusions() -> None:
    """Nothing of any anchor is kept by the scan; exclusions with repeated owners meet its empty lists."""
    vector_ND = random_vectors(1, 6).expand(N, D).contiguous()
    owner_L = torch.arange(600).repeat_interleave(2)
    excluded = Excluded(owner_L, torch.arange(1200) % 7)
    _, rows_BK = Catalogue(vector_ND).topk(random_vectors(600, 2), 5, excluded=excluded)
    for rows_K, left_out in zip(rows_BK.tolist(), (torch.arange(1200) % 7).view(600, 2).tolist(), strict=True):
        assert rows_K == [row for row in range(7) if row not in left_out][:5]


@pytest.mark.parametrize("at_once", [0, 1 << 23])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("ours", "theirs"), [(3e19, 3e19), (1e20, 1e20), (1e-3, 3.3e38)])
def test_scores_beyond_the_range_of_the_scan(
    ours: float, theirs: float, precision: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topk, "_SCORES_AT_ONCE", at_once)
    vector_ND = random_vectors(N, 1, 4).clamp(-1, 1) * theirs
    anchor_BD = random_vectors(30, 2, 4) * ours
    rows_BK = Catalogue(vector_ND, precision=precision).topk(anchor_BD, 5)[1]
    np.testing.assert_array_equal(rows_BK.numpy(), slow_topk(anchor_BD, vector_ND, 5))


def test_one_long_list_of_exclusions_slows_its_own_anchor_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = Catalogue._score_all

    def noted(self: Catalogue, anchor_QD: Tensor, *rest: Any) -> Tensor:
        asked.append(len(anchor_QD))
        return whole(self, anchor_QD, *rest)

    monkeypatch.setattr(Catalogue, "_score_all", noted)
    vector_ND, anchor_BD = random_vectors(N, 1), random_vectors(40, 2)
    excluded = Excluded(torch.full((5000,), 3), torch.arange(5000) * 4)
    banned_BN = np.zeros((40, N), bool)
    banned_BN[3, np.arange(5000) * 4] = True
    rows_BK = Catalogue(vector_ND).topk(anchor_BD, 50, excluded=excluded)[1]
    np.testing.assert_array_equal(rows_BK.numpy(), slow_topk(anchor_BD, vector_ND, 50, banned_BN))
    assert asked == [1]


def test_questions_that_make_no_sense() -> None:
    catalogue, anchor_BD = Catalogue(random_vectors(N, 1)), random_vectors(4, 2)
    for allowed_N in (torch.tensor([0, 5, 7]), torch.ones(N - 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match="allowed_N must hold a bool for each of the 20000"):
            catalogue.topk(anchor_BD, 5, allowed_N=allowed_N)
    for owners in ([1, 0], [0, 4], [-1, 0]):
        with pytest.raises(ValueError, match="owner_L must"):
            catalogue.topk(anchor_BD, 5, excluded=Excluded(torch.tensor(owners), torch.tensor([1, 2])))
