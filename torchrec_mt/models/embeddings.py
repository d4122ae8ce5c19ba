"""The embedding tables of a dataset as one EmbeddingBagCollection, and the way from its output to features per entity.

First stage of the model: KeyedJaggedTensor over E rows -> pooled_EFD per entity. One collection, looked up once per
step: with an optimizer fused into its backward every lookup would be an update.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.embedding_configs import DataType

from torchrec_mt.models.spec import Lookup, TableSpec, names_of_lookups
from torchrec_mt.schema import TABLE_PREFIX


def embedding_collection(tables: Sequence[TableSpec], device: torch.device) -> EmbeddingBagCollection:
    """Sum-pooled weighted tables (bags come with weights that sum to 1), rows initialised N(0, 1 / dim).

    With a deviation of 1 / sqrt(dim) a row has length about 1, so that the identity path of the towers starts at the
    scale of their output.
    """
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=TABLE_PREFIX + table.name,
                num_embeddings=table.rows,
                embedding_dim=table.dim,
                feature_names=list(table.keys),
                pooling=PoolingType.SUM,
                init_fn=_Normal(table.dim),
                data_type=DataType.FP16 if table.dtype == "float16" else DataType.FP32,
            )
            for table in tables
        ],
        is_weighted=True,
        device=device,
    )


class _Normal:
    """N(0, 1 / dim) rows; a class, since TorchRec deep-copies and pickles table configs."""

    def __init__(self, dim: int) -> None:
        self._std = dim**-0.5

    def __call__(self, weight: Tensor) -> None:
        nn.init.normal_(weight, std=self._std)


class Embeddings(nn.Module):
    """Looks up all keys once and hands each entity its own features.

    Args:
        lookups: per entity, those of its sparse features, in tower order.
    """

    def __init__(
        self, tables: Sequence[TableSpec], lookups: Mapping[str, Sequence[Lookup]], device: torch.device
    ) -> None:
        super().__init__()
        self.collection = embedding_collection(tables, device)
        names = names_of_lookups(tables)
        self._names = {entity: [names[lookup] for lookup in wanted] for entity, wanted in lookups.items()}

    def forward(self, features: KeyedJaggedTensor, ranges: Mapping[str, tuple[int, int]]) -> dict[str, list[Tensor]]:
        """pooled_ED of each sparse feature of each entity named in `ranges` (rows [start, stop) of the batch)."""
        return self.by_entity(self.look_up(features), ranges)

    def look_up(self, features: KeyedJaggedTensor) -> dict[str, Tensor]:
        """pooled_ED of each lookup, by TorchRec's name of it."""
        # By name: under table-wise sharding the columns of the output are ordered by rank.
        return self.collection(features).to_dict()

    def by_entity(self, pooled: Mapping[str, Tensor], ranges: Mapping[str, tuple[int, int]]) -> dict[str, list[Tensor]]:
        """The features of each entity named in `ranges`, from `look_up`'s."""
        return {
            entity: [pooled[name][start:stop] for name in self._names[entity]]
            for entity, (start, stop) in ranges.items()
        }
