"""N ranks equal one rank fed the joined batches, whatever the sharding: losses, gradients, weights, metrics.

Tolerance is for the order of float32 sums: 1e-5 of a loss, 1e-5 of the largest entry of a tensor plus 1e-6. Adam and
Adagrad forgive a wrong scale of the gradients; the dense gradients and Adagrad's sums of squares do not.
"""

import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_saver import save

from tests.ranks import run_on_ranks
from tests.shop import shared_root
from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator, TaskPairs
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import InBatch, Memory, Named, NegativesConfig, Popularity, Sampler, Uniform
from torchrec_mt.data.task_pairs import PairMaker
from torchrec_mt.distributed.planning import ShardingConfig, describe_plan
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.models.losses.config import BceLoss, LossConfig, SoftmaxLoss
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.training.agreement import pair_rules
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.checkpoint import load_model, save_model
from torchrec_mt.training.job import task_sides, validate
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.trainer import Trainer, TrainerConfig

STEPS, PARTS, WORLD_SIZES = 20, 4, (1, 2, 4)
# Seven processes start before the first test: half a minute on two idle cores, minutes on busy ones.
pytestmark = pytest.mark.timeout(900)
OPTIM = OptimConfig(table_rate=0.1, dense_rate=0.01, warmup_steps=2)
NEGATIVES = NegativesConfig(
    sources=(InBatch(), Uniform(count=12), Popularity(count=6), Memory(size=100, max_age=3, warmup=3)),
    tasks={"find": (InBatch(), Uniform(count=8), Named(count=2))},
)
LOSSES = LossConfig(
    tasks={"alike": SoftmaxLoss(symmetric=True, label_smoothing=0.1), "goes_with": BceLoss()}, precision="float32"
)
KINDS = {
    "row_wise": ShardingConfig(default="row_wise"),
    "table_wise": ShardingConfig(default="table_wise"),
    "data_parallel": ShardingConfig(default="data_parallel"),
    "mixed": ShardingConfig(default="row_wise", tables={"product_id": "table_wise", "kind": "data_parallel"}),
}


def make_parts(dataset: PreparedDataset) -> tuple[Sampler, dict[str, PairMaker]]:
    """What makes the pairs of a part: every source of negatives, every mask, two directions, grades of weight."""
    sampler = Sampler(
        {name: NEGATIVES.of(name) for name in dataset.manifest.tasks},
        {name: dataset.frequencies(name) for name in dataset.manifest.tasks},
        dataset.manifest.entities["product"].count,
    )
    rules = pair_rules(LOSSES, tiny_schema())
    return sampler, {name: PairMaker(dataset, name, NEGATIVES, rules[name], sampler) for name in rules}


def part_of_step(dataset: PreparedDataset, step: int, part: int) -> tuple[dict[str, TaskPairs], dict[str, np.ndarray]]:
    """The pairs and negatives of one part of a step's batch; the first holds far fewer distinct entities."""
    rng, (sampler, makers) = np.random.default_rng([step, part]), make_parts(dataset)
    negatives = sampler.draw(rng) if part else sampler.draw(rng) % 8
    pairs = {}
    for name, maker in makers.items():
        rows = dataset.pairs(name, "train")
        chosen = rng.integers(0, len(rows["anchor"]) if part else 20, 10)
        weight_B = (0.5 + rng.random(10)).astype(np.float32)
        pairs[name] = maker(
            rows["anchor"][chosen], rows["candidate"][chosen], weight_B, rows["grade"][chosen], negatives, rng
        )
    return pairs, {"product": negatives}


def joined(parts: list[TaskPairs], draws: int) -> TaskPairs:
    """What one rank would hold of several parts: their pairs and draws, more draws to be expected.

    Args:
        draws: of the candidate entity in one part.
    """
    fields = {}
    for name in TaskPairs.__dataclass_fields__:
        values = [getattr(part, name) for part in parts]
        match name:
            case "stretches":
                fields[name] = tuple((a + i * draws, b + i * draws) for i, v in enumerate(values) for a, b in v)
            case "blocked" | "known_anchors" if values[0] is not None:
                owners = [owner + i * len(parts[0].anchor_B) for i, (owner, _) in enumerate(values)]
                fields[name] = np.concatenate(owners), np.concatenate([ids for _, ids in values])
            case "drawn_B" | "drawn_M":
                fields[name] = len(parts) * np.concatenate(values)
            case _:
                fields[name] = None if values[0] is None else np.concatenate(values)
    return TaskPairs(**fields)


def batch_of(dataset: PreparedDataset, collator: Collator, step: int, parts: range) -> Batch:
    """The joined batch of some parts."""
    made = [part_of_step(dataset, step, part) for part in parts]
    draws = len(made[0][1]["product"])
    pairs = {name: joined([part[0][name] for part in made], draws) for name in made[0][0]}
    return collator(pairs, {"product": np.concatenate([part[1]["product"] for part in made])}, dropout_key=step)


def train_a_little(folder: Path, kind: str) -> dict[str, Any]:
    """Trains from the weights in the folder (one rank makes them).

    Returns losses, gradients of the first step by parameter, metrics. Leaves weights and optimizer states of all ranks
    in the folder.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dataset, schema = PreparedDataset.open(folder / "data"), tiny_schema(id_dropout=0.3)
    here = Runtime(rank, world_size, torch.device("cpu"))
    model, _ = build_model(
        dataset.manifest,
        schema,
        ModelConfig(dim=16, hidden=24, task_hidden=24),
        KINDS[kind],
        losses=LOSSES,
        runtime=here,
        seed=0,
        batch_rows=100,
        table_rate=OPTIM.table_rate,
    )
    if world_size == 1 and not (folder / "start").exists():
        save_model(model, folder / "start")
    load_model(model, folder / "start")
    optimizers = Optimizers(OPTIM, model, STEPS)
    trainer = Trainer(
        TrainerConfig(),
        model,
        optimizers,
        objective=Objective(task_sides(dataset.manifest, schema), LOSSES, NEGATIVES, here.device),
        weights={"find": 1.0, "alike": 0.5, "goes_with": 2.0},
        runtime=here,
        validate=lambda: {},
        log=lambda step, kind, values: None,
        run_path=folder / "unused",
    )
    collator = Collator(dataset, id_dropout={("product", "id"): 0.3})
    share = PARTS // world_size
    mine = range(rank * share, (rank + 1) * share)
    losses, gradients = [], {}
    for step in range(STEPS):
        losses.append(list(trainer.train_step(batch_of(dataset, collator, step, mine), step).values()))
        gradients = gradients or {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    metrics = validate(model, Collator(dataset), dataset, schema, 30, here)
    state = {"model": model.state_dict(), "optimizers": optimizers.combined.state_dict()["state"]}
    save(state, checkpoint_id=folder / f"{kind}-{world_size}")
    plan = {name: table["sharding_type"] for name, table in describe_plan(model.plan).items()}
    return {"losses": losses, "gradients": gradients, "metrics": metrics or {}, "plan": plan}


def train_all_kinds(folder: str) -> dict[str, Any]:
    return {kind: train_a_little(Path(folder), kind) for kind in KINDS}


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
    """All kinds on 1, 2 and 4 ranks (starting ranks takes longer than training on them), once for all workers."""
    folder = shared_root(tmp_path_factory) / "world_size"
    folder.mkdir(exist_ok=True)
    results = folder / "results.pt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not results.exists():
            write_tiny(folder / "data")
            made = {size: run_on_ranks(size, train_all_kinds, str(folder)) for size in WORLD_SIZES}
            for size in WORLD_SIZES:
                for kind in KINDS:
                    dcp_to_torch_save(folder / f"{kind}-{size}", folder / f"{kind}-{size}/whole.pt")
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


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("kind", list(KINDS))
def test_ranks_and_sharding_change_nothing(trained: Any, kind: str, world_size: int) -> None:
    folder, results = trained
    # All start from the same weights: one rank, row-wise, stands for all; replicated tables alone show their gradients.
    one, one_replicated = results[1][0]["row_wise"], results[1][0]["data_parallel"]
    ranks = [result[kind] for result in results[world_size]]
    for found in ranks:
        np.testing.assert_allclose(found["losses"], one["losses"], rtol=1e-5)
        assert found["losses"] == ranks[0]["losses"]
        gradients = {name: one_replicated["gradients"][name] for name in found["gradients"]}
        assert gradients.keys() >= one["gradients"].keys()
        assert_close(found["gradients"], gradients)
    assert all(found["metrics"] == {} for found in ranks[1:])
    assert ranks[0]["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    (weights, sums), (one_weights, one_sums) = (
        whole_state(folder / name) for name in (f"{kind}-{world_size}", "row_wise-1")
    )
    assert_close(weights, one_weights)
    assert_close(sums, one_sums)


def test_what_was_compared(trained: Any) -> None:
    folder, results = trained
    plans = {kind: results[4][0][kind]["plan"] for kind in KINDS}
    assert {kind: set(plan.values()) for kind, plan in plans.items()} == {
        "row_wise": {"row_wise"},
        "table_wise": {"table_wise"},
        "data_parallel": {"data_parallel"},
        "mixed": {"row_wise", "table_wise", "data_parallel"},
    }
    one = results[1][0]["data_parallel"]
    weights, sums = whole_state(folder / "data_parallel-1")
    assert one["gradients"].keys() == weights.keys(), "every parameter had a gradient"
    assert {name.split(".")[-2] for name in sums} == {"table_tokens", "table_product_id", "table_kind"}
    assert np.ptp(np.array(one["losses"]), axis=0).min() > 0.1, "nothing was learned, so nothing was compared"
