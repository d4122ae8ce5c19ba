"""A run on some of a dataset's tasks (`trainer.tasks`) has the bits of a run on a dataset that holds no others."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.ranks import run_on_ranks
from tests.tiny import tiny_schema
from tests.tiny_run import here, logged, tiny_config, write_tiny_dataset
from torchrec_mt.config import RunConfig
from torchrec_mt.data.dataset import MANIFEST, PreparedDataset, declaration_json, manifest_to_json
from torchrec_mt.data.part import dataset_of_schema, schema_of_tasks
from torchrec_mt.workflows.training import train_here

TASKS = ("alike",)  # no query: neither its tower nor its words are there


def smaller_dataset(path: Path, of: Path) -> None:
    """The dataset with no word of the other tasks."""
    shutil.copytree(of, path)
    schema = schema_of_tasks(tiny_schema(), TASKS)
    part = dataset_of_schema(PreparedDataset.open(path), schema).manifest
    part = dataclasses.replace(part, declaration=declaration_json(schema))
    (path / MANIFEST).write_text(manifest_to_json(part))
    for name in ("find", "goes_with"):
        shutil.rmtree(path / "pairs" / name)
    shutil.rmtree(path / "store/query")


def smaller_config(data: Path) -> RunConfig:
    whole = tiny_config(data)
    return dataclasses.replace(whole, dataset=schema_of_tasks(whole.dataset, TASKS))


def train_both(folder: str) -> None:
    at = Path(folder)
    some = tiny_config(at / "data", f"trainer.tasks={list(TASKS)}")
    train_here(some, str(at / "some"), here(), show=False)
    train_here(smaller_config(at / "smaller"), str(at / "all"), here(), show=False)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_other_tasks_leave_no_trace(tmp_path: Path, ranks: int) -> None:
    write_tiny_dataset(tmp_path / "data")
    smaller_dataset(tmp_path / "smaller", of=tmp_path / "data")
    run_on_ranks(ranks, train_both, str(tmp_path))
    lines = logged(tmp_path / "some")
    assert lines == logged(tmp_path / "all")
    losses = [name for name in lines[0] if name.startswith("loss/")]
    assert losses == ["loss/alike"]
    assert (tmp_path / "some/plan.json").read_text() == (tmp_path / "all/plan.json").read_text()
    assert sorted(file.name for file in (tmp_path / "some/vocabulary").iterdir()) == sorted(
        file.name for file in (tmp_path / "all/vocabulary").iterdir()
    )
