"""A step over several batches equals plain PyTorch's step of the mean of their losses, updates each table once, and is
the same on two ranks as on one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.parity.parts import PARTS, PartMaker
from tests.parity.signals import mine_at_random, signals
from tests.ranks import run_on_ranks
from tests.saved import load_model, save_model
from tests.tiny import tiny_schema, write_tiny
from tests.tiny_trainer import MODEL, OPTIM, tiny_trainer
from torchrec_mt.batch import Batch
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import table_kernels
from torchrec_mt.models.two_tower import TwoTower
from torchrec_mt.training.accumulate import join_rows
from torchrec_mt.training.assemble import model_spec
from torchrec_mt.training.job import task_sides
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.schedule import ConstantSchedule
from torchrec_mt.training.trainer import Trainer

STEPS, BATCHES = 4, 3
SHARDINGS = {
    "row_wise": ShardingConfig(default="row_wise"),
    "mixed": ShardingConfig(default="row_wise", tables={"product_id": "table_wise", "kind": "data_parallel"}),
}
STEADY = replace(OPTIM, table_rate=0.1, dense_rate=0.01, schedule=ConstantSchedule(warmup_steps=0))


def parts_of(folder: Path) -> list[list[Batch]]:
    """This rank's share of every batch of every step."""
    rank, share = dist.get_rank(), PARTS // dist.get_world_size()
    maker = PartMaker(PreparedDataset.open(folder / "data"), signals(folder)["usual"])
    mine = range(rank * share, (rank + 1) * share)
    return [[maker.batch(BATCHES * step + n, mine) for n in range(BATCHES)] for step in range(STEPS)]


def trainer_of(folder: Path, sharding: str) -> Trainer:
    """From the same weights on any number of ranks (one rank makes them)."""
    here = Runtime(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    signal, dataset = signals(folder)["usual"], PreparedDataset.open(folder / "data")
    trainer = tiny_trainer(
        dataset,
        folder / "unused",
        here,
        losses=signal.losses,
        negatives=signal.negatives,
        sharding=SHARDINGS[sharding],
        optim=STEADY,
    )
    if not (folder / "start").exists():
        assert here.world_size == 1
        save_model(trainer.model, folder / "start")
    load_model(trainer.model, folder / "start")
    return trainer


def train(path: str, sharding: str) -> dict[str, Any]:
    """Losses, lookups of each kernel, norms. Leaves the weights in the folder."""
    folder = Path(path)
    trainer = trainer_of(folder, sharding)
    seen = [0] * len(table_kernels(trainer.model))
    for position, kernel in enumerate(table_kernels(trainer.model)):

        def count(module: Any, arguments: Any, output: Any, position: int = position) -> None:
            seen[position] += 1

        kernel.register_forward_hook(count)
    losses, norms = [], []
    for step, batches in enumerate(parts_of(folder)):
        losses.append(trainer.steps.train_joined(batches, step))
        assert trainer.optimizers.gradient_norm is not None
        norms.append(trainer.optimizers.gradient_norm.item())
    save_model(trainer.model, folder / f"{sharding}-{dist.get_world_size()}")
    return {"losses": losses, "norms": norms, "lookups": seen}


def train_plainly(path: str) -> dict[str, Any]:
    """The same by the plain module: Adam, row-wise Adagrad by hand, the mean of the batches' losses."""
    folder = Path(path)
    signal, dataset = signals(folder)["usual"], PreparedDataset.open(folder / "data")
    trainer_of(folder, "row_wise")
    dcp_to_torch_save(folder / "start", folder / "start.pt")
    plain = TwoTower(model_spec(dataset.manifest, tiny_schema(), signal.losses), MODEL, device=torch.device("cpu"))
    plain.load_state_dict(torch.load(folder / "start.pt", weights_only=True)["model"])
    objective = Objective(
        task_sides(dataset.manifest, tiny_schema()), signal.losses, signal.negatives, torch.device("cpu")
    )
    tables = {name: table for name, table in plain.named_parameters() if ".embedding_bags." in name}
    dense = [weight for name, weight in plain.named_parameters() if name not in tables]
    adam = torch.optim.Adam(dense, lr=STEADY.dense_rate)
    momentum = {name: torch.zeros(len(table)) for name, table in tables.items()}
    losses, norms = [], []
    for step, batches in enumerate(parts_of(folder)):
        plain.zero_grad()
        each = [objective(plain(batch), batch, step) for batch in batches]
        mean = {name: torch.stack([loss[name] for loss in each]).mean() for name in each[0]}
        torch.stack(list(mean.values())).sum().backward()
        losses.append({name: loss.item() for name, loss in mean.items()})
        norms.append(torch.cat([weight.grad.flatten() for weight in dense if weight.grad is not None]).norm().item())
        adam.step()
        with torch.no_grad():
            for name, table in tables.items():
                assert table.grad is not None
                momentum[name] += table.grad.square().mean(dim=1)
                table -= STEADY.table_rate * table.grad / (momentum[name].sqrt() + 1e-8)[:, None]
    return {
        "losses": losses,
        "norms": norms,
        "weights": {name: value.detach() for name, value in plain.state_dict().items()},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("accumulate")
    mine_at_random(write_tiny(made / "data"), made / "mined")
    return made


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Any]:
    return run_on_ranks(1, train_plainly, str(folder))[0]


def weights_in(path: Path) -> dict[str, Tensor]:
    dcp_to_torch_save(path, path / "whole.pt")
    return torch.load(path / "whole.pt", weights_only=True)["model"]


@pytest.mark.parametrize(("sharding", "world_size"), [("row_wise", 1), ("row_wise", 2), ("mixed", 2)])
def test_equals_the_mean_of_the_batches(folder: Path, plain: dict[str, Any], sharding: str, world_size: int) -> None:
    ranks = run_on_ranks(world_size, train, str(folder), sharding)
    for found in ranks:
        assert found["lookups"] == [STEPS] * len(found["lookups"]), "one lookup, so one update, a step"
        assert (found["losses"], found["norms"]) == (ranks[0]["losses"], ranks[0]["norms"])
        for losses, wanted in zip(found["losses"], plain["losses"], strict=True):
            assert losses == pytest.approx(wanted, rel=1e-5)
    if sharding == "row_wise":  # a replicated table's gradients are part of the length
        assert ranks[0]["norms"] == pytest.approx(plain["norms"], rel=1e-4)
    weights = weights_in(folder / f"{sharding}-{world_size}")
    assert weights.keys() == plain["weights"].keys()
    for name, wanted in plain["weights"].items():
        tolerance = 1e-6 + 2e-5 * wanted.abs().max().item()
        torch.testing.assert_close(weights[name], wanted, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_rows_are_joined_in_order(folder: Path) -> None:
    made = PartMaker(PreparedDataset.open(folder / "data"), signals(folder)["usual"])
    parts = [made.batch(step, range(1 + step)).features for step in range(3)]
    joined = join_rows(parts)
    for key in joined.keys():  # noqa: SIM118
        rows = [row for part in parts for row in part[key].to_dense()]
        weights = [row for part in parts for row in part[key].to_dense_weights()]
        assert all(map(torch.equal, joined[key].to_dense(), rows))
        assert all(map(torch.equal, joined[key].to_dense_weights(), weights))
        assert len(joined[key].to_dense()) == len(rows)
