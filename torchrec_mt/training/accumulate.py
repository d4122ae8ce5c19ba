"""Several batches, one update: all are looked up at once, then towers and losses run batch by batch.

With an optimizer fused into the backward, every backward through a table is an update of it. So each batch's backward
ends at the looked-up features, and their gradients go into the tables in one backward at the end. What is saved is the
memory of towers and losses; the looked-up features and their gradients are held for all batches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from torchrec_mt.batch import Batch
from torchrec_mt.distributed.sharding import pad_features
from torchrec_mt.models.embeddings import Embeddings
from torchrec_mt.models.two_tower import entity_ranges


class JoinedLookup:
    """One lookup for several batches. Read `of` each, run its backward, then `backward` once.

    The model around the tables must be called without DDP, which would expect one backward for each forward: the caller
    averages the dense gradients over ranks.
    """

    def __init__(self, embeddings: Embeddings, batches: Sequence[Batch]) -> None:
        self._embeddings, self._batches = embeddings, batches
        strides = [batch.features.stride() for batch in batches]
        self._pooled = embeddings.look_up(pad_features(join_rows([batch.features for batch in batches])))
        # The last part is the padding, if there is any.
        sizes = [*strides, len(next(iter(self._pooled.values()))) - sum(strides)]
        self._parts = {
            key: [part.detach().requires_grad_() for part in pooled_ED.split(sizes)]
            for key, pooled_ED in self._pooled.items()
        }

    def of(self, position: int) -> dict[str, list[Tensor]]:
        """The features of one of the batches, as `Embeddings` gives them."""
        own = {key: parts[position] for key, parts in self._parts.items()}
        return self._embeddings.by_entity(own, entity_ranges(self._batches[position]))

    def backward(self) -> None:
        """The one backward through the tables."""
        gradients = [
            torch.cat([torch.zeros_like(part) if part.grad is None else part.grad for part in parts])
            for parts in self._parts.values()
        ]
        torch.autograd.backward(list(self._pooled.values()), gradients)


def join_rows(features: Sequence[KeyedJaggedTensor]) -> KeyedJaggedTensor:
    """The rows of several tensors of the same keys, one after the other."""
    keys = features[0].keys()
    order = [
        part
        for key in range(len(keys))
        for part in (slice(each.offset_per_key()[key], each.offset_per_key()[key + 1]) for each in features)
    ]
    owners = list(features) * len(keys)
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([each.values()[part] for each, part in zip(owners, order, strict=True)]),
        weights=torch.cat([each.weights()[part] for each, part in zip(owners, order, strict=True)]),
        lengths=torch.cat([each.lengths().view(len(keys), -1) for each in features], dim=1).flatten(),
    )
