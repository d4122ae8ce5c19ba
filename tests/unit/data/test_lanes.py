"""Lanes: on any number of ranks the same pairs and draws come in the same order; what a rank says of them fits."""

from collections.abc import Callable
from dataclasses import fields
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.parity.signals import mine_at_random
from tests.tiny import TASKS, tiny_schema, write_tiny
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import TaskPairs
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.lanes import Lanes, cut, joined
from torchrec_mt.data.negatives import InBatch, Mined, Named, NegativesConfig, Popularity, Uniform
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.data.task_pairs import PairRules
from torchrec_mt.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The tiny one, with mined negatives beside it in `mined`."""
    path = tmp_path_factory.mktemp("tiny")
    dataset = write_tiny(path / "data")
    mine_at_random(dataset, path / "mined")
    return dataset


def reader_of(dataset: PreparedDataset, rank: int, world_size: int, lanes: int | None, batch_size: int = 33) -> Reader:
    sources = (InBatch(), Uniform(count=7), Popularity(count=4))
    mined = Mined(path=str(dataset.path.parent / "mined"), count=2)
    return Reader(
        ReaderConfig(batch_size=batch_size, shuffle_row_groups=2, prefetch=0),
        dataset,
        tiny_schema(id_dropout=0.3),
        negatives=NegativesConfig(sources=sources, tasks={"find": (*sources, mined, Named(count=1))}),
        rules={"alike": PairRules(symmetric=True)},
        seed=0,
        rank=rank,
        world_size=world_size,
        lanes=lanes,
    )


def steps_of(dataset: PreparedDataset, world_size: int, lanes: int | None, steps: int = 10) -> list[list[Batch]]:
    """Batches of all ranks by step; lanes of 4 pass on in step 7."""
    ranks = [islice(reader_of(dataset, rank, world_size, lanes), steps) for rank in range(world_size)]
    return [list(batches) for batches in zip(*ranks, strict=True)]


def content(ranks: list[Batch]) -> dict[str, list[Any]]:
    """What the ranks' batches say together, in the order of ranks, told by catalogue rows."""
    found: dict[str, list[Any]] = {}

    def add(key: str, values: Tensor) -> None:
        found.setdefault(key, []).extend(values.tolist())

    firsts = dict.fromkeys(TASKS, 0)
    for batch in ranks:
        add("draws", batch.negatives["product"].id_M)
        for name, pairs in batch.pairs.items():
            for key in ("anchor_id_B", "candidate_id_B", "weight_B", "share_B", "drawn_B", "share_M", "drawn_M"):
                add(f"{name}/{key}", getattr(pairs, key))
            for key, entries in [
                ("blocked", pairs.blocked),
                *([("known", pairs.backward.known)] if pairs.backward else []),
            ]:
                add(f"{name}/{key}/owner", entries.owner_L + firsts[name])
                add(f"{name}/{key}/id", entries.id_L)
            if pairs.private:
                add(f"{name}/private", batch.entities["product"].id_E[pairs.private.row_BH])
                add(f"{name}/private/count", pairs.private.log_count_BH)
            if pairs.backward:
                add(f"{name}/anchor_share", pairs.backward.share_B)
            firsts[name] += len(pairs.weight_B)
    return found


def id_lookups(ranks: list[Batch]) -> dict[int, int]:
    """Row of the id table that each product of a step is looked up in: its own, or the one of ids that dropped out."""
    rows: dict[int, int] = {}
    for batch in ranks:
        product, query = batch.entities["product"], batch.entities["query"]
        values = batch.features["product_id/0"].values().tolist()
        assert query.stop - query.start + len(values) == batch.features.stride(), "one id a product"
        for id_, value in zip(product.id_E.tolist(), values, strict=True):
            assert rows.setdefault(id_, value) == value, "the same on every rank"
    return rows


@pytest.mark.parametrize(
    ("lanes", "world_size"), [(4, 1), (4, 2), (4, 4), (1, 2), (2, 4), (1, 3), (2, 1)], ids=lambda number: str(number)
)
def test_ranks_together_hold_the_same_whatever_their_number(
    dataset: PreparedDataset, lanes: int, world_size: int
) -> None:
    apart, found = steps_of(dataset, lanes, None), steps_of(dataset, world_size, lanes)
    for step, (one, other) in enumerate(zip(apart, found, strict=True)):
        assert content(other) == content(one), f"step {step}"
        lookups = id_lookups(other)
        assert {id_: lookups[id_] for id_ in id_lookups(one)} == id_lookups(one)
        assert 0 in lookups.values()


@pytest.mark.parametrize(("lanes", "world_size"), [(4, 2), (2, 4), (1, 3)])
def test_every_rank_says_what_all_hold(dataset: PreparedDataset, lanes: int, world_size: int) -> None:
    [ranks] = steps_of(dataset, world_size, lanes, steps=1)
    for rank, batch in enumerate(ranks):
        draws = batch.negatives["product"]
        assert draws.lanes == lanes
        assert draws.counts == tuple(len(other.negatives["product"].id_M) for other in ranks)
        assert max(draws.counts) == reader_of(dataset, rank, world_size, lanes).draws_per_step
        for name, pairs in batch.pairs.items():
            assert pairs.counts == tuple(len(other.pairs[name].weight_B) for other in ranks)
            assert pairs.stretches == ranks[0].pairs[name].stretches
        for rows in batch.entities.values():
            assert len(rows.id_E.unique()) == len(rows.id_E), "lanes are collated once"
    assert (
        reader_of(dataset, 0, world_size, lanes).steps_per_epoch == reader_of(dataset, 0, lanes, None).steps_per_epoch
    )


@given(st.integers(1, 6), st.integers(1, 6), st.booleans(), st.integers(0, 20))
def test_parts_of_ranks_are_all_lanes_side_by_side(few: int, times: int, shared: bool, size: int) -> None:
    lanes, world_size = (few, few * times) if shared else (few * times, few)
    held: list[tuple[int, int]] = []
    for rank in range(world_size):
        layout = Lanes(lanes, rank, world_size)
        made = [(lane, row) for lane in layout.mine for row in range(size)]
        part = made[layout.part(size)]
        assert len(part) == layout.counts(size)[rank]
        held += part
    assert held == [(lane, row) for lane in range(lanes) for row in range(size)]
    assert max(layout.counts(size)) - min(layout.counts(size)) <= (1 if shared else 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: reader_of(data, 0, 3, 4), r"4 lanes .* by 3 ranks: take 1, 2, 4, or a multiple of 4"),
        (lambda data: reader_of(data, 0, 4, 6), r"6 lanes .* by 4 ranks: take 1, 2, 3, 6, or a multiple of 6"),
        (
            lambda data: reader_of(data, 0, 8, 2, batch_size=8),
            r"'goes_with' has 2 pair\(s\) of a lane's batch, too few for the 4 ranks .* take at most 4 ranks",
        ),
        (lambda data: reader_of(data, 0, 1, 301), "batch_size = 33 on 301 rank.s. is more than the 900 training pairs"),
    ],
)
def test_numbers_of_ranks_that_do_not_fit(
    dataset: PreparedDataset, make: Callable[[PreparedDataset], Reader], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(dataset)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_cut_and_joined_undo_each_other(sizes: list[int], data: st.DataObject) -> None:
    rng, draws = np.random.default_rng(sum(sizes)), 3 * len(sizes)
    owners = np.sort(rng.integers(0, sum(sizes), 9))
    whole = TaskPairs(
        **{name: rng.random(sum(sizes)) for name in ("anchor_B", "candidate_B", "weight_B", "share_B", "drawn_B")},
        **{name: rng.random(draws) for name in ("share_M", "drawn_M")},
        stretches=((0, 1), (2, 3)),
        blocked=(owners, rng.integers(0, 9, 9)),
        private_BH=rng.random((sum(sizes), 2)),
        private_log_count_BH=rng.random((sum(sizes), 2)) if data.draw(st.booleans()) else None,
    )
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [cut(whole, slice(*ends[at : at + 2]), slice(3 * at, 3 * at + 3)) for at in range(len(sizes))]
    assert [len(part.anchor_B) for part in parts] == sizes
    back = joined(parts)
    for name in (field.name for field in fields(TaskPairs)):
        np.testing.assert_equal(getattr(back, name), getattr(whole, name))
