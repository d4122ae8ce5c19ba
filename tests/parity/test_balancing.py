"""Balancing is the same on two ranks as on one, and equals plain PyTorch: a backward of each task by itself for its
gradient at the cut, then one of the weighted sum. Tables are updated once a step.

Weights are compared, losses, what is told of gradients, and the model after all steps. Weights have the same bits on
all ranks. At the vectors, an entity that two ranks hold is two rows; so ranks take halves of the entities there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.parity.parts import PARTS, PartMaker
from tests.parity.signals import Signal, mine_at_random, signals
from tests.ranks import run_on_ranks
from tests.saved import load_model, save_model
from tests.tiny import PRODUCTS, QUERIES, TASKS, tiny_schema, write_tiny
from tests.tiny_trainer import MODEL, OPTIM, tiny_trainer
from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.balancing.methods import Famo, GradNorm, Mgda, NashMtl, PcGrad, Static, UpGrad
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import TaskPairs
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import InBatch, NegativesConfig
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import table_kernels
from torchrec_mt.models.two_tower import TwoTower
from torchrec_mt.training.assemble import model_spec
from torchrec_mt.training.cut import told
from torchrec_mt.training.job import task_sides
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.schedule import ConstantSchedule
from torchrec_mt.training.trainer import Trainer

pytestmark = pytest.mark.timeout(900)
STEPS, WORLD_SIZES = 3, (1, 2)
SHARDING = ShardingConfig(default="row_wise", tables={"product_id": "table_wise"})
STEADY = replace(OPTIM, table_rate=0.1, dense_rate=0.01, schedule=ConstantSchedule(warmup_steps=0))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way to balance. `batches`: of a step. `depth`: of the towers."""

    config: BalancingConfig
    batches: int = 1
    rows_at_once: int = 0
    depth: int = 1


CASES = {
    "static": Case(config=BalancingConfig(weights={"alike": 0.5})),
    "tower": Case(config=BalancingConfig(method=UpGrad(), average=0.5)),
    "vectors": Case(config=BalancingConfig(method=UpGrad(), cut="vectors", every=2)),
    "no_blocks": Case(config=BalancingConfig(method=GradNorm(rate=0.2)), depth=0),
    "slices": Case(config=BalancingConfig(method=Mgda()), rows_at_once=7),
    "losses": Case(config=BalancingConfig(method=Famo(rate=1.0), weights={"find": 2.0})),
    "joined_tower": Case(config=BalancingConfig(method=PcGrad()), batches=2),
    "joined_vectors": Case(config=BalancingConfig(method=NashMtl(), cut="vectors"), batches=2),
}


class HalvesMaker(PartMaker):
    """The first two parts have pairs of the first half of all entities alone, the others of the second."""

    def __init__(self, dataset: PreparedDataset, signal: Signal) -> None:
        super().__init__(dataset, signal)
        self._halves = [
            {
                name: {key: column[half_of(name, rows) == half] for key, column in rows.items()}
                for name, rows in self._rows.items()
            }
            for half in (0, 1)
        ]

    def part(self, step: int, part: int) -> tuple[dict[str, TaskPairs], np.ndarray]:
        self._rows = self._halves[part // 2]
        return super().part(step, part)


def half_of(task: str, rows: dict[str, np.ndarray]) -> np.ndarray:
    """Of each pair 0 where both ends are in the first half, 1 where they are in the second, -1 otherwise."""
    anchor, candidate = (
        rows[end] >= {"query": QUERIES, "product": PRODUCTS}[entity] // 2
        for end, entity in zip(("anchor", "candidate"), TASKS[task], strict=True)
    )
    return np.where(anchor == candidate, anchor, -1)


def signal_of(folder: Path, case: Case) -> Signal:
    usual = signals(folder)["usual"]
    # Drawn negatives are on both ranks.
    alone = NegativesConfig(sources=(InBatch(),))
    return replace(usual, negatives=alone) if case.config.cut == "vectors" else usual


def parts_of(folder: Path, case: Case) -> list[list[Batch]]:
    """This rank's share of every batch of every step."""
    rank, share = dist.get_rank(), PARTS // dist.get_world_size()
    kind = HalvesMaker if case.config.cut == "vectors" else PartMaker
    maker = kind(PreparedDataset.open(folder / "data"), signal_of(folder, case))
    mine = range(rank * share, (rank + 1) * share)
    return [[maker.batch(case.batches * step + n, mine) for n in range(case.batches)] for step in range(STEPS)]


def trainer_of(folder: Path, case: Case) -> Trainer:
    """From the same weights on any number of ranks (one rank makes them)."""
    here = Runtime(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    signal, dataset = signal_of(folder, case), PreparedDataset.open(folder / "data")
    trainer = tiny_trainer(
        dataset,
        folder / "unused",
        here,
        losses=signal.losses,
        negatives=signal.negatives,
        sharding=SHARDING,
        optim=STEADY,
        balancing=case.config,
        model_config=replace(MODEL, rows_at_once=case.rows_at_once, depth=case.depth),
    )
    start = folder / f"start-{case.depth}"
    if not start.exists():
        assert here.world_size == 1
        save_model(trainer.model, start)
    load_model(trainer.model, start)
    return trainer


@contextmanager
def counting_collectives() -> Iterator[dict[str, int]]:
    counts = {"all_reduce": 0, "all_gather": 0}

    def counted(name: str) -> Any:
        function = getattr(dist, name)

        def call(*arguments: Any, **named: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **named)

        return call

    with (
        patch.object(dist, "all_reduce", counted("all_reduce")),
        patch.object(dist, "all_gather", counted("all_gather")),
    ):
        yield counts


def train_all(path: str) -> dict[str, Any]:
    return {name: train(Path(path), name) for name in CASES}


def train(folder: Path, name: str) -> dict[str, Any]:
    """What was told, losses and table updates by step. Leaves the weights in the folder."""
    case = CASES[name]
    trainer = trainer_of(folder, case)
    updates = [0] * len(table_kernels(trainer.model))
    for position, kernel in enumerate(table_kernels(trainer.model)):

        def watch(module: Any, arguments: Any, pooled: Tensor, position: int = position) -> None:
            def count(gradient: Tensor) -> None:
                updates[position] += 1

            pooled.register_hook(count)

        kernel.register_forward_hook(watch)
    found: dict[str, Any] = {"losses": [], "told": [], "updates": updates}
    with counting_collectives() as counts:
        for step, batches in enumerate(parts_of(folder, case)):
            steps = trainer.steps
            losses = steps.train_step(batches[0], step) if case.batches == 1 else steps.train_joined(batches, step)
            found["losses"].append(losses)
            found["told"].append(steps.weighing.told())
    save_model(trainer.model, folder / f"{name}-{dist.get_world_size()}")
    return found | {"collectives": counts}


def train_plainly(path: str) -> dict[str, Any]:
    folder = Path(path)
    for depth in {case.depth for case in CASES.values()}:
        trainer_of(folder, Case(config=BalancingConfig(), depth=depth))
        dcp_to_torch_save(folder / f"start-{depth}", folder / f"start-{depth}.pt")
    return {name: train_one_plainly(folder, case) for name, case in CASES.items()}


def train_one_plainly(folder: Path, case: Case) -> dict[str, Any]:
    """By the plain module: a backward for each task and batch, Adam, row-wise Adagrad by hand."""
    signal, dataset = signal_of(folder, case), PreparedDataset.open(folder / "data")
    spec = model_spec(dataset.manifest, tiny_schema(), signal.losses)
    plain = TwoTower(spec, replace(MODEL, depth=case.depth), device=torch.device("cpu"))
    plain.load_state_dict(torch.load(folder / f"start-{case.depth}.pt", weights_only=True)["model"])
    sides = task_sides(dataset.manifest, tiny_schema())
    objective = Objective(sides, signal.losses, signal.negatives, torch.device("cpu"))
    balancer = Balancer(case.config, list(TASKS))
    tables = {name: table for name, table in plain.named_parameters() if ".embedding_bags." in name}
    adam = torch.optim.Adam([w for n, w in plain.named_parameters() if n not in tables], lr=STEADY.dense_rate)
    momentum = {name: torch.zeros(len(table)) for name, table in tables.items()}
    found: dict[str, Any] = {"losses": [], "told": []}
    for step, batches in enumerate(parts_of(folder, case)):
        made = [plain(batch) for batch in batches]
        each = [objective(vectors, batch, step) for vectors, batch in zip(made, batches, strict=True)]
        mean = {name: torch.stack([loss[name] for loss in each]).mean() for name in each[0]}
        entities = [x_ED for vectors in made for x_ED in vectors.entity.values()]
        at = entities if case.config.cut == "vectors" else last_weights(plain, case.depth)
        rows = []
        for loss in mean.values():
            for tensor in at:
                tensor.retain_grad()
                tensor.grad = None
            loss.backward(retain_graph=True)
            gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in at]
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        jacobian = torch.stack(rows).double()
        gram = (jacobian @ jacobian.T).tolist()
        losses = {name: loss.item() for name, loss in mean.items()}
        before = balancer.weights
        balancer.update(list(losses.values()), gram if balancer.looks_at_gradients(step) else None)
        weights = balancer.weights if case.batches == 1 else before
        plain.zero_grad()
        torch.stack([weights[name] * loss for name, loss in mean.items()]).sum().backward()
        found["losses"].append(losses)
        found["told"].append({f"weight/{name}": value for name, value in weights.items()} | told(gram, list(TASKS)))
        adam.step()
        with torch.no_grad():
            for name, table in tables.items():
                assert table.grad is not None
                momentum[name] += table.grad.square().mean(dim=1)
                table -= STEADY.table_rate * table.grad / (momentum[name].sqrt() + 1e-8)[:, None]
    return found | {"weights": {name: value.detach() for name, value in plain.state_dict().items()}}


def last_weights(plain: TwoTower, depth: int) -> list[torch.nn.Parameter]:
    weights, last = dict(plain.named_parameters()), f"blocks.{depth - 1}.down" if depth else "mix"
    return [weights[f"towers.of_{entity}.{last}.weight"] for entity in ("query", "product")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("balancing")
    mine_at_random(write_tiny(folder / "data"), folder / "mined")
    [plain] = run_on_ranks(1, train_plainly, str(folder))
    return {"folder": folder, "plain": plain} | {
        str(size): run_on_ranks(size, train_all, str(folder)) for size in WORLD_SIZES
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", WORLD_SIZES)
def test_equals_plain_pytorch_on_any_number_of_ranks(trained: dict[str, Any], size: int, name: str) -> None:
    plain, ranks = trained["plain"][name], [rank[name] for rank in trained[str(size)]]
    for found in ranks:
        assert found["updates"] == [STEPS] * len(found["updates"]), "one update of every table a step"
        for what in ("losses", "told", "collectives"):
            assert found[what] == ranks[0][what], "the same bits and as many collectives on every rank"
        for step in range(STEPS):
            assert found["losses"][step] == pytest.approx(plain["losses"][step], rel=1e-4)
            assert found["told"][step] == pytest.approx(plain["told"][step], rel=2e-3, abs=2e-4)
    path = trained["folder"] / f"{name}-{size}"
    dcp_to_torch_save(path, path / "whole.pt")
    weights = torch.load(path / "whole.pt", weights_only=True)["model"]
    assert weights.keys() == plain["weights"].keys()
    for key, wanted in plain["weights"].items():
        tolerance = 1e-5 + 1e-3 * wanted.abs().max().item()
        torch.testing.assert_close(weights[key], wanted, rtol=0, atol=tolerance, msg=lambda m, n=key: f"{n}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_what_was_compared(trained: dict[str, Any], name: str) -> None:
    told_by_step = trained["1"][0][name]["told"]
    moved = any(line["weight/find"] != told_by_step[0]["weight/find"] for line in told_by_step)
    assert moved == (not isinstance(CASES[name].config.method, Static))
    cosines = {key: [line[key] for line in told_by_step] for key in told_by_step[0] if key.startswith("cosine/")}
    assert len(cosines) == 3
    assert min(abs(value) for values in cosines.values() for value in values) > 1e-6
