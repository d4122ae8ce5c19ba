"""train -> export: what is written is what is ranked by, on one rank and on two; and what export refuses."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.shop import FILES, debug_config, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import exit_code_of
from torchrec_mt.export import main as export
from torchrec_mt.retrieval import exported
from torchrec_mt.retrieval.encode import CANDIDATES, anchors_of, encode
from torchrec_mt.runs import RunFolder
from torchrec_mt.train import main as train
from torchrec_mt.training.trained import load_run_model


def trained(root: Path, path: Path, *overrides: str) -> Path:
    keys = [*debug_overrides(root), "trainer.steps=10", "trainer.validations=1", *overrides]
    assert train([*FILES, *(f"--set={key}" for key in keys), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(root, tmp_path_factory.mktemp("exported") / "run")


def read(folder: Path) -> tuple[list[object], np.ndarray]:
    table = pq.read_table(folder).combine_chunks()
    return table["id"].to_pylist(), table["vector"].chunk(0).flatten().to_numpy().reshape(len(table), -1)


def test_what_is_written(root: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export([str(run), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about == json.loads((run / "export" / "export.json").read_text())
    dataset, config = PreparedDataset.open(debug_config(root).dataset.path), debug_config(root)
    folders = ["candidates/product", "anchors/search", "anchors/similar", "anchors/complement"]
    assert [space["folder"] for space in about["spaces"]] == folders
    assert about["spaces"][0]["tasks"] == ["search", "similar", "complement"]
    with runtime(config.runtime) as here:
        model = load_run_model(
            RunFolder.open(str(run)),
            dataset,
            config.dataset,
            config.model,
            config.loss,
            config.sharding,
            config.checkpoint,
            runtime=here,
        )
        for space in about["spaces"]:
            side = anchors_of(space["tasks"][0]) if space["anchors"] else CANDIDATES
            every = np.arange(dataset.manifest.entities[space["entity"]].count)
            wanted = encode(model, Collator(dataset), space["entity"], every, side=side, device=here.device)
            ids, vector_ND = read(run / "export" / space["folder"])
            assert ids == pq.read_table(dataset.entity_path(space["entity"]), columns=["id"])["id"].to_pylist()
            np.testing.assert_array_equal(vector_ND, wanted.numpy())
            assert vector_ND.shape == (space["rows"], space["width"])


def test_two_ranks_write_the_same(run: Path, tmp_path: Path) -> None:
    export([str(run), "--output", str(tmp_path / "one")])
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "torchrec_mt.export"]
    command = [
        sys.executable,
        "-m",
        *launcher,
        str(run),
        "--output",
        str(tmp_path / "two"),
        "--set=sharding.default=table_wise",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("export: ") == 1
    alone, two = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert two == alone


def test_many_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, row groups of the entities' own file and blocks of vectors end in different places."""
    export([str(run), "--output", str(tmp_path / "whole")])
    monkeypatch.setattr(exported, "AT_ONCE", 300)
    monkeypatch.setattr(exported, "_FILE_ROWS", 600)
    export([str(run), "--output", str(tmp_path / "parts")])
    assert len(list((tmp_path / "parts/candidates/product").iterdir())) > 1
    (ids, vectors), (wanted_ids, wanted) = (read(tmp_path / name / "candidates/product") for name in ("parts", "whole"))
    assert ids == wanted_ids
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)


def test_ids_come_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "AT_ONCE", 5)
    pq.write_table(pa.table({"id": [f"p{row}" for row in range(17)]}), tmp_path / "e.parquet", row_group_size=3)
    parts = [part.to_pylist() for part in exported._ids(tmp_path / "e.parquet")]
    assert [len(part) for part in parts] == [5, 5, 5, 2]
    assert [name for part in parts for name in part] == [f"p{row}" for row in range(17)]


def test_tasks_with_candidates_of_their_own(root: Path, tmp_path: Path) -> None:
    run = trained(root, tmp_path / "run", 'model.sharing.kind="single"')
    assert export([str(run), "--task", "similar", "--task", "search"]) == 0
    about = json.loads((run / "export" / "export.json").read_text())
    assert [space["folder"] for space in about["spaces"]] == [
        "candidates/product@search",
        "candidates/product@similar",
        "anchors/search",
        "anchors/similar",
    ]


def test_the_documented_program_reads_it(run: Path, tmp_path: Path) -> None:
    export([str(run), "--output", str(tmp_path / "runs/demo/export")])
    found = re.search(r"```python\n(.*?)```", Path("docs/export.md").read_text(), re.DOTALL)
    assert found is not None
    done = subprocess.run([sys.executable, "-c", found[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    anchor, best = done.stdout.split(" ", 1)
    assert anchor not in best
    assert best.count(",") == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "no"], "--task no: no trained task of"),
        (["--set", "evaluate.split=valid"], "evaluate.split"),
        (["--output", "{other}"], "holds no export: give another --output"),
    ],
)
def test_refused(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    here = [argument.format(other=tmp_path / "other") for argument in arguments]
    assert exit_code_of(lambda: export([str(run), *here])) == 2
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert (tmp_path / "other" / "mine.txt").read_text() == "precious"


def test_a_failure_leaves_the_earlier_one(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "export"
    export([str(run), "--output", str(output)])
    before = {file.name: file.stat().st_mtime_ns for file in output.rglob("*.parquet")}

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    assert exit_code_of(lambda: export([str(run), "--output", str(output)])) != 0
    assert {file.name: file.stat().st_mtime_ns for file in output.rglob("*.parquet")} == before


def test_vectors_that_are_no_numbers(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_numbers(model: object, batch: Batch, entity: str, side: object) -> torch.Tensor:
        return torch.full((len(batch.entities[entity].id_E), 4), torch.nan)

    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("export"))
    monkeypatch.setattr("torchrec_mt.retrieval.encode._encoded", no_numbers)
    assert exit_code_of(lambda: export([str(copy)])) == 1
    assert "no finite numbers" in capsys.readouterr().err
    assert not (copy / "export").exists()
