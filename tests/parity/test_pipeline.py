"""Batches that run ahead train the same, bit by bit: losses and weights of one and two ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.ranks import run_on_ranks
from tests.tiny import write_tiny
from tests.tiny_trainer import tiny_batches, tiny_trainer
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.pipeline import InputPipeline
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime, RuntimeConfig, runtime

STEPS = 6
MIXED = ShardingConfig(default="row_wise", tables={"product_id": "table_wise", "kind": "data_parallel"})


def train(path: str, ahead: bool) -> dict[str, Any]:
    """Losses and this rank's weights; halfway another batch is encoded, as a validation would."""
    here = Runtime(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    dataset = PreparedDataset.open(Path(path))
    trainer = tiny_trainer(dataset, Path("unused"), here, sharding=MIXED)
    started = []
    if ahead:
        trainer.steps.pipeline = InputPipeline(trainer.model, here.device)
        input_dist = trainer.steps.pipeline._tables.input_dist
        trainer.steps.pipeline._tables.input_dist = lambda *given: (started.append(1), input_dist(*given))[1]
    feed = {"rank": here.rank, "world_size": here.world_size}
    batches, other = tiny_batches(dataset, **feed), next(tiny_batches(dataset, **feed))
    losses = []
    for step in range(STEPS):
        losses.append(list(trainer.steps.step(batches, step)[0].values()))
        if step == STEPS // 2:
            with torch.no_grad():
                trainer.model(other)
    return {"losses": losses, "weights": shards_of(trainer.model), "started": len(started)}


def shards_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("world_size", [1, 2])
def test_running_ahead_changes_no_bit(tmp_path: Path, world_size: int) -> None:
    write_tiny(tmp_path / "data")
    simple, ahead = (run_on_ranks(world_size, train, str(tmp_path / "data"), one) for one in (False, True))
    for one, other in zip(simple, ahead, strict=True):
        assert other["losses"] == one["losses"]
        assert other["weights"].keys() == one["weights"].keys()
        assert all(torch.equal(other["weights"][name], weight) for name, weight in one["weights"].items())
        assert other["started"] == STEPS + 2, "every batch once, one ahead, and the one in between"


def test_a_cpu_takes_the_simple_loop(tmp_path: Path) -> None:
    dataset = write_tiny(tmp_path / "data")
    with runtime(RuntimeConfig(device="cpu", threads=1)) as here:
        assert tiny_trainer(dataset, tmp_path, here).steps.pipeline is None


@pytest.mark.gpu
def test_a_gpu_runs_ahead_with_the_same_results(tmp_path: Path) -> None:
    dataset = write_tiny(tmp_path / "data")
    with runtime(RuntimeConfig(device="cuda")) as here:
        losses = []
        for ahead in (True, False):
            trainer = tiny_trainer(dataset, tmp_path, here)
            assert trainer.steps.pipeline is not None
            batches = tiny_batches(dataset)
            if ahead:
                found = [trainer.steps.step(batches, step)[0] for step in range(STEPS)]
            else:
                found = [trainer.steps.train_step(next(batches), step) for step in range(STEPS)]
            losses.append([list(values.values()) for values in found])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=0)
