"""What PairMaker adds to pairs: shares, expected draws, blocked ids by every mask, hard negatives, grades."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import PRODUCTS, QUERIES, TASKS, write_tiny
from torchrec_mt.data.collate import TaskPairs
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.links import Links, write_links
from torchrec_mt.data.mined import MinedTask, write_mined
from torchrec_mt.data.negatives import (
    InBatch,
    Mined,
    Named,
    NegativesConfig,
    NegativeSource,
    Popularity,
    Sampler,
    Uniform,
)
from torchrec_mt.data.task_pairs import PairMaker, PairRules, merged
from torchrec_mt.errors import UserError

SHARED = (InBatch(), Uniform(count=5), Popularity(count=3))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


def sampler_of(dataset: PreparedDataset, config: NegativesConfig) -> Sampler:
    counts = {name: dataset.frequencies(name) for name in TASKS}
    return Sampler({name: config.of(name) for name in TASKS}, counts, PRODUCTS)


def make(
    dataset: PreparedDataset,
    name: str = "find",
    sources: tuple[NegativeSource, ...] = SHARED,
    rules: PairRules | None = None,
    grade: float = 1.0,
    seed: int = 0,
    anchors: np.ndarray | None = None,
    **config: Any,
) -> TaskPairs:
    """The first 40 training pairs (or given anchors, each with product 0) with all that belongs to them."""
    negatives = NegativesConfig(sources=sources, **config)
    sampler, pairs = sampler_of(dataset, negatives), dataset.pairs(name, "train")
    anchor_B = pairs["anchor"][:40] if anchors is None else anchors
    candidate_B = pairs["candidate"][:40] if anchors is None else np.zeros(len(anchors), np.int64)
    rng = np.random.default_rng(seed)
    weight_B = np.linspace(0.5, 2, len(anchor_B)).astype(np.float32)
    grade_B = np.full(len(anchor_B), grade, np.float32)
    maker = PairMaker(dataset, name, negatives, rules or PairRules(), sampler)
    return maker(anchor_B, candidate_B, weight_B, grade_B, sampler.draw(rng), rng)


def entries(found: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(zip(found[0].tolist(), found[1].tolist(), strict=True))


def of(links: Links, row: int) -> set[int]:
    """One entity's links, read by hand."""
    return set(links.values[links.offsets[row] : links.offsets[row + 1]].tolist())


def write_lists(folder: Path, lists: dict[int, list[int]], anchors: int) -> None:
    lengths = np.array([len(lists.get(row, [])) for row in range(anchors)])
    flat = np.array(list(itertools.chain(*(sorted(lists.get(row, [])) for row in range(anchors)))), np.int64)
    write_links(folder, "candidates", lengths, PRODUCTS, [flat])


# Lists to check by hand: none, one, as many as are chosen, more.
NAMED = {1: [7], 2: [5, 20], 3: [3, 9, 12, 30, 44]}
MINED = {1: [7, 8], 3: [9, 30, 51], 4: [59]}


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The tiny dataset with the lists above, and MINED beside it in `mined`."""
    path = tmp_path_factory.mktemp("listed")
    dataset = write_tiny(path / "data")
    write_lists(dataset.negatives_path("find"), NAMED, QUERIES)
    lengths = np.array([len(MINED.get(row, [])) for row in range(QUERIES)])
    flat = np.array(list(itertools.chain(*(MINED[row] for row in sorted(MINED)))))
    write_mined(path / "mined", dataset, {"find": MinedTask(lengths, flat)}, {})
    return dataset


def mined_beside(dataset: PreparedDataset, count: int) -> Mined:
    return Mined(path=str(dataset.path.parent / "mined"), count=count)


@pytest.mark.parametrize("grades", ["none", "linear"])
@pytest.mark.parametrize("mask", ["known", "own", "none"])
@pytest.mark.parametrize("name", list(TASKS))
def test_blocked_ids_against_a_slow_twin(dataset: PreparedDataset, name: str, mask: str, grades: str) -> None:
    pairs = make(dataset, name, rules=PairRules(grades=grades), mask=mask)
    wanted = set()
    for row, (anchor, candidate) in enumerate(zip(pairs.anchor_B.tolist(), pairs.candidate_B.tolist(), strict=True)):
        if mask != "none":
            wanted.add((row, candidate))
        if mask == "known" and grades == "none":
            wanted |= {(row, id_) for id_ in of(dataset.known_candidates(name), anchor)}
        if mask == "known" and TASKS[name][0] == "product":
            wanted.add((row, anchor))
    found = entries(pairs.blocked)
    assert sorted(found) == sorted(wanted), "each entry once"
    assert (np.diff(pairs.blocked[0]) >= 0).all(), "by owner"
    assert pairs.private_BH is pairs.private_log_count_BH is pairs.anchor_share_B is pairs.known_anchors is None


@pytest.mark.parametrize("mask", ["known", "own", "none"])
@pytest.mark.parametrize("name", list(TASKS))
def test_the_way_back_against_a_slow_twin(dataset: PreparedDataset, name: str, mask: str) -> None:
    pairs = make(dataset, name, rules=PairRules(symmetric=True), mask=mask)
    train = dataset.pairs(name, "train")
    wanted = set()
    for row, (anchor, candidate) in enumerate(zip(pairs.anchor_B.tolist(), pairs.candidate_B.tolist(), strict=True)):
        if mask != "none":
            wanted.add((row, anchor))
        if mask == "known":
            wanted |= {(row, int(other)) for other in train["anchor"][train["candidate"] == candidate]}
            wanted |= {(row, candidate)} if TASKS[name][0] == "product" else set()
    assert pairs.known_anchors is not None
    assert entries(pairs.known_anchors) == sorted(wanted)
    share = [np.mean(train["anchor"] == anchor) for anchor in pairs.anchor_B]
    np.testing.assert_allclose(pairs.anchor_share_B, share, rtol=1e-6)


def test_shares_and_expected_draws(dataset: PreparedDataset) -> None:
    tasks = {"find": SHARED, "alike": (Uniform(count=9),)}
    config = NegativesConfig(sources=(Popularity(count=2),), tasks=tasks)
    sampler, train = sampler_of(dataset, config), dataset.pairs("find", "train")
    drawn, rng = np.arange(100, 100 + sampler.size) % PRODUCTS, np.random.default_rng(0)
    ones = np.ones(30, np.float32)
    maker = PairMaker(dataset, "find", config, PairRules(), sampler)
    pairs = maker(train["anchor"][:30], train["candidate"][:30], ones, ones, drawn, rng)
    assert pairs.stretches == ((0, 5), (9, 12))
    for ids, share, expected in (
        (train["candidate"][:30], pairs.share_B, pairs.drawn_B),
        (drawn, pairs.share_M, pairs.drawn_M),
    ):
        np.testing.assert_allclose(share, [np.mean(train["candidate"] == id_) for id_ in ids], rtol=1e-6)
        np.testing.assert_allclose(expected, sampler.expected("find", ids))
        assert share.dtype == expected.dtype == np.float32


def test_grades_weigh_pairs(dataset: PreparedDataset) -> None:
    plain = make(dataset, grade=3.0).weight_B
    np.testing.assert_allclose(plain, np.linspace(0.5, 2, 40), rtol=1e-6)
    np.testing.assert_allclose(make(dataset, grade=3.0, rules=PairRules(grades="linear")).weight_B, 3 * plain)
    np.testing.assert_allclose(make(dataset, grade=3.0, rules=PairRules(grades="exponential")).weight_B, 7 * plain)
    assert (make(dataset, grade=0.0, rules=PairRules(grades="exponential")).weight_B == 0).all()


def test_chosen_members_of_lists(listed: PreparedDataset) -> None:
    anchors = np.array([0, 1, 2, 3, 3, 1])
    pairs = make(listed, sources=(Named(count=2),), anchors=anchors)
    assert pairs.private_BH is not None
    assert pairs.private_log_count_BH is not None
    assert pairs.private_BH.shape == pairs.private_log_count_BH.shape == (6, 2)
    assert pairs.private_log_count_BH.dtype == np.float32
    inf, two_of_five = np.inf, np.log(2 / 5)
    wanted = [[inf, inf], [0, inf], [0, 0], [two_of_five, two_of_five], [two_of_five, two_of_five], [0, inf]]
    np.testing.assert_allclose(pairs.private_log_count_BH, wanted, rtol=1e-6)
    for anchor, ids, counts in zip(anchors.tolist(), pairs.private_BH, pairs.private_log_count_BH, strict=True):
        chosen = ids[np.isfinite(counts)].tolist()
        assert len(chosen) == min(2, len(NAMED.get(anchor, [])))
        assert len(set(chosen)) == len(chosen), "none twice"
        assert set(chosen) <= set(NAMED.get(anchor, []))
    assert (pairs.private_BH >= 0).all(), "places without a member hold some row of the catalogue"
    assert (pairs.private_BH < PRODUCTS).all()


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7])
def test_every_member_is_chosen_with_the_stated_probability(listed: PreparedDataset, count: int) -> None:
    copies = 4000
    pairs = make(listed, sources=(Named(count=count),), anchors=np.full(copies, 3))
    assert pairs.private_BH is not None
    assert pairs.private_log_count_BH is not None
    there = np.isfinite(pairs.private_log_count_BH)
    found = np.bincount(pairs.private_BH[there], minlength=PRODUCTS)
    assert found.sum() == copies * min(count, 5)
    probability = min(count, 5) / 5
    np.testing.assert_allclose(np.exp(pairs.private_log_count_BH[there]), probability, rtol=1e-6)
    error = np.sqrt(copies * probability * (1 - probability))
    assert (abs(found[NAMED[3]] - copies * probability) <= 5 * error).all()
    ids_BH = np.sort(pairs.private_BH[:, : min(count, 5)], axis=1)
    assert (np.diff(ids_BH, axis=1) > 0).all(), "none twice"


def test_overlapping_lists_add_what_is_expected(listed: PreparedDataset) -> None:
    anchors = np.array([1, 3, 4, 0, 2])
    pairs = make(listed, sources=(Named(count=1), mined_beside(listed, 2)), anchors=anchors)
    assert pairs.private_BH is not None
    assert pairs.private_log_count_BH is not None
    assert pairs.private_BH.shape == (5, 3)
    for anchor, ids, log_counts in zip(anchors.tolist(), pairs.private_BH, pairs.private_log_count_BH, strict=True):
        named, mined = NAMED.get(anchor, []), MINED.get(anchor, [])
        present = np.isfinite(log_counts)
        assert present.tolist() == [len(named) > 0, len(mined) > 0, len(mined) > 1]
        for id_, log_count in zip(ids[present].tolist(), log_counts[present].tolist(), strict=True):
            by_hand = (id_ in named) * 1 / max(1, len(named)) + (id_ in mined) * min(2, len(mined)) / max(1, len(mined))
            assert log_count == pytest.approx(np.log(by_hand), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_weights_of_one_over_the_count_sum_to_the_distinct_members(listed: PreparedDataset, count: int) -> None:
    """What logQ is for: the mean of sum(1 / expected copies) is the number of distinct products in both lists."""
    copies = 4000
    pairs = make(
        listed, sources=(Named(count=count), mined_beside(listed, count)), anchors=np.full(copies, 3), seed=count
    )
    assert pairs.private_log_count_BH is not None
    total_B = np.exp(-pairs.private_log_count_BH.astype(np.float64)).sum(axis=1)
    distinct = len(set(NAMED[3]) | set(MINED[3]))
    assert abs(total_B.mean() - distinct) <= 5 * total_B.std() / np.sqrt(copies) + 1e-6


@pytest.mark.parametrize("mask", ["known", "own", "none"])
def test_lists_are_blocked_among_shared_columns(listed: PreparedDataset, mask: str) -> None:
    anchors = np.array([3, 0, 2, 3])
    sources = (InBatch(), Named(count=1), mined_beside(listed, 1))
    pairs = make(listed, sources=sources, anchors=anchors, mask=mask)
    found, own = entries(pairs.blocked), set(enumerate(pairs.candidate_B.tolist()))
    without = entries(make(listed, sources=(InBatch(),), anchors=anchors, mask=mask).blocked)
    lists = {
        (row, id_)
        for row, anchor in enumerate(anchors.tolist())
        for id_ in NAMED.get(anchor, []) + MINED.get(anchor, [])
    }
    assert found == ([] if mask == "none" else sorted(set(without) | lists | own)), "the whole lists, chosen or not"


def test_no_anchor_has_a_list(listed: PreparedDataset) -> None:
    pairs = make(listed, sources=(Named(count=3),), anchors=np.array([0, 10, 11]))
    assert pairs.private_BH is not None
    assert pairs.private_log_count_BH is not None
    assert np.isposinf(pairs.private_log_count_BH).all()
    assert pairs.private_BH.shape == (3, 3)
    assert ((pairs.private_BH >= 0) & (pairs.private_BH < PRODUCTS)).all()


def test_choices_repeat_by_the_generator(listed: PreparedDataset) -> None:
    first, again, other = (
        make(listed, sources=(Named(count=1),), anchors=np.full(50, 3), seed=seed).private_BH for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_a_source_that_the_data_does_not_have(dataset: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 'alike' has a source of kind 'named', but its data names no negatives"):
        make(dataset, "alike", sources=(Named(),))
    with pytest.raises(
        UserError, match=r"path = '.*nowhere', where no mined negatives are: run `torchrec-mt mine RUN`"
    ):
        make(dataset, sources=(Mined(path=str(tmp_path / "nowhere")),))
    write_mined(
        tmp_path / "mined", dataset, {"find": MinedTask(np.zeros(QUERIES, np.int64), np.zeros(0, np.int64))}, {}
    )
    with pytest.raises(UserError, match=r"has no negatives of task 'alike' \(it has: \['find'\]\)"):
        make(dataset, "alike", sources=(Mined(path=str(tmp_path / "mined")),))
    assert make(dataset, sources=(Mined(path=str(tmp_path / "mined")),)).private_BH is not None, "empty lists are lists"


def test_merged_by_hand() -> None:
    owner_L, id_L = merged([(np.array([0, 0, 2]), np.array([5, 9, 1])), (np.array([0, 1, 2]), np.array([9, 0, 7]))])
    assert entries((owner_L, id_L)) == [(0, 5), (0, 9), (1, 0), (2, 1), (2, 7)]
    assert owner_L.dtype == id_L.dtype == np.int64
    nothing = np.zeros(0, np.int64)
    assert entries(merged([(nothing, nothing)])) == []
