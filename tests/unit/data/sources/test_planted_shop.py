"""The planted shop: its pairs are drawn as its preferences say, which agree as asked; bytes stay; what is refused."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from torchrec_mt.config import load_config
from torchrec_mt.data.sources.planted_shop import (
    PARTS,
    TASKS,
    PlantedShop,
    directions,
    trained_products,
    write_planted_shop,
)
from torchrec_mt.errors import UserError
from torchrec_mt.prepare import prepare_dataset

TINY = PlantedShop(kind="planted_shop", seed=3, products=300, factors=4, pairs=6_000, judged=500)
TABLES = ("products", *TASKS, *(f"truth_{task}" for task in TASKS))
LEVELS = (-1.0, -0.6, 0.0, 0.6, 1.0)


def read(folder: Path, name: str) -> pd.DataFrame:
    return pq.read_table(folder / f"{name}.parquet").to_pandas()


def written(folder: Path, shop: PlantedShop, part: int | None = None) -> dict[str, np.ndarray]:
    """Numbers of anchor and candidate of every pair, pair_P2, by task."""
    write_planted_shop(shop, folder)
    found = {}
    for task in TASKS:
        table = read(folder, task)
        if part is not None:
            table = table[table.part == part]
        found[task] = table[["anchor_id", "candidate_id"]].apply(lambda ids: ids.str[1:].astype(int)).to_numpy()
    return found


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest() for name in TABLES}


def preferences(shop: PlantedShop, task: str) -> np.ndarray:
    """preference_NN, pair by pair."""
    anchor_NF, candidate_NF = directions(shop)[task]
    return np.array([[float(a_F @ c_F) for c_F in candidate_NF] for a_F in anchor_NF])


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_planted_shop(TINY, tmp_path / name)
    write_planted_shop(replace(TINY, seed=4), tmp_path / "other")
    ours = digests(tmp_path / "one")
    assert ours == digests(tmp_path / "two")
    others = digests(tmp_path / "other")
    assert all(ours[name] != others[name] for name in TABLES if name != "products")


def test_agreement_changes_the_complements_alone(tmp_path: Path) -> None:
    found = {}
    for level in LEVELS:
        write_planted_shop(replace(TINY, agreement=level), tmp_path / str(level))
        found[level] = digests(tmp_path / str(level))
    assert len({one["similar"] for one in found.values()}) == 1
    assert len({one["complement"] for one in found.values()}) == len(LEVELS)


@pytest.mark.parametrize("level", LEVELS)
def test_preferences_correlate_as_the_agreement_says(level: float) -> None:
    shop = replace(TINY, products=600, agreement=level)
    similar_NN, complement_NN = (preferences(shop, task) for task in TASKS)
    apart_NN = ~np.eye(600, dtype=bool)
    found = np.corrcoef(similar_NN[apart_NN], complement_NN[apart_NN])[0, 1]
    assert found == pytest.approx(level, abs=0.02)
    assert complement_NN[apart_NN].std() == pytest.approx(similar_NN[apart_NN].std(), rel=0.02)
    assert similar_NN[apart_NN].std() == pytest.approx(TINY.factors**-0.5, rel=0.02)


@pytest.mark.parametrize("task", TASKS)
def test_pairs_are_drawn_by_the_exponential_of_preferences(tmp_path: Path, task: str) -> None:
    shop = replace(TINY, products=100, agreement=-0.6, sharpness=3.0, pairs=400_000)
    pair_P2 = written(tmp_path, shop, part=0)[task]
    likely_NN = np.exp(shop.sharpness * preferences(shop, task))
    np.fill_diagonal(likely_NN, 0)
    likely_NN /= likely_NN.sum(axis=1, keepdims=True)
    counts_NN = np.zeros((100, 100))
    np.add.at(counts_NN, (pair_P2[:, 0], pair_P2[:, 1]), 1)
    assert counts_NN.sum() == shop.pairs
    assert not counts_NN.diagonal().any(), "no product is its own candidate"
    expected_NN = likely_NN * shop.pairs / 100
    apart_NN = expected_NN > 5
    score_P = (counts_NN - expected_NN)[apart_NN] / np.sqrt(expected_NN[apart_NN])
    assert len(score_P) > 5_000
    assert score_P.std() == pytest.approx(1, abs=0.05)
    assert abs(score_P).max() < 6


def test_what_one_task_brings_together_the_other_keeps_apart_or_not(tmp_path: Path) -> None:
    """The mean z_a z_c of complementary pairs over that of similar ones rises with the agreement."""
    z_NF, _ = directions(TINY)["similar"]
    found = []
    for level in LEVELS:
        pairs = written(tmp_path / str(level), replace(TINY, agreement=level))
        like = {
            task: float(np.mean(np.sum(z_NF[pair_P2[:, 0]] * z_NF[pair_P2[:, 1]], axis=1)))
            for task, pair_P2 in pairs.items()
        }
        assert like["similar"] > 0.5
        found.append(like["complement"] / like["similar"])
    assert found == sorted(found)
    assert found[2] == pytest.approx(0, abs=0.05)
    assert found[0] == pytest.approx(-1, abs=0.05)
    assert found[4] == pytest.approx(1, abs=0.02)


def test_no_product_is_popular(tmp_path: Path) -> None:
    for pair_P2 in written(tmp_path, replace(TINY, pairs=60_000), part=0).values():
        counts_N = np.bincount(pair_P2[:, 1], minlength=300)
        assert counts_N.min() > 0.4 * counts_N.mean()
        assert counts_N.max() < 2 * counts_N.mean()


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_training_pairs_hold_the_products_of_their_task(tmp_path: Path, common: float) -> None:
    shop = replace(TINY, common=common)
    allowed = trained_products(shop)
    both_N = allowed["similar"] & allowed["complement"]
    assert both_N.sum() == common * 300
    assert (allowed["similar"] | allowed["complement"]).all()
    assert [allowed[task].sum() for task in TASKS] == [150 * (1 + common)] * 2
    for part in range(3):
        for task, pair_P2 in written(tmp_path, shop, part=part).items():
            assert len(pair_P2) == (shop.pairs if part == 0 else shop.judged)
            assert allowed[task][pair_P2].all() == (part == 0 or common == 1)
            if part == 0:
                assert np.isin(np.flatnonzero(allowed[task]), pair_P2).all(), "all of them occur"


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_ranks_by_preference(tmp_path: Path, task: str) -> None:
    shop = replace(TINY, agreement=-0.6)
    write_planted_shop(shop, tmp_path)
    truth, preference_NN = read(tmp_path, f"truth_{task}"), preferences(shop, task)
    np.fill_diagonal(preference_NN, -np.inf)
    number = truth.candidate_id.str[1:].astype(int).to_numpy().reshape(300, 200)
    assert (truth.anchor_id.to_numpy().reshape(300, 200) == read(tmp_path, "products").to_numpy()).all()
    wanted_NK = np.sort(preference_NN, axis=1)[:, ::-1][:, :200]
    np.testing.assert_allclose(np.take_along_axis(preference_NN, number, axis=1), wanted_NK, atol=1e-12)
    np.testing.assert_allclose(truth.score.to_numpy().reshape(300, 200), wanted_NK, atol=1e-12)
    few = replace(TINY, products=100)
    write_planted_shop(few, tmp_path / "few")
    assert len(read(tmp_path / "few", f"truth_{task}")) == 100 * 99


def test_without_sharpness_every_candidate_is_as_likely(tmp_path: Path) -> None:
    for task, pair_P2 in written(tmp_path, replace(TINY, sharpness=0.0, pairs=50_000)).items():
        anchor_NF, candidate_NF = directions(TINY)[task]
        liked_P = np.sum(anchor_NF[pair_P2[:, 0]] * candidate_NF[pair_P2[:, 1]], axis=1)
        assert abs(liked_P.mean()) < 0.02


def test_prepared_by_its_own_parts(tmp_path: Path) -> None:
    sizes = [f"dataset.source.{key}={value}" for key, value in (("products", 200), ("pairs", 900), ("judged", 150))]
    config = load_config(["launch/planted.toml"], [f"dataset.path={tmp_path / 'planted'}", *sizes])
    manifest = prepare_dataset(config).dataset.manifest
    assert manifest.entities["product"].count == 200
    for task in TASKS:
        found = [float(prepare_dataset(config).dataset.pairs(task, part)["count"].sum()) for part in PARTS]
        assert found == [900, 150, 150]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("seed", -1, "at least 0"),
        ("products", 3, "at least 4"),
        ("products", 50_001, "at most 50,000"),
        ("factors", 0, "at least 1"),
        ("agreement", -1.01, "at least -1 and at most 1"),
        ("agreement", 1.5, "at least -1 and at most 1"),
        ("sharpness", -1.0, "at least 0"),
        ("pairs", 0, "at least 1"),
        ("judged", 0, "at least 1"),
        ("common", 1.1, "at least 0 and at most 1"),
    ],
)
def test_settings_that_make_no_shop(key: str, value: float, allowed: str) -> None:
    with pytest.raises(UserError, match=rf"dataset\.source\.{key} = {value}.*{allowed}"):
        load_config(["launch/planted.toml"], [f"dataset.source.{key}={value}"])


def test_keys_that_it_does_not_have() -> None:
    with pytest.raises(UserError, match=r"unknown key 'dataset\.source\.strength'"):
        load_config(["launch/planted.toml"], ["dataset.source.strength=1.0"])
