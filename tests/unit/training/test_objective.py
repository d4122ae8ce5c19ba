"""The objective against a slow twin in float64: columns, logQ, masks, weights; one rank and two; every loss and source.

The twin walks over pairs and columns one by one. It knows what a batch says (ids, shares, expected draws, blocked ids)
and nothing of chunks, gathers or sorted lists.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from tests.ranks import run_on_ranks
from tests.tiny import PRODUCTS, QUERIES, TASKS, tiny_schema, write_tiny
from torchrec_mt.batch import Batch
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import (
    InBatch,
    Memory,
    Named,
    NegativesConfig,
    NegativeSource,
    Popularity,
    StreamingFrequencies,
    Uniform,
)
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.distributed.runtime import RuntimeConfig, runtime
from torchrec_mt.models.losses.config import BceLoss, Loss, LossConfig, MarginLoss, SoftmaxLoss
from torchrec_mt.models.losses.terms import Comparison, task_loss
from torchrec_mt.models.two_tower import Vectors
from torchrec_mt.training import objective as objective_module
from torchrec_mt.training.agreement import pair_rules
from torchrec_mt.training.job import task_sides
from torchrec_mt.training.objective import Objective

INVERSE_TEMPERATURE = 5.0
SOURCES: dict[str, tuple[NegativeSource, ...]] = {
    "in_batch": (InBatch(),),
    "uniform": (Uniform(count=7),),
    "popularity": (Popularity(count=7),),
    "memory": (Memory(size=40, max_age=3, warmup=1), Uniform(count=2)),
    "memory alone": (Memory(size=40, max_age=3, warmup=1),),
    "named": (Named(count=2),),
    "all": (InBatch(), Uniform(count=7), Popularity(count=3), Memory(size=30, warmup=0), Named(count=2)),
}
LOSSES: dict[str, Loss] = {
    "softmax": SoftmaxLoss(),
    "symmetric": SoftmaxLoss(symmetric=True),
    "smoothed": SoftmaxLoss(label_smoothing=0.1),
    "graded": SoftmaxLoss(grades="linear"),
    "bce": BceLoss(),
    "margin": MarginLoss(),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreparedDataset]:
    """The tiny dataset, and this process as a group of one rank."""
    with runtime(RuntimeConfig(device="cpu", threads=1)):
        yield write_tiny(tmp_path_factory.mktemp("tiny") / "data")


def vectors_of(batch: Batch) -> Vectors:
    """Unit vectors by id, with gradient; the same in every call."""
    generator, sizes = torch.Generator().manual_seed(1), {"query": QUERIES, "product": PRODUCTS}
    anchor, candidate = (
        {
            name: normalize(torch.randn(size, 8, generator=generator), dim=1).requires_grad_()
            for name, size in sizes.items()
        }
        for _ in range(2)
    )
    rows = batch.entities["product"].id_E
    return Vectors(
        anchor={name: anchor[TASKS[name][0]][pairs.anchor_id_B] for name, pairs in batch.pairs.items()},
        candidate={name: candidate["product"][pairs.candidate_id_B] for name, pairs in batch.pairs.items()},
        private={
            name: candidate["product"][rows[pairs.private.row_BH]]
            for name, pairs in batch.pairs.items()
            if pairs.private is not None
        },
        negative={"product": candidate["product"][batch.negatives["product"].id_M]},
        inverse_temperature={name: torch.tensor(INVERSE_TEMPERATURE, requires_grad=True) for name in batch.pairs},
        bias={name: torch.tensor(0.3, requires_grad=True) for name in batch.pairs},
        entity={},
    )


def batches(
    dataset: PreparedDataset, negatives: NegativesConfig, losses: LossConfig, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    weights = np.random.default_rng(rank).random((100, 3, 36)).astype(np.float32)
    for step, batch in enumerate(reader_of(dataset, negatives, losses, rank, world_size)):
        pairs = {
            name: replace(one, weight_B=torch.from_numpy(weights[step, number, : len(one.weight_B)]))
            for number, (name, one) in enumerate(batch.pairs.items())
        }
        yield replace(batch, pairs=pairs)


def reader_of(
    dataset: PreparedDataset,
    negatives: NegativesConfig,
    losses: LossConfig,
    rank: int,
    world_size: int,
    lanes: int | None = None,
    batch_size: int = 36,
) -> Reader:
    return Reader(
        ReaderConfig(batch_size=batch_size, prefetch=0),
        dataset,
        tiny_schema(),
        negatives=negatives,
        rules=pair_rules(losses, tiny_schema()),
        seed=0,
        rank=rank,
        world_size=world_size,
        lanes=lanes,
    )


def objective_of(dataset: PreparedDataset, negatives: NegativesConfig, losses: LossConfig) -> Objective:
    return Objective(task_sides(dataset.manifest, tiny_schema()), losses, negatives, torch.device("cpu"))


class Column(NamedTuple):
    """What an anchor is compared with. pair: number of the pair that put it there, -1 for a draw."""

    pair: int
    vector_D: Tensor
    id_: int
    count: float


def columns_of(parts: list[Batch], name: str, *, in_batch: bool) -> list[Column]:
    """Columns of one task from the batches of all ranks: their pairs, their draws."""
    pairs_of_all = sum(len(part.pairs[name].weight_B) for part in parts)
    draws, pairs, drawn = (pairs_of_all - 1) * in_batch, [], []
    for part in parts:
        one, vectors = part.pairs[name], vectors_of(part)
        for b, id_ in enumerate(one.candidate_id_B.tolist()):
            count = draws * float(one.share_B[b]) + float(one.drawn_B[b])
            pairs.append(Column(len(pairs), vectors.candidate[name][b], id_, count))
        places = [m for start, stop in one.stretches for m in range(start, stop)]
        for m in places:
            count = draws * float(one.share_M[m]) + float(one.drawn_M[m])
            id_ = int(part.negatives["product"].id_M[m])
            drawn.append(Column(-1, vectors.negative["product"][m], id_, count))
    return (pairs if in_batch else []) + drawn


@torch.no_grad()
def twin(parts: list[Batch], name: str, negatives: NegativesConfig) -> float:
    """The softmax loss of one task over the batches of all ranks, for shared columns of pairs and draws."""
    in_batch = any(isinstance(source, InBatch) for source in negatives.of(name))
    columns, every = columns_of(parts, name, in_batch=in_batch), columns_of(parts, name, in_batch=True)
    draws = sum(column.pair >= 0 for column in columns) - 1 if in_batch else 0
    corrected, pair, loss, weight = negatives.logq != "off", -1, 0.0, 0.0
    for part in parts:
        one, vectors = part.pairs[name], vectors_of(part)
        blocked = set(zip(one.blocked.owner_L.tolist(), one.blocked.id_L.tolist(), strict=True))
        for b in range(len(one.weight_B)):
            pair += 1
            anchor_D = INVERSE_TEMPERATURE * vectors.anchor[name][b].double()
            positive = float(anchor_D @ every[pair].vector_D.double())
            if negatives.logq == "standard":
                positive -= math.log(draws * float(one.share_B[b]) + float(one.drawn_B[b]))
            logits = [positive]
            for column in columns:
                left_out = column.pair == pair if negatives.mask == "none" else (b, column.id_) in blocked
                if not left_out:
                    logits.append(float(anchor_D @ column.vector_D.double()) - corrected * math.log(column.count))
            if one.private is not None:
                for hard_D, log_count in zip(
                    vectors.private[name][b], one.private.log_count_BH[b].tolist(), strict=True
                ):
                    if log_count != math.inf:
                        logits.append(float(anchor_D @ hard_D.double()) - corrected * log_count)
            loss += float(one.weight_B[b]) * (math.log(sum(map(math.exp, logits))) - positive)
            weight += float(one.weight_B[b])
    private = 0 if one.private is None else one.private.row_BH.shape[1]
    return loss / weight / math.log(PRODUCTS if corrected else len(columns) + private + 1)


TWINNED = (InBatch(), Uniform(count=8), Popularity(count=3), Named(count=2))


@pytest.mark.parametrize("mask", ["known", "own", "none"])
@pytest.mark.parametrize("logq", ["refined", "standard", "off"])
def test_one_rank_against_the_twin(dataset: PreparedDataset, logq: Any, mask: Any) -> None:
    negatives = NegativesConfig(
        sources=(InBatch(), Popularity(count=5)),
        tasks={"find": TWINNED, "alike": (Uniform(count=9),)},
        logq=logq,
        mask=mask,
    )
    losses = LossConfig(precision="float32")
    objective = objective_of(dataset, negatives, losses)
    for step, batch in enumerate(islice(batches(dataset, negatives, losses), 2)):
        found = objective(vectors_of(batch), batch, step)
        assert list(found) == list(TASKS)
        for name, loss in found.items():
            assert loss.item() == pytest.approx(twin([batch], name, negatives), rel=1e-5)


def losses_of_rank(folder: str, mask: Any, *, shared: bool = False) -> list[float]:
    """L_r of every task on this rank of two, which have a lane each or share one."""
    negatives, losses = NegativesConfig(sources=TWINNED[:3], mask=mask), LossConfig(precision="float32")
    dataset = PreparedDataset.open(folder)
    batch = next(batches(dataset, negatives, losses, dist.get_rank(), 2))
    if shared:
        batch = shared_lane(dataset, negatives, dist.get_rank(), 2)
    return [loss.item() for loss in objective_of(dataset, negatives, losses)(vectors_of(batch), batch, 0).values()]


def losses_of_ranks(folder: str) -> dict[str, list[float]]:
    return {
        **{mask: losses_of_rank(folder, mask) for mask in ("known", "none")},
        **{f"shared, {mask}": losses_of_rank(folder, mask, shared=True) for mask in ("known", "none")},
    }


def shared_lane(dataset: PreparedDataset, negatives: NegativesConfig, rank: int, world_size: int) -> Batch:
    """One lane of 11 pairs of each task and of 17 draws, which two ranks share as 5 and 6, 8 and 9."""
    reader = reader_of(dataset, negatives, LossConfig(), rank, world_size, lanes=1, batch_size=33)
    return next(iter(reader))


def test_the_mean_over_ranks_is_the_loss_of_all_pairs(dataset: PreparedDataset) -> None:
    found = run_on_ranks(2, losses_of_ranks, str(dataset.path))
    for mask in ("known", "none"):
        negatives: Any = NegativesConfig(sources=TWINNED[:3], mask=mask)
        parts = [next(batches(dataset, negatives, LossConfig(), rank, 2)) for rank in range(2)]
        wanted = [twin(parts, name, negatives) for name in TASKS]
        first, second = (one[mask] for one in found)
        assert first != second, "each rank has its own anchors"
        np.testing.assert_allclose(np.mean([first, second], axis=0), wanted, rtol=1e-5)
        whole = shared_lane(dataset, negatives, 0, 1)
        first, second = (one[f"shared, {mask}"] for one in found)
        wanted = [twin([whole], name, negatives) for name in TASKS]
        np.testing.assert_allclose(np.mean([first, second], axis=0), wanted, rtol=1e-5)


@pytest.mark.parametrize("frequencies", ["manifest", "streaming"])
@pytest.mark.parametrize("sources", list(SOURCES))
@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_loss_runs_with_every_source(dataset: PreparedDataset, loss: str, sources: str, frequencies: str) -> None:
    chosen = tuple(source for source in SOURCES[sources] if not isinstance(source, Named)) or (InBatch(),)
    shares: Any = {"frequencies": StreamingFrequencies(buckets=64)} if frequencies == "streaming" else {}
    negatives = NegativesConfig(sources=chosen, tasks={"find": SOURCES[sources]}, **shares)
    # Only the pairs of 'find' have grades.
    chosen_losses: Any = {"tasks": {"find": LOSSES[loss]}} if loss == "graded" else {"default": LOSSES[loss]}
    losses = LossConfig(**chosen_losses, precision="float32")
    objective = objective_of(dataset, negatives, losses)
    for step, batch in enumerate(islice(batches(dataset, negatives, losses), 3)):
        vectors = vectors_of(batch)
        found = objective(vectors, batch, step)
        assert all(math.isfinite(value.item()) and value.item() >= 0 for value in found.values())
        inputs = [*vectors.anchor.values(), *vectors.candidate.values(), *vectors.inverse_temperature.values()]
        gradients = torch.autograd.grad(torch.stack(list(found.values())).sum(), inputs, allow_unused=True)
        assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)
    assert gradients[0] is not None, "the anchors of 'find' learn"
    assert float(gradients[0].abs().sum()) > 0


@pytest.mark.parametrize("sources", ["in_batch", "uniform", "all"])
def test_unmasked_only_the_own_place_is_blocked(
    dataset: PreparedDataset, sources: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Comparison] = []

    def spy(loss: Loss, compared: Comparison, dtype: torch.dtype) -> Tensor:
        seen.append(compared)
        return task_loss(loss, compared, dtype)

    monkeypatch.setattr(objective_module, "task_loss", spy)
    negatives, losses = (
        NegativesConfig(sources=(InBatch(),), tasks={"find": SOURCES[sources]}, mask="none"),
        LossConfig(),
    )
    batch = next(batches(dataset, negatives, losses))
    objective_of(dataset, negatives, losses)(vectors_of(batch), batch, 0)
    blocked, anchors = seen[0].blocked, len(batch.pairs["find"].weight_B)
    own = [] if sources == "uniform" else list(range(anchors))
    assert blocked.row_L.tolist() == blocked.column_L.tolist() == own
    assert torch.equal(seen[0].column_CD[own], seen[0].positive_BD[own])
