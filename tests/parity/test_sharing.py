"""Architectures of sharing over ranks: what one rank learns of the same lanes is what two learn, tables by row or
whole; stopped runs go on bit by bit; tables of single tasks are read under other layouts and found again by value.
"""

import fcntl
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.parity.test_warm_start import values_of, whole, write_datasets
from tests.ranks import run_on_ranks
from tests.saved import load_model, save_model
from tests.sharing_kinds import KINDS, OWN_TABLES, PER_TASK
from tests.shop import shared_root
from tests.tiny import TASKS, tiny_schema
from tests.tiny_run import here, kept, logged, tiny_config, train_with_stops, write_tiny_dataset
from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.config import RunConfig
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.reader import Reader
from torchrec_mt.distributed.table_state import table_state
from torchrec_mt.errors import UserError
from torchrec_mt.retrieval.encode import CANDIDATES, anchors_of, candidates_of, encode
from torchrec_mt.retrieval.evaluator import EvaluateConfig
from torchrec_mt.retrieval.rank import model_rankers
from torchrec_mt.runs import RunFolder
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.job import task_sides
from torchrec_mt.training.optim import Optimizers
from torchrec_mt.training.own_candidates import objective_for
from torchrec_mt.training.trained import load_run_model
from torchrec_mt.training.trainer import Trainer, TrainerConfig
from torchrec_mt.training.validation import validate
from torchrec_mt.training.warm_start import Earlier, warm_start
from torchrec_mt.workflows.training import train_here

pytestmark = pytest.mark.timeout(900)
STEPS, LANES = 4, 2
FEW = ("reader.batch_size=3",)
"""A pair of each task and lane: what a rank has of a task is one row."""
MIXED = ('sharding.tables.tokens="row_wise"', 'sharding.tables.kind="data_parallel"')
RESUMED = {"single": ("trainer.steps=6",), "mmoe of candidates": ("trainer.steps=6", "model.dropout=0.2")}


def of_kind(name: str) -> list[str]:
    return [f"model.sharing.{key}={str(value).lower()}" for key, value in vars(KINDS[name]).items()]


def built(folder: Path, config: RunConfig) -> Any:
    model, _ = build_model(
        PreparedDataset.open(folder / "data").manifest,
        config.dataset,
        config.model,
        config.sharding,
        losses=config.loss,
        runtime=here(),
        seed=3,
        batch_rows=200,
        table_rate=0.1,
    )
    return model


def train_a_little(folder: Path, name: str, batch: tuple[str, ...]) -> dict[str, Any]:
    """From the same weights on any number of ranks: losses of every step, gradients of the first, metrics."""
    config = tiny_config(folder / "data", *of_kind(name), *batch, *(MIXED if dist.get_world_size() > 1 else ()))
    dataset, ranks = PreparedDataset.open(folder / "data"), here()
    model, start = built(folder, config), folder / f"start-{name}-{len(batch)}"
    if ranks.world_size == 1:
        save_model(model, start)
    load_model(model, start)
    reader = Reader(
        config.reader,
        dataset,
        tiny_schema(),
        negatives=config.negatives,
        seed=0,
        rank=ranks.rank,
        world_size=ranks.world_size,
        lanes=LANES,
    )
    sides = task_sides(dataset.manifest, tiny_schema())
    trainer = Trainer(
        TrainerConfig(),
        model,
        Optimizers(config.optim, model, STEPS),
        objective=objective_for(config.model.sharing, sides, config.loss, config.negatives, ranks.device),
        balancer=Balancer(config.balancing, list(TASKS)),
        runtime=ranks,
        validate=lambda: {},
        log=lambda step, kind, values: None,
        offending_path=lambda: folder / "unused",
    )
    losses, gradients = [], {}
    for step, one in enumerate(islice(iter(reader), STEPS)):
        losses.append(list(trainer.steps.train_step(one, step).values()))
        dense = {key: p.grad for key, p in model.named_parameters() if ".embedding_bags." not in key}
        assert all(gradient is not None for gradient in dense.values()), "a parameter without gradient"
        gradients = gradients or {key: gradient.clone() for key, gradient in dense.items() if gradient is not None}
    return {
        "losses": losses,
        "gradients": gradients,
        "metrics": validate(model, Collator(dataset), dataset, tiny_schema(), 20, ranks) or {},
    }


def ranked_alike(folder: Path, name: str) -> bool:
    """Whether a ranking is by the vectors that the task's anchors and candidates are encoded as, in float64."""
    config, dataset = tiny_config(folder / "data", *of_kind(name)), PreparedDataset.open(folder / "data")
    model, collator, ranks = built(folder, config), Collator(dataset), here()
    judged = EvaluateConfig(split="valid", baselines=())
    rankers = model_rankers(model, collator, dataset, list(TASKS), judged, ranks.device, depths=dict.fromkeys(TASKS, 9))
    assert list(rankers) == list(TASKS)
    for task, (anchor, candidate) in TASKS.items():
        ids, every = np.unique(dataset.pairs(task, "valid")["anchor"]), np.arange(60)
        side = candidates_of(model, task)
        assert (side == CANDIDATES) == (name not in PER_TASK)
        anchor_BD = encode(model, collator, anchor, ids, side=anchors_of(task), device=ranks.device)
        candidate_ND = encode(model, collator, candidate, every, side=side, device=ranks.device)
        scores_BN = anchor_BD.double() @ candidate_ND.double().T
        if anchor == candidate:
            scores_BN[torch.arange(len(ids)), torch.from_numpy(ids)] = -2
        best_BK = scores_BN.gather(1, torch.from_numpy(rankers[task](ids, 9)))
        torch.testing.assert_close(best_BK, scores_BN.sort(dim=1, descending=True).values[:, :9], rtol=0, atol=1e-6)
    return True


def read_under(folder: Path, layout: str) -> torch.Tensor:
    """Candidates of a task by a model of its own tables, read under a layout."""
    config, dataset = tiny_config(folder / "data", *of_kind("stem")), PreparedDataset.open(folder / "data")
    sharding = tiny_config(folder / "data", f'sharding.default="{layout}"').sharding
    model = load_run_model(
        RunFolder.open(folder / "layouts"),
        dataset,
        config.dataset,
        config.model,
        config.loss,
        sharding,
        config.checkpoint,
        runtime=here(),
    )
    side = candidates_of(model, "goes_with")
    return encode(model, Collator(dataset), "product", np.arange(60), side=side, device=here().device)


def all_on_ranks(folder: str) -> dict[str, Any]:
    at, found = Path(folder), dict[str, Any]()
    for name in KINDS:
        found[name] = train_a_little(at, name, ())
        found[f"{name}, few"] = train_a_little(at, name, FEW)
        found[f"{name}, ranked"] = ranked_alike(at, name)
    if dist.get_world_size() == 1:
        return found
    for name, overrides in RESUMED.items():
        train_with_stops(at, f"whole-{name}", (*of_kind(name), *overrides), ())
        train_with_stops(at, f"stopped-{name}", (*of_kind(name), *overrides), (("fail", 3), ("term", 5)))
    config = tiny_config(at / "data", *of_kind("stem"), *MIXED, "trainer.steps=3", "trainer.validations=1")
    train_here(config, str(at / "layouts"), here(), show=False)
    found["layouts"] = [read_under(at, layout) for layout in ("row_wise", "table_wise", "data_parallel")]
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    """On one and two ranks, once for all workers."""
    folder = shared_root(tmp_path_factory) / "sharing"
    folder.mkdir(exist_ok=True)
    results = folder / "results.pt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not results.exists():
            write_tiny_dataset(folder / "data")
            torch.save({size: run_on_ranks(size, all_on_ranks, str(folder)) for size in (1, 2)}, results)
    return folder, torch.load(results, weights_only=True)


@pytest.mark.parametrize("batch", ["", ", few"])
@pytest.mark.parametrize("name", KINDS)
def test_two_ranks_learn_what_one_learns(trained: Any, name: str, batch: str) -> None:
    _, results = trained
    one, two = results[1][0][name + batch], [rank[name + batch] for rank in results[2]]
    for found in two:
        np.testing.assert_allclose(found["losses"], one["losses"], rtol=2e-5)
        assert found["gradients"].keys() == one["gradients"].keys()
        for key, gradient in one["gradients"].items():
            tolerance = 1e-6 + 1e-5 * gradient.abs().max().item()
            torch.testing.assert_close(found["gradients"][key], gradient, rtol=0, atol=tolerance)
    assert two[0]["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert np.ptp(np.array(one["losses"]), axis=0).min() > 0.001, "nothing was learned or compared"


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_tasks_are_ranked_by_their_own_vectors(trained: Any, name: str, size: int) -> None:
    assert trained[1][size][0][f"{name}, ranked"]


@pytest.mark.parametrize("name", RESUMED)
def test_stopped_runs_go_on_bit_by_bit(trained: Any, name: str) -> None:
    folder, _ = trained
    assert logged(folder / f"stopped-{name}") == logged(folder / f"whole-{name}")
    stopped, uninterrupted = (kept(folder / f"{kind}-{name}") for kind in ("stopped", "whole"))
    last = max(uninterrupted)
    assert stopped[last]["tensors"] == uninterrupted[last]["tensors"]


def test_tables_of_tasks_are_read_under_any_layout(trained: Any) -> None:
    vectors = trained[1][2][0]["layouts"]
    for other in vectors[1:]:
        torch.testing.assert_close(other, vectors[0], rtol=0, atol=1e-6)


def start_later(folder: str) -> dict[str, Any]:
    """Tables of a run on the earlier dataset, and of a model on the later that starts from it."""
    at, found = Path(folder), dict[str, Any]()
    for name in OWN_TABLES:
        path = at / f"run-{name}"
        config = tiny_config(at / "earlier", *of_kind(name), 'sharding.default="row_wise"', "trainer.steps=4")
        train_here(config, str(path), here(), show=False)
        config, dataset = tiny_config(at / "later", *of_kind(name)), PreparedDataset.open(at / "later")
        model, _ = build_model(
            dataset.manifest,
            config.dataset,
            config.model,
            config.sharding,
            losses=config.loss,
            runtime=here(),
            seed=5,
            batch_rows=100,
            table_rate=0.1,
        )
        optimizers = Optimizers(config.optim, model, 10)
        report = warm_start(model, optimizers, dataset, Earlier(path=path, checkpoints=path / "checkpoints"))
        tensors = table_state(model, optimizers.table_rule, optimizers.combined)
        store = CheckpointStore(at / f"states-{name}", keep=9)
        store.save(1, tensors, state={}, rank_state={})
        after = whole(store, 1, {key: tuple(value.shape) for key, value in tensors.items()})
        store.close()
        store = CheckpointStore(path / "checkpoints", keep=9)
        best = store.load({}, mark="best", partial=True)
        before = whole(store, best.step, {key: s for key, s in best.shapes.items() if key.startswith("tables.")})
        store.close()
        found[name] = {"before": before, "after": after, "tables": report["tables"]}
        narrow = tiny_config(at / "later", *of_kind(name), "dataset.tables.product_id.dim=8")
        with pytest.raises(UserError, match=r": dataset\.tables\.product_id\.dim = 8 \(16 there\): take its dims"):
            train_here(narrow, str(at / "narrow"), here(), show=False, init_from=str(path))
    return found


def test_rows_of_tasks_are_found_again_by_value(tmp_path: Path) -> None:
    write_datasets(tmp_path)
    [found, _] = run_on_ranks(2, start_later, str(tmp_path))
    for name, one in found.items():
        assert set(one["tables"]) == {key.split(".")[1] for key in one["after"]}
        assert len(one["tables"]) == {"single": 9, "stem": 12}[name]
        for table, told in one["tables"].items():
            vocabulary = table.partition("@")[0]
            here_row, there_row = (values_of(tmp_path, data, vocabulary) for data in ("later", "earlier"))
            both = here_row.keys() & there_row.keys()
            assert told["kept"] == 1 + len(both)
            assert told["sums"] == "kept"
            for value in both:
                for kind in ("weight", "sum"):
                    found_row = one["after"][f"tables.{table}.{kind}"][here_row[value]]
                    assert torch.equal(found_row, one["before"][f"tables.{table}.{kind}"][there_row[value]])
