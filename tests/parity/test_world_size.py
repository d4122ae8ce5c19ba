"""N ranks equal one rank fed the joined batches: losses, weights, metrics (tolerance: float32 summation order)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator, TaskPairs
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.checkpoint import load_model, save_model
from torchrec_mt.training.job import task_sides, validate
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.trainer import Trainer, TrainerConfig

STEPS, PARTS = 8, 2


def part_of_step(dataset: PreparedDataset, step: int, part: int) -> tuple[dict[str, TaskPairs], dict[str, np.ndarray]]:
    """The pairs and negatives of one rank of two at a step; parts differ in how many distinct entities they hold."""
    rng = np.random.default_rng([step, part])
    negatives = rng.integers(0, 60 if part else 8, 12)
    pairs = {}
    for name in dataset.manifest.tasks:
        rows = dataset.pairs(name, "train")
        chosen = rng.integers(0, len(rows["anchor"]) if part else 20, 10)
        log_count_N = np.log(PARTS * (10 * dataset.frequencies(name) / len(rows["anchor"]) + 12 / 60)).astype(
            np.float32
        )
        pairs[name] = TaskPairs(
            anchor_B=rows["anchor"][chosen],
            candidate_B=rows["candidate"][chosen],
            weight_B=(0.5 + rng.random(10)).astype(np.float32),
            log_count_B=log_count_N[rows["candidate"][chosen]],
            negative_log_count_M=log_count_N[negatives],
        )
    return pairs, {"product": negatives}


def batch_of(dataset: PreparedDataset, collator: Collator, step: int, parts: range) -> Batch:
    """The joined batch of some parts."""
    made = [part_of_step(dataset, step, part) for part in parts]
    pairs = {
        name: TaskPairs(
            **{
                field: np.concatenate([getattr(part[0][name], field) for part in made])
                for field in TaskPairs.__dataclass_fields__
            }
        )
        for name in made[0][0]
    }
    return collator(pairs, {"product": np.concatenate([part[1]["product"] for part in made])}, dropout_key=step)


def train_a_little(folder: str, kind: str) -> dict[str, object]:
    """Trains from the weights in the folder (one rank makes them) and tells losses, vectors and metrics."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dataset, schema = PreparedDataset.open(f"{folder}/data"), tiny_schema(id_dropout=0.3)
    here = Runtime(rank, world_size, torch.device("cpu"))
    model, plan = build_model(
        dataset.manifest,
        schema,
        ModelConfig(dim=16, hidden=24, task_hidden=24),
        ShardingConfig(default=kind),
        runtime=here,
        seed=0,
        batch_rows=100,
        table_rate=0.1,
    )
    assert {p.sharding_type for p in plan.plan["embeddings.collection"].values()} == {kind}
    start = Path(folder) / "start"
    if world_size == 1 and not start.exists():
        save_model(model, start)
    load_model(model, start)
    trainer = Trainer(
        TrainerConfig(),
        model,
        Optimizers(OptimConfig(table_rate=0.1, dense_rate=0.01, warmup_steps=2), model, STEPS),
        tasks=task_sides(schema),
        weights={"find": 1.0, "alike": 0.5, "goes_with": 2.0},
        runtime=here,
        validate=lambda: {},
        log=lambda step, kind, values: None,
        model_path=Path(folder) / "unused",
    )
    collator = Collator(dataset, id_dropout={("product", "id"): 0.3})
    mine = range(PARTS) if world_size == 1 else range(rank, rank + 1)
    losses = [trainer.train_step(batch_of(dataset, collator, step, mine), step).tolist() for step in range(STEPS)]
    metrics = validate(model, Collator(dataset), dataset, schema, 30, here)
    return {"losses": losses, "metrics": metrics or {}}


@pytest.mark.parametrize("kind", ["row_wise", "table_wise"])
def test_two_ranks_equal_one_rank_with_the_joined_batch(tmp_path: Path, kind: str) -> None:
    write_tiny(tmp_path / "data")
    [one] = run_on_ranks(1, train_a_little, str(tmp_path), kind)
    first, second = run_on_ranks(2, train_a_little, str(tmp_path), kind)
    assert first["losses"] == second["losses"]
    np.testing.assert_allclose(first["losses"], one["losses"], rtol=1e-5)
    assert second["metrics"] == {}
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert np.ptp(np.array(one["losses"]), axis=0).min() > 0.1, "nothing was learned, so nothing was compared"
