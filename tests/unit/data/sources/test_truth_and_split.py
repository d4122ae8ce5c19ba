"""The truth of the synthetic shop is of its own test period: any other split is refused before anything is written."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.shop import debug_config
from torchrec_mt.config import RunConfig, load_config
from torchrec_mt.data.sources import check_truth
from torchrec_mt.errors import UserError
from torchrec_mt.prepare import prepare_dataset
from torchrec_mt.schema import GroupSplit

FILES = ["launch/demo.toml", "launch/debug.toml"]


def check(config: RunConfig) -> None:
    check_truth(config.dataset.source, config.dataset)


@pytest.mark.parametrize("files", [FILES[:1], FILES])
def test_the_shipped_shops_are_cut_where_their_test_period_begins(files: list[str]) -> None:
    config = load_config(files)
    check(config)
    assert config.dataset.split.test_from == config.dataset.source.test_from.date().isoformat()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "override",
    [
        "dataset.source.test_share=0.2",
        "dataset.source.days=30",
        'dataset.split.test_from="2025-03-24"',
        'dataset.split={kind="time",test_from=7.0}',
        "dataset.split.test_from=soon",
    ],
)
def test_another_split_is_refused(override: str) -> None:
    config = load_config(FILES, [override])
    with pytest.raises(UserError, match=r"dataset\.split\.test_from: .* test_from = '2025-\d\d-\d\dT00:00:00', or"):
        check(config)


def test_other_kinds_of_split_are_refused_unless_no_task_has_a_truth() -> None:
    config = load_config(FILES)
    grouped = replace(config.dataset, split=GroupSplit(kind="group", column=("session_id",)))
    with pytest.raises(UserError, match=r"dataset\.split\.test_from: not given, but the truth"):
        check_truth(grouped.source, grouped)
    plain = {name: replace(task, truth=None) for name, task in grouped.tasks.items()}
    check_truth(grouped.source, replace(grouped, tasks=plain))


def test_new_products_stand_in_the_test_alone(tmp_path: Path) -> None:
    dataset = prepare_dataset(debug_config(tmp_path, "dataset.source.seed=4")).dataset
    cut = dataset.manifest.split["test_from"]
    assert cut == "2025-03-23T00:00:00"
    launched = pq.read_table(tmp_path / "debug.raw/products.parquet").to_pandas().set_index("product_id").launched
    ids = pq.read_table(dataset.entity_path("product"), columns=["id"])["id"].to_pandas()
    cold_N = (launched[ids] >= cut).to_numpy()
    for split, expected in (("train", False), ("valid", False), ("test", True)):
        found = cold_N[dataset.pairs("search", split)["candidate"]]  # type: ignore[arg-type]
        assert found.any() == expected
