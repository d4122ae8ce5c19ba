"""Reader, collate and store on a tiny dataset: every pair once a pass, ranks apart, entities once a batch."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import PRODUCTS, tiny_schema, write_tiny
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator, uniform_hash
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import NegativesConfig, Uniform
from torchrec_mt.data.pair_stream import PairFile, PairStream, _stretches
from torchrec_mt.data.reader import Reader, ReaderConfig, prefetched
from torchrec_mt.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


def stream(dataset: PreparedDataset, lane: int, lanes: int, window: int = 4, taken: int = 0) -> PairStream:
    return PairStream(PairFile(dataset, "find", lanes), seed=[0, 0], lane=lane, window=window, taken=taken)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_pass_over_every_pair_once_in_every_pass(
    dataset: PreparedDataset, world_size: int, window: int
) -> None:
    expected = Counter(zip(*(dataset.pairs("find", "train")[c].tolist() for c in ("anchor", "candidate")), strict=True))
    streams = [stream(dataset, rank, world_size, window) for rank in range(world_size)]
    for _ in range(4):  # 300 pairs divide among 1, 2 and 3 ranks
        seen: Counter[tuple[int, int]] = Counter()
        for one in streams:
            anchor_B, candidate_B, _, _ = one.take(300 // world_size)
            seen.update(zip(anchor_B.tolist(), candidate_B.tolist(), strict=True))
        assert seen == expected


def test_what_does_not_divide_is_left_out_and_differs_by_pass(tmp_path: Path) -> None:
    uneven = write_tiny(tmp_path / "uneven", train_pairs=301)
    streams = [stream(uneven, rank, 4) for rank in range(4)]
    every = Counter(zip(*(uneven.pairs("find", "train")[c].tolist() for c in ("anchor", "candidate")), strict=True))
    left_out = []
    for _ in range(3):
        taken = [one.take(75) for one in streams]
        seen = Counter((int(a), int(c)) for part in taken for a, c in zip(part[0], part[1], strict=True))
        assert seen.total() == 300
        [(pair, count)] = (every - seen).items()
        assert count == 1
        left_out.append(pair)
    assert len(set(left_out)) > 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 100), st.integers(0, 100))
def test_stretches_are_the_rows_from_start_round_the_end(sizes: list[int], start: int, length: int) -> None:
    total = sum(sizes)
    start, length = start % total, length % (total + 1)
    places = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    found = [(at, row) for at, low, high in _stretches(np.cumsum(sizes), start, length) for row in range(low, high)]
    assert found == [places[(start + step) % total] for step in range(length)]


def test_a_second_pass_comes_in_another_order(dataset: PreparedDataset) -> None:
    pairs = stream(dataset, 0, 1)
    first, second = pairs.take(300), pairs.take(300)
    assert sorted(first[0]) == sorted(second[0])
    assert first[0].tolist() != second[0].tolist()


def test_fewer_pairs_than_ranks_is_an_error(tmp_path: Path) -> None:
    small = write_tiny(tmp_path / "small", train_pairs=3)
    with pytest.raises(UserError, match="'find' has 3 training pairs for 4 ranks"):
        stream(small, 0, 4)


def batches(dataset: PreparedDataset, count: int, *, prefetch: int = 0, seed: int = 0, rank: int = 0) -> list[Batch]:
    config, negatives = ReaderConfig(batch_size=30, prefetch=prefetch), NegativesConfig(sources=(Uniform(count=8),))
    reader = Reader(config, dataset, tiny_schema(), negatives=negatives, seed=seed, rank=rank, world_size=2)
    iterator = iter(reader)
    made = list(islice(iterator, count))
    iterator.close()  # type: ignore[attr-defined]
    return made


def equal(one: Batch, two: Batch) -> bool:
    return torch.equal(one.features.values(), two.features.values()) and all(
        torch.equal(one.pairs[name].anchor_id_B, two.pairs[name].anchor_id_B) for name in one.pairs
    )


def test_same_seed_same_batches_with_and_without_prefetch(dataset: PreparedDataset) -> None:
    plain, ahead = batches(dataset, 12), batches(dataset, 12, prefetch=3)
    assert all(equal(a, b) for a, b in zip(plain, ahead, strict=True))
    assert not equal(plain[0], batches(dataset, 1, seed=1)[0])
    assert not equal(plain[0], batches(dataset, 1, rank=1)[0])


def test_a_batch_holds_each_entity_once_and_refers_to_it(dataset: PreparedDataset) -> None:
    [batch] = batches(dataset, 1)
    product = batch.entities["product"]
    assert len(product.id_E.unique()) == len(product.id_E) == product.stop - product.start
    assert batch.features.stride() == sum(rows.stop - rows.start for rows in batch.entities.values())
    for name, pairs in batch.pairs.items():
        anchor = dataset.manifest.tasks[name].anchor
        assert torch.equal(batch.entities[anchor].id_E[pairs.anchor_B], pairs.anchor_id_B)
        assert torch.equal(product.id_E[pairs.candidate_B], pairs.candidate_id_B)
    negatives = batch.negatives["product"]
    assert torch.equal(product.id_E[negatives.row_M], negatives.id_M)
    assert batch.num_pairs == 30


def test_features_of_rows_are_those_of_the_entities_file(dataset: PreparedDataset) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(dataset.entity_path("product"))
    ids = np.array([7, 3, 59, 3])
    batch = Collator(dataset).entities("product", ids)
    bags = batch.features.to_dict()
    for row, product in enumerate(ids):
        for key, column in (("tokens/0", "title"), ("product_id/0", "product_id"), ("kind/0", "kind")):
            assert bags[key].to_dense()[row].tolist() == table[column][int(product)].as_py()
        weights = np.array(table["title__weight"][int(product)].as_py())
        start, stop = bags["tokens/0"].offsets()[row : row + 2].tolist()
        np.testing.assert_allclose(bags["tokens/0"].weights()[start:stop], weights / weights.sum(), rtol=1e-6)
    np.testing.assert_array_equal(batch.entities["product"].dense_ED[:, 0], table["price"].to_numpy()[ids])


def test_shares_and_expected_draws_of_every_column(dataset: PreparedDataset) -> None:
    [batch] = batches(dataset, 1)
    pairs, share_N = batch.pairs["find"], dataset.frequencies("find") / 300
    np.testing.assert_allclose(pairs.share_B, share_N[pairs.candidate_id_B], rtol=1e-6)
    np.testing.assert_allclose(pairs.share_M, share_N[batch.negatives["product"].id_M], rtol=1e-6)
    assert pairs.drawn_B.tolist() == pytest.approx([2 * 8 / PRODUCTS] * 10)
    assert pairs.drawn_M.tolist() == pytest.approx([2 * 8 / PRODUCTS] * 8)
    assert pairs.stretches == ((0, 8),)


def test_id_dropout_depends_on_step_and_entity_not_on_the_batch(dataset: PreparedDataset) -> None:
    collator = Collator(dataset, id_dropout={("product", "product_id"): 0.5})

    def dropped(ids: list[int], key: int) -> dict[int, bool]:
        batch = collator._batch({"product": np.array(ids)}, key, {}, {})
        values = batch.features["product_id/0"].values().tolist()
        return {product: value == 0 for product, value in zip(ids, values, strict=True)}

    alone, together = dropped([5], 1), dropped(list(range(60)), 1)
    assert alone[5] == together[5]
    assert 15 < sum(together.values()) < 45
    assert together != dropped(list(range(60)), 2)


def test_uniform_hash_is_uniform() -> None:
    values = uniform_hash(np.arange(100_000), 3)
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    assert abs(counts - 5000).max() < 5 * np.sqrt(5000)


def test_prefetch_raises_what_the_source_raised_and_ends_when_closed() -> None:
    def failing():
        yield 1
        raise ValueError("broken row group")

    iterator = prefetched(failing(), 2)  # type: ignore[arg-type]
    assert next(iterator) == 1
    with pytest.raises(ValueError, match="broken row group"):
        next(iterator)

    def endless():
        while True:
            yield 1

    iterator = prefetched(endless(), 2)  # type: ignore[arg-type]
    assert next(iterator) == 1
    iterator.close()
