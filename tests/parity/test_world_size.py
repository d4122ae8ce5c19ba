"""N ranks equal one rank fed the joined batches, whatever the sharding, the signal, and whether towers take all rows at
once: losses, gradients, weights, metrics.

Tolerance is for the order of float32 sums: 1e-5 of a loss, 1e-5 of the largest entry of a tensor plus 1e-6. Adam and
Adagrad forgive a wrong scale of the gradients; the dense gradients and Adagrad's sums of squares do not.
"""

import fcntl
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_saver import save

from tests.parity.parts import PARTS, PartMaker
from tests.parity.signals import Signal, mine_at_random, signals
from tests.ranks import run_on_ranks
from tests.saved import load_model, save_model
from tests.shop import shared_root
from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.distributed.planning import ShardingConfig, describe_plan
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.training.agreement import pair_rules
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.job import task_sides
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.schedule import CosineSchedule
from torchrec_mt.training.trainer import Trainer, TrainerConfig
from torchrec_mt.training.validation import validate

STEPS, WORLD_SIZES = 20, (1, 2, 4)
# Seven processes start before the first test: half a minute on two idle cores, minutes on busy ones.
pytestmark = pytest.mark.timeout(900)
OPTIM = OptimConfig(table_rate=0.1, dense_rate=0.01, schedule=CosineSchedule(warmup_steps=2))
MIXED = ShardingConfig(default="row_wise", tables={"product_id": "table_wise", "kind": "data_parallel"})


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train.

    Args:
        lanes: read by a Reader in so many lanes; 0 takes parts made by hand.
        twins: cases with the same signal, whose weights and whose gradients on one rank are to be found again.
    """

    sharding: ShardingConfig
    signal: str = "usual"
    rows_at_once: int = 0
    lanes: int = 0
    world_sizes: tuple[int, ...] = WORLD_SIZES
    # All start from the same weights: one rank, row-wise, stands for all; replicated tables alone show their gradients.
    twins: tuple[str, str] = ("row_wise", "data_parallel")


CASES = {
    "row_wise": Case(sharding=ShardingConfig(default="row_wise")),
    "table_wise": Case(sharding=ShardingConfig(default="table_wise")),
    "data_parallel": Case(sharding=ShardingConfig(default="data_parallel")),
    "mixed": Case(sharding=MIXED),
    **{
        f"{kind}_in_slices": Case(sharding=ShardingConfig(default=kind), rows_at_once=7, world_sizes=(2,))
        for kind in ("row_wise", "table_wise", "data_parallel")
    },
    "standard": Case(sharding=MIXED, signal="standard", twins=("standard", "standard")),
    "uncorrected": Case(sharding=MIXED, signal="uncorrected", twins=("uncorrected", "uncorrected")),
    # One rank takes both lanes, of four ranks two share one.
    "lanes": Case(sharding=MIXED, signal="standard", lanes=2, twins=("lanes", "lanes")),
}


def batches(dataset: PreparedDataset, signal: Signal, lanes: int) -> Iterator[Batch]:
    """What this rank reads; 11 pairs of each task in a lane, which two ranks cannot share evenly."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if lanes:
        schema = tiny_schema(id_dropout=0.3)
        yield from Reader(
            ReaderConfig(batch_size=33, prefetch=0),
            dataset,
            schema,
            negatives=signal.negatives,
            rules=pair_rules(signal.losses, schema),
            seed=0,
            rank=rank,
            world_size=world_size,
            lanes=lanes,
        )
    maker, share = PartMaker(dataset, signal), PARTS // world_size
    for step in itertools.count():
        yield maker.batch(step, range(rank * share, (rank + 1) * share))


def train_a_little(folder: Path, name: str) -> dict[str, Any]:
    """Trains a case from the weights in the folder (one rank makes them).

    Returns losses, gradients of the first step by parameter, metrics. Leaves weights and optimizer states of all ranks
    in the folder.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    case, dataset, schema = CASES[name], PreparedDataset.open(folder / "data"), tiny_schema(id_dropout=0.3)
    signal, start = signals(folder)[case.signal], folder / f"start-{case.signal}"
    here = Runtime(rank, world_size, torch.device("cpu"))
    model, _ = build_model(
        dataset.manifest,
        schema,
        ModelConfig(dim=16, hidden=24, task_hidden=24, rows_at_once=case.rows_at_once),
        case.sharding,
        losses=signal.losses,
        runtime=here,
        seed=0,
        batch_rows=100,
        table_rate=OPTIM.table_rate,
    )
    if world_size == 1 and not start.exists():
        save_model(model, start)
    load_model(model, start)
    optimizers = Optimizers(OPTIM, model, STEPS)
    trainer = Trainer(
        TrainerConfig(),
        model,
        optimizers,
        objective=Objective(task_sides(dataset.manifest, schema), signal.losses, signal.negatives, here.device),
        balancer=Balancer(BalancingConfig(weights={"alike": 0.5, "goes_with": 2.0}), list(schema.trained_tasks)),
        runtime=here,
        validate=lambda: {},
        log=lambda step, kind, values: None,
        offending_path=lambda: folder / "unused",
    )
    losses, gradients = [], {}
    for step, batch in enumerate(islice(batches(dataset, signal, case.lanes), STEPS)):
        losses.append(list(trainer.steps.train_step(batch, step).values()))
        gradients = gradients or {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    metrics = validate(model, Collator(dataset), dataset, schema, 30, here)
    state = {"model": model.state_dict(), "optimizers": optimizers.combined.state_dict()["state"]}
    save(state, checkpoint_id=folder / f"{name}-{world_size}")
    plan = {table: described["sharding_type"] for table, described in describe_plan(model.plan).items()}
    return {"losses": losses, "gradients": gradients, "metrics": metrics or {}, "plan": plan}


def train_all_cases(folder: str) -> dict[str, Any]:
    size = dist.get_world_size()
    return {name: train_a_little(Path(folder), name) for name, case in CASES.items() if size in case.world_sizes}


def whole_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights by parameter, and sums of squared gradients by table row, of a state that any number of ranks wrote."""
    state = torch.load(path / "whole.pt", weights_only=True)
    sums = {
        name.partition(".")[2]: value.flatten()
        for name, values in state["optimizers"].items()
        if ".embedding_bags." in name
        for key, value in values.items()
        if key == "sum" or key.endswith(".momentum1")
    }
    return state["model"], sums


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[dict[str, Any]]]]:
    """All cases on 1, 2 and 4 ranks (starting ranks takes longer than training on them), once for all workers."""
    folder = shared_root(tmp_path_factory) / "world_size"
    folder.mkdir(exist_ok=True)
    results = folder / "results.pt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not results.exists():
            mine_at_random(write_tiny(folder / "data"), folder / "mined")
            made = {size: run_on_ranks(size, train_all_cases, str(folder)) for size in WORLD_SIZES}
            for size, ranks in made.items():
                for name in ranks[0]:
                    dcp_to_torch_save(folder / f"{name}-{size}", folder / f"{name}-{size}/whole.pt")
            torch.save(made, results)
    return folder, torch.load(results, weights_only=True)


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Equal but for the order of float32 sums."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        tolerance = 1e-6 + 1e-5 * value.abs().max().item()
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance, msg=lambda message, name=name: f"{name}: {message}"
        )


@pytest.mark.parametrize(("name", "world_size"), [(name, size) for name in CASES for size in CASES[name].world_sizes])
def test_ranks_sharding_and_slices_change_nothing(trained: Any, name: str, world_size: int) -> None:
    folder, results = trained
    one, shows_gradients = (results[1][0][twin] for twin in CASES[name].twins)
    ranks = [result[name] for result in results[world_size]]
    for found in ranks:
        np.testing.assert_allclose(found["losses"], one["losses"], rtol=1e-5)
        assert found["losses"] == ranks[0]["losses"]
        gradients = {parameter: shows_gradients["gradients"][parameter] for parameter in found["gradients"]}
        assert gradients.keys() >= one["gradients"].keys()
        assert_close(found["gradients"], gradients)
    assert all(found["metrics"] == {} for found in ranks[1:])
    assert ranks[0]["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    (weights, sums), (one_weights, one_sums) = (
        whole_state(folder / state) for state in (f"{name}-{world_size}", f"{CASES[name].twins[0]}-1")
    )
    assert_close(weights, one_weights)
    assert_close(sums, one_sums)


@pytest.mark.parametrize("world_size", [2, 4])
def test_lanes_give_the_same_losses_on_any_number_of_ranks(trained: Any, world_size: int) -> None:
    _, results = trained
    one, found = (np.array(results[size][0]["lanes"]["losses"][:10]) for size in (1, world_size))
    np.testing.assert_allclose(found, one, rtol=1e-6)


def test_what_was_compared(trained: Any) -> None:
    folder, results = trained
    plans = {name: set(result["plan"].values()) for name, result in results[2][0].items()}
    mixed = {"row_wise", "table_wise", "data_parallel"}
    assert plans.keys() == CASES.keys()
    for name, kinds in plans.items():
        assert kinds == (mixed if CASES[name].sharding == MIXED else {CASES[name].sharding.default})
    one = results[1][0]["data_parallel"]
    weights, sums = whole_state(folder / "data_parallel-1")
    assert one["gradients"].keys() == weights.keys(), "every parameter had a gradient"
    assert {name.split(".")[-2] for name in sums} == {"table_tokens", "table_product_id", "table_kind"}
    for name, result in results[1][0].items():
        assert np.ptp(np.array(result["losses"]), axis=0).min() > 0.1, f"{name}: nothing was learned or compared"
