"""One training step: forward, gather, losses per task, one backward, one update.

Ranks hold disjoint anchors and share all candidates. With L_r = W * sum over own anchors of w * loss / sum over all
anchors of w, the mean over ranks is the weighted mean over all anchors, and the mean is what DDP and TorchRec take of
gradients.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec_mt.batch import Batch
from torchrec_mt.distributed.collectives import gather, sum_over_ranks
from torchrec_mt.models.losses import blocked_columns, sampled_softmax
from torchrec_mt.models.two_tower import Vectors


@dataclass(frozen=True)
class TaskSides:
    """Entities of a task, as far as the loss must know."""

    candidate: str
    same_entity: bool


def task_losses(vectors: Vectors, batch: Batch, tasks: dict[str, TaskSides]) -> dict[str, Tensor]:
    """L_r of every task on this rank (its mean over ranks is the task's loss over the batch of all ranks)."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    negative_CD = {entity: gather(vector_MD) for entity, vector_MD in vectors.negative.items()}
    negative_id_C = {entity: gather(negatives.id_M) for entity, negatives in batch.negatives.items()}
    losses = {}
    for name, sides in tasks.items():
        pairs = batch.pairs[name]
        pair_candidate_id_P = gather(pairs.candidate_id_B)
        column_id_C = torch.cat([pair_candidate_id_P, negative_id_C[sides.candidate]])
        own_column_B = torch.arange(len(pairs.weight_B), device=column_id_C.device) + rank * len(pairs.weight_B)
        loss_B = sampled_softmax(
            vectors.anchor[name],
            torch.cat([gather(vectors.candidate[name]), negative_CD[sides.candidate]]),
            own_column_B,
            torch.cat([gather(pairs.log_count_B), gather(pairs.negative_log_count_M)]),
            blocked_columns(
                pairs.anchor_id_B,
                gather(pairs.anchor_id_B),
                pair_candidate_id_P,
                column_id_C,
                own_column_B,
                same_entity=sides.same_entity,
            ),
            vectors.inverse_temperature[name],
        )
        weight = sum_over_ranks(pairs.weight_B.sum()).clamp(min=1e-12)
        losses[name] = world_size * (loss_B * pairs.weight_B).sum() / weight
    return losses
