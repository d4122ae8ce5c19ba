"""A reader's position: whoever stands there goes on bit by bit as the uninterrupted reader does, and reads no more."""

import json
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.batches import equal
from tests.parity.signals import mine_at_random
from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.batch import Batch
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.mixing import FixedMixing, Mixing, ProportionalMixing, TemperatureMixing
from torchrec_mt.data.negatives import InBatch, Mined, Named, NegativesConfig, Popularity, Uniform
from torchrec_mt.data.pair_stream import PairFile, PairStream
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.errors import UserError
from torchrec_mt.schema import Schema


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The tiny one, with mined negatives beside it in `mined`."""
    path = tmp_path_factory.mktemp("tiny")
    dataset = write_tiny(path / "data")
    mine_at_random(dataset, path / "mined")
    return dataset


def reader_of(
    dataset: PreparedDataset,
    *,
    seed: int = 0,
    lanes: int = 2,
    draws: int = 5,
    schema: Schema | None = None,
    **config: Any,
) -> Reader:
    """Rank 1 of 2: of 300 pairs of a task 150 a pass, which end in step 14."""
    sources = (InBatch(), Uniform(count=draws), Popularity(count=3))
    mined = Mined(path=str(dataset.path.parent / "mined"), count=2)
    return Reader(
        ReaderConfig(**{"batch_size": 33, "shuffle_row_groups": 2, "prefetch": 0} | config),
        dataset,
        schema or tiny_schema(id_dropout=0.3),
        negatives=NegativesConfig(sources=sources, tasks={"find": (*sources, mined, Named(count=1))}),
        seed=seed,
        rank=1,
        world_size=2,
        lanes=lanes,
    )


def first(reader: Reader, count: int) -> list[Batch]:
    with closing(iter(reader)) as batches:
        return list(islice(batches, count))


MIXINGS: dict[str, Mixing] = {
    "proportional": ProportionalMixing(),
    "temperature": TemperatureMixing(temperature=3),
    "fixed": FixedMixing(shares={"find": 6, "alike": 1, "goes_with": 2}),
}


@pytest.mark.parametrize("mixing", list(MIXINGS))
@pytest.mark.parametrize("prefetch", [0, 2])
def test_going_on_from_a_position_changes_no_bit(dataset: PreparedDataset, prefetch: int, mixing: str) -> None:
    """At the start, within the first pass, just before and after its end, within the third."""
    every = first(reader_of(dataset, mixing=MIXINGS[mixing]), 35)
    for step in (0, 1, 5, 13, 14, 30):
        before = reader_of(dataset, mixing=MIXINGS[mixing], prefetch=prefetch)
        assert all(equal(a, b) for a, b in zip(first(before, step), every, strict=False))
        state = json.loads(json.dumps(before.state_dict()))
        assert state["step"] == step, "batches made ahead do not count"
        after = reader_of(dataset, mixing=MIXINGS[mixing], prefetch=prefetch)
        after.load_state_dict(state)
        assert after.state_dict() == state
        assert all(equal(a, b) for a, b in zip(first(after, 5), every[step:], strict=False))


def test_a_reader_iterated_again_goes_on(dataset: PreparedDataset) -> None:
    every, reader = first(reader_of(dataset), 6), reader_of(dataset, prefetch=2)
    again = [*first(reader, 2), *first(reader, 1), *first(reader, 3)]
    assert all(equal(a, b) for a, b in zip(again, every, strict=True))


def test_a_state_is_small_and_plain(dataset: PreparedDataset) -> None:
    state = reader_of(dataset).state_dict()
    assert all(isinstance(value, int | str) for value in state.values())
    assert len(json.dumps(state)) < 500


@given(st.integers(0, 1000), st.integers(1, 120), st.integers(1, 4), st.integers(1, 12))
def test_a_stream_begun_later_is_the_rest_of_it(
    dataset: PreparedDataset, taken: int, count: int, lanes: int, window: int
) -> None:
    file = PairFile(dataset, "find", lanes)
    whole = PairStream(file, seed=[3, 0], lane=lanes - 1, window=window)
    late = PairStream(file, seed=[3, 0], lane=lanes - 1, window=window, taken=taken)
    if taken:
        whole.take(taken)
    for wanted, found in zip(whole.take(count), late.take(count), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_what_was_passed_is_not_read_again(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    unspied = PairFile.read

    def spy(file: PairFile, group: int, low: int, high: int) -> np.ndarray:
        read.append(group)
        return unspied(file, group, low, high)

    monkeypatch.setattr(PairFile, "read", spy)
    PairStream(PairFile(dataset, "find", 1), seed=[0, 0], lane=0, window=2, taken=300 * 1_000_000 + 200).take(1)
    assert len(read) == 2, "one window"


CHANGED: dict[str, tuple[Callable[[PreparedDataset, Path], Reader], str]] = {
    "seed": (lambda data, path: reader_of(data, seed=1), "seed = 0 there, 1 here"),
    "lanes": (lambda data, path: reader_of(data, lanes=4), "lanes = 2 there, 4 here"),
    "batch size": (lambda data, path: reader_of(data, batch_size=34), "batch_size/find = 11 there, 12 here"),
    "window": (lambda data, path: reader_of(data, shuffle_row_groups=3), "shuffle_row_groups = 2 there, 3 here"),
    "draws": (lambda data, path: reader_of(data, draws=6), "draws/product = 14 there, 15 here"),
    "tasks": (
        lambda data, path: reader_of(
            data,
            batch_size=22,
            schema=replace(tiny_schema(), tasks={n: t for n, t in tiny_schema().tasks.items() if n != "alike"}),
        ),
        "batch_size/alike = 11 there, 'nothing' here",
    ),
    "pairs": (
        lambda data, path: reader_of(rewritten(path, train_pairs=290)),
        r"pairs/find = '300 pairs in 10 .*' there, '290 pairs in 10 .*' here",
    ),
    "row groups": (
        lambda data, path: reader_of(rewritten(path, row_group=33)),
        r"pairs/find = '300 pairs in 10 .*' there, '300 pairs in 10 .*' here",
    ),
}


def rewritten(path: Path, **how: int) -> PreparedDataset:
    dataset = write_tiny(path / "data", **how)
    mine_at_random(dataset, path / "mined")
    return dataset


@pytest.mark.parametrize("what", list(CHANGED))
def test_a_position_among_other_batches_is_refused(dataset: PreparedDataset, tmp_path: Path, what: str) -> None:
    make, message = CHANGED[what]
    with pytest.raises(UserError, match=f"saved position is one among other batches.*{message}"):
        make(dataset, tmp_path).load_state_dict(reader_of(dataset).state_dict())


@pytest.mark.parametrize("step", [-1, 1.5, "3", True, None])
def test_a_position_that_is_no_step_is_refused(dataset: PreparedDataset, step: Any) -> None:
    reader = reader_of(dataset)
    with pytest.raises(UserError, match=r"step = .*: must be a whole number from 0 on"):
        reader.load_state_dict(reader.state_dict() | {"step": step})


def test_prefetching_raises_what_reading_raised_and_ends_when_closed(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(dataset, prefetch=2)
    batches = iter(reader)
    next(batches)
    assert any(thread.name.startswith("reader") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("reader") for thread in threading.enumerate())

    def broken(file: PairFile, group: int, low: int, high: int) -> np.ndarray:
        raise UserError("broken row group")

    monkeypatch.setattr(PairFile, "read", broken)
    with pytest.raises(UserError, match="broken row group"):
        first(reader, 30)
    assert not any(thread.name.startswith("reader") for thread in threading.enumerate())
    assert reader.state_dict()["step"] == 1
