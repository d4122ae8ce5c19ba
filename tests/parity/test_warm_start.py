"""A new run takes another's rows by their value, on any number of ranks, as a plain loop over values would.

The tables of the earlier run were split by row over two ranks. In the later dataset products have other rows and seven
of them other names, and there are more tokens.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from tests.tiny import PRODUCTS, TOKENS
from tests.tiny_run import here, tiny_config, write_tiny_dataset
from torchrec_mt.config import RunConfig
from torchrec_mt.data.dataset import MANIFEST, PreparedDataset, manifest_to_json
from torchrec_mt.distributed.table_state import table_state
from torchrec_mt.errors import UserError
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.optim import Optimizers
from torchrec_mt.training.run_state import dense_weights
from torchrec_mt.training.warm_start import Earlier, describe, warm_start
from torchrec_mt.workflows.training import train_here

pytestmark = pytest.mark.timeout(600)
MORE_TOKENS, DIM = 10, 16
ROWS = {"product_id": PRODUCTS + 1, "tokens": TOKENS + MORE_TOKENS, "kind": 4}
HALF = 'dataset.tables.{}.dtype="float16"'
EARLIER = ('sharding.default="row_wise"', "trainer.steps=4", "optim.ema.decay=0.5", HALF.format("kind"))
CASES = {
    "row_wise": ('sharding.default="row_wise"',),
    "table_wise": ('sharding.default="table_wise"', "model.hidden=32"),
    "replicated": ('sharding.default="data_parallel"', "optim.ema.decay=0.5"),
    "column_wise": ('sharding.default={kind = "column_wise", sum_per_block = true}',),
    "adagrad": ('sharding.default="row_wise"', 'optim.tables.kind="adagrad"'),
    "sgd": ('optim.tables.kind="sgd"',),
    "halves": ('sharding.default="row_wise"', HALF.format("tokens"), HALF.format("kind")),
}


def write_datasets(folder: Path) -> None:
    """`earlier` and `later`."""
    write_tiny_dataset(folder / "earlier", digest="earlier")
    write_tiny_dataset(folder / "later", digest="later")
    later = PreparedDataset.open(folder / "later")
    rng = np.random.default_rng(3)
    products = rng.permutation([f"product_id {n}" for n in range(8, PRODUCTS + 1)] + [f"new {n}" for n in range(7)])
    tokens = [f"tokens {n}" for n in range(TOKENS + MORE_TOKENS - 1, 0, -1)]
    for table, values in {"product_id": list(products), "tokens": tokens}.items():
        columns = {"value": values, "row": np.arange(1, len(values) + 1, dtype=np.int32)}
        # A word and an n-gram may be spelled alike, and are not the same.
        kinds = {"kind": ["ngram" if n == 15 else "word" for n in range(len(values))]} if table == "tokens" else {}
        pq.write_table(
            pa.table(columns | {"count": np.ones(len(values), np.int64)} | kinds), later.vocabulary_path(table)
        )
    manifest = dataclasses.replace(later.manifest, tables=later.manifest.tables | {"tokens": ROWS["tokens"]})
    (folder / "later" / MANIFEST).write_text(manifest_to_json(manifest))


def values_of(folder: Path, dataset: str, table: str) -> dict[tuple[str, str], int]:
    vocabulary = pq.read_table(PreparedDataset.open(folder / dataset).vocabulary_path(table)).to_pydict()
    kinds = vocabulary.get("kind", [""] * len(vocabulary["row"]))
    return dict(zip(zip(vocabulary["value"], kinds, strict=True), vocabulary["row"], strict=True))


def whole(store: CheckpointStore, step: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, joined on every rank."""
    dtypes = store.load({}, step=step, partial=True).dtypes
    tensors = {name: torch.empty(shape, dtype=dtypes[name]) for name, shape in shapes.items()}
    store.load(tensors, step=step, partial=True)
    return tensors


def start(folder: Path, config: RunConfig, name: str) -> dict[str, Any]:
    """State of a model before and after its warm start, and the report."""
    dataset, ranks = PreparedDataset.open(folder / "later"), here()
    model, _ = build_model(
        dataset.manifest,
        config.dataset,
        config.model,
        config.sharding,
        losses=config.loss,
        runtime=ranks,
        seed=5,
        batch_rows=100,
        table_rate=0.1,
        table_optimizer=config.optim.tables,
    )
    optimizers = Optimizers(config.optim, model, 10)
    store = CheckpointStore(folder / f"states-{name}-{dist.get_world_size()}", keep=9)
    found: dict[str, Any] = {}
    for step, part in enumerate(("before", "after")):
        if part == "after":
            # Seven rows of a table at a time.
            origin = Earlier(path=folder / "run", checkpoints=folder / "run/checkpoints")
            found["report"] = warm_start(model, optimizers, dataset, origin, block_bytes=4 * DIM * 7)
        tensors = table_state(model, optimizers.table_rule, optimizers.combined)
        tensors |= {f"dense.{name}": weight for name, weight in dense_weights(model).items()}
        store.save(step, tensors, state={}, rank_state={})
        found[part] = whole(store, step, {name: tuple(value.shape) for name, value in tensors.items()})
    if optimizers.average:
        found["average"] = dict(optimizers.average.averages)
    store.close()
    return found


def start_all(folder: str) -> dict[str, Any]:
    """By case what `start` finds; two ranks first train the run that it starts from, and one that starts from that."""
    at = Path(folder)
    if dist.get_world_size() == 2:
        train_here(tiny_config(at / "earlier", *EARLIER), str(at / "run"), here(), show=False)
        config = tiny_config(at / "later", "trainer.steps=4", "trainer.log_every=1")
        train_here(config, str(at / "new"), here(), show=False, init_from=str(at / "run"))
    found = {name: start(at, tiny_config(at / "later", *case), name) for name, case in CASES.items()}
    store = CheckpointStore(at / "run/checkpoints", keep=9)
    newest = store.load({}, mark="best", partial=True)
    found["earlier"] = whole(
        store, newest.step, {n: s for n, s in newest.shapes.items() if n.startswith(("tables.", "average."))}
    )
    store.close()
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm_start")
    write_datasets(folder)
    return folder


@pytest.fixture(scope="module")
def found(root: Path) -> dict[int, list[dict[str, Any]]]:
    return {size: run_on_ranks(size, start_all, str(root)) for size in (2, 1)}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_rows_are_found_again_by_value(root: Path, found: Any, name: str, size: int) -> None:
    earlier = found[size][0]["earlier"]
    for rank in found[size]:
        case = rank[name]
        for table, rows in ROWS.items():
            before, after = ({n: s[n] for n in s if f".{table}." in n} for s in (case["before"], case["after"]))
            there, kept = values_of(root, "earlier", table), {0}
            weight, sums = f"tables.{table}.weight", f"tables.{table}.sum"
            wanted = before[weight].clone()
            wanted[0] = earlier[weight][0]
            wanted_sums = torch.zeros(rows, 1)
            wanted_sums[0] = earlier[sums][0]
            for value, row in values_of(root, "later", table).items():
                if value in there:
                    kept.add(row)
                    wanted[row] = earlier[weight][there[value]]
                    wanted_sums[row] = earlier[sums][there[value]]
            assert torch.equal(after[weight], wanted), table
            assert not torch.equal(after[weight], before[weight])
            told = case["report"]["tables"][table]
            assert (told["kept"], told["fresh"]) == (len(kept), rows - len(kept))
            assert told["dropped"] == len(there) + 1 - len(kept)
            if name == "sgd":
                assert (sums not in after, told["sums"]) == (True, "none")
            elif name == "adagrad":
                assert (after[sums].count_nonzero(), told["sums"]) == (0, "start at zero")
            else:
                assert torch.equal(after[sums], wanted_sums.expand_as(after[sums])), table


def test_what_was_compared(root: Path, found: Any) -> None:
    report = found[2][0]["row_wise"]["report"]
    assert report["tables"] == {
        "tokens": {"kept": 39, "fresh": 11, "dropped": 1, "sums": "kept"},
        "product_id": {"kept": 54, "fresh": 7, "dropped": 7, "sums": "kept"},
        "kind": {"kept": 4, "fresh": 0, "dropped": 0, "dtype": "F16 there, F32 here", "sums": "kept"},
    }
    halves = found[2][0]["halves"]["report"]["tables"]
    assert halves["tokens"]["dtype"] == "F32 there, F16 here"
    assert "dtype" not in halves["kind"]
    line = "table tokens: 39 rows kept, 11 fresh, 1 dropped; F32 there, F16 here; optimizer's sums kept"
    assert line in describe(found[2][0]["halves"]["report"])
    assert found[2][0]["earlier"]["tables.product_id.sum"].count_nonzero() > 20


@pytest.mark.parametrize("size", [1, 2])
def test_dense_weights_are_taken_where_they_fit(found: Any, size: int) -> None:
    earlier = found[size][0]["earlier"]
    for name in CASES:
        case = found[size][0][name]
        left = case["report"]["dense_left"]
        for weight, value in case["after"].items():
            if weight.startswith("dense."):
                plain = weight.removeprefix("dense.")
                taken = earlier[f"average.{plain}"] if plain not in left else case["before"][weight]
                assert torch.equal(value, taken), weight
        assert bool(left) == (name == "table_wise"), "its towers are wider"
    assert "there" in next(iter(found[size][0]["table_wise"]["report"]["dense_left"].values()))
    replicated = found[size][0]["replicated"]
    assert all(torch.equal(value, replicated["after"][f"dense.{n}"]) for n, value in replicated["average"].items())


def test_the_new_run_says_where_it_comes_from(root: Path, found: Any) -> None:
    told = json.loads((root / "new/init.json").read_text())
    assert told["run"] == str(root / "run")
    assert told["tables"] == found[2][0]["row_wise"]["report"]["tables"]
    lines = [json.loads(line) for line in (root / "new/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    kept = sorted(file.name for file in (root / "new/vocabulary").iterdir())
    assert kept == ["kind.parquet", "product_id.parquet", "tokens.parquet"]


def refuse(folder: str) -> dict[str, str]:
    at, found = Path(folder), {}
    for name, run, overrides in (
        ("dims", "run", ("dataset.tables.product_id.dim=8",)),
        ("nothing", "empty", ()),
        ("no run", "nowhere", ()),
        ("no vocabulary", "old", ()),
    ):
        try:
            train_here(
                tiny_config(at / "later", *overrides), str(at / "refused"), here(), show=False, init_from=str(at / run)
            )
        except UserError as error:
            found[name] = str(error)
        assert not (at / "refused").exists(), name
    return found


def test_refusals(root: Path, found: Any) -> None:
    for name in ("empty", "old"):
        (root / name).mkdir()
        (root / name / "config.json").write_text((root / "run/config.json").read_text())
    (root / "old/checkpoints").symlink_to(root / "run/checkpoints")
    [messages] = run_on_ranks(1, refuse, str(root))
    assert messages["dims"] == (
        f"the tables of '{root / 'run'}' have other widths, and a row cannot be taken into one of another width: "
        "dataset.tables.product_id.dim = 8 (16 there): take its dims, or start without --init-from"
    )
    assert "no checkpoint under" in messages["nothing"]
    assert "is no run folder" in messages["no run"]
    assert "vocabulary" in messages["no vocabulary"]
    assert "is not there: without it nobody knows" in messages["no vocabulary"]
