"""Models of tables alone, on meta tensors, for planning."""

import random
from collections.abc import Sequence

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.modules.embedding_configs import DataType

from torchrec_mt.distributed.plans.choices import Allowed
from torchrec_mt.distributed.sharding import fuse_table_optimizer
from torchrec_mt.distributed.table_optimizers import TableOptimizer
from torchrec_mt.schema import TABLE_PREFIX


class OfTables(nn.Module):
    """Tables of (rows, dim), named 0, 1, ..., each read by one key."""

    def __init__(
        self, shapes: Sequence[tuple[int, int]], optimizer: TableOptimizer | None = None, *, half: bool = False
    ) -> None:
        super().__init__()
        self.collection = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=f"{TABLE_PREFIX}{number}",
                    num_embeddings=rows,
                    embedding_dim=dim,
                    feature_names=[f"key{number}"],
                    data_type=DataType.FP16 if half else DataType.FP32,
                )
                for number, (rows, dim) in enumerate(shapes)
            ],
        )
        fuse_table_optimizer(self.collection, 0.1, optimizer)


def random_tables(count: int, seed: int, *, most_rows: float = 7.5) -> tuple[list[tuple[int, int]], list[float]]:
    """Shapes of unlike tables, and how many rows each looks up."""
    draw = random.Random(seed)
    shapes = [(int(10 ** draw.uniform(3, most_rows)), draw.choice([32, 64, 128, 256])) for _ in range(count)]
    return shapes, [round(draw.uniform(1, 40), 1) for _ in range(count)]


def all_allowed(ways: Sequence[tuple[str, str]], lookups: Sequence[float]) -> dict[str, Allowed]:
    """The same ways for every table."""
    return {
        f"{TABLE_PREFIX}{number}": Allowed(ways=tuple(ways), lookups=(mean,)) for number, mean in enumerate(lookups)
    }
