"""A catalogue in parts on ranks is ranked bit by bit as one that is whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import run_on_ranks
from tests.tiny import PRODUCTS, tiny_schema, write_tiny
from torchrec_mt.data.collate import Collator
from torchrec_mt.distributed.collectives import rank_and_size
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.retrieval.encode import Part, anchors_of, encode, encode_part
from torchrec_mt.retrieval.rank import ShardedCatalogue, rank_anchors
from torchrec_mt.retrieval.topk import exact_topk
from torchrec_mt.training.assemble import build_model

CPU = torch.device("cpu")
CANDIDATES, ANCHORS, K = 30_011, 70, 50
pytestmark = pytest.mark.timeout(600)


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Anchors and candidates; some candidates are equal, so that ties lie across the parts."""
    generator = torch.Generator().manual_seed(7)
    candidate_ND = torch.nn.functional.normalize(torch.randn(CANDIDATES, 16, generator=generator), dim=1)
    candidate_ND[::1000] = candidate_ND[5]
    return torch.nn.functional.normalize(candidate_ND[:ANCHORS] + 0.1, dim=1), candidate_ND


def rank_in_parts() -> dict[str, Any]:
    """On every rank: the best of the whole catalogue; anchors are the first candidates and leave themselves out."""
    anchor_ND, candidate_ND = vectors()
    rank, world_size = rank_and_size()
    edges = [0, *sorted({1 + rank * 7001 for rank in range(world_size - 1)}), CANDIDATES]  # of very different sizes
    first, last = edges[rank], edges[rank + 1]
    catalogue = ShardedCatalogue(Part(first, candidate_ND[first:last]), CPU)
    scores, rows = catalogue.topk(anchor_ND, K)
    ranked = rank_anchors(anchor_ND, np.arange(ANCHORS), catalogue, K, exclude_self=True)
    return {"scores": scores, "rows": rows, "ranked": torch.from_numpy(ranked(np.arange(ANCHORS), K))}


def encode_in_parts(folder: str, kind: str) -> dict[str, Any]:
    """On every rank: vectors of all products, and of this rank's in a file."""
    dataset = write_tiny(Path(folder) / f"{rank_and_size()}")
    here = Runtime(*rank_and_size(), CPU)
    model, _ = build_model(
        dataset.manifest,
        tiny_schema(),
        ModelConfig(dim=8),
        ShardingConfig(default=kind),
        losses=LossConfig(),
        runtime=here,
        seed=3,
        batch_rows=64,
        table_rate=0.0,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            # Equal on every rank, whoever holds which rows: the sharded tables start differently.
            parameter.copy_(torch.linspace(-1, 1, parameter.shape[-1]).expand(parameter.shape))
    collator, every = Collator(dataset), np.arange(PRODUCTS)
    whole_ND = encode(model, collator, "product", every, device=CPU, block=7)
    part = encode_part(model, collator, "product", every, device=CPU, block=7, folder=Path(folder))
    anchor_ND = encode(model, collator, "query", np.array([3, 1, 4]), side=anchors_of("find"), device=CPU, block=2)
    return {"whole": whole_ND, "first": part.first, "part": part.vector_PD.clone(), "anchors": anchor_ND}


def test_parts_are_ranked_as_the_whole() -> None:
    expected_scores, expected_rows = exact_topk(*vectors(), K)
    without = exact_topk(*vectors(), K, exclude_B=torch.arange(ANCHORS))[1]
    for world_size in (1, 3):
        for found in run_on_ranks(world_size, rank_in_parts):
            assert torch.equal(found["scores"], expected_scores)
            assert torch.equal(found["rows"], expected_rows)
            assert torch.equal(found["ranked"], without)


@pytest.mark.parametrize("kind", ["table_wise", "data_parallel"])
def test_ranks_encode_the_same_bits(kind: str, tmp_path: Path) -> None:
    (alone,) = run_on_ranks(1, encode_in_parts, str(tmp_path), kind)
    assert torch.equal(alone["whole"], alone["part"])
    three = run_on_ranks(3, encode_in_parts, str(tmp_path), kind)
    for found in three:
        assert torch.equal(found["whole"], alone["whole"])
        assert torch.equal(found["anchors"], alone["anchors"])
    assert torch.equal(torch.cat([found["part"] for found in three]), alone["whole"])
    assert [found["first"] for found in three] == sorted(found["first"] for found in three)
