"""A model saved under one sharding loads under any other, bit for bit, on another number of ranks too."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.ranks import run_on_ranks
from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.checkpoint import load_model, save_model

WORLD_SIZES = (2, 1)
KINDS = ["data_parallel", "row_wise", "data_parallel", "table_wise", "data_parallel"]


def save_and_load_in_turn(folder: str) -> None:
    """A new model of each kind reads what the one before it wrote, and writes it again."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dataset = PreparedDataset.open(f"{folder}/data")
    for turn, kind in enumerate(KINDS):
        model, _ = build_model(
            dataset.manifest,
            tiny_schema(),
            ModelConfig(dim=16, hidden=24, task_hidden=24),
            ShardingConfig(default=kind),
            losses=LossConfig(),
            runtime=Runtime(rank, world_size, torch.device("cpu")),
            seed=turn,
            batch_rows=100,
            table_rate=0.0,
        )
        before = Path(folder) / ("first" if turn == 0 else f"{world_size}-{turn - 1}")
        if before.exists():
            load_model(model, before)
        else:
            save_model(model, before)
        save_model(model, Path(folder) / f"{world_size}-{turn}")


def weights(path: Path) -> dict[str, Tensor]:
    dcp_to_torch_save(path, path / "whole.pt")
    return torch.load(path / "whole.pt", weights_only=True)["model"]


def test_weights_survive_every_change_of_sharding(tmp_path: Path) -> None:
    write_tiny(tmp_path / "data")
    for world_size in WORLD_SIZES:
        run_on_ranks(world_size, save_and_load_in_turn, str(tmp_path))
    first = weights(tmp_path / "first")
    tables = [value for name, value in first.items() if ".embedding_bags." in name]
    assert len(tables) == 3
    assert all(len(table.unique(dim=0)) == len(table) for table in tables), "equal rows could hide a permutation"
    for world_size in WORLD_SIZES:
        for turn in range(len(KINDS)):
            found = weights(tmp_path / f"{world_size}-{turn}")
            assert found.keys() == first.keys()
            for name, value in first.items():
                assert torch.equal(found[name], value), f"{name} after {KINDS[: turn + 1]} on {world_size} ranks"
