"""Vectors of whole entities from the model, by blocks, every rank encoding its part; and the model as a ranker."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.collectives import gather, rank_and_size
from torchrec_mt.distributed.sharding import pad_rows
from torchrec_mt.errors import UserError
from torchrec_mt.retrieval.evaluator import EvaluateConfig, split_anchors
from torchrec_mt.retrieval.topk import exact_topk


def encode(
    model: nn.Module,
    collator: Collator,
    entity: str,
    id_N: np.ndarray,
    *,
    task: str | None = None,
    device: torch.device,
    block: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Unit vectors of entities, as candidates (task None) or as anchors of a task: vector_ND on every rank.

    Args:
        id_N: catalogue rows. block: entities per rank and forward pass.

    Raises:
        UserError: on every rank, vectors that are no finite numbers: training went wrong.
    """
    rank, world_size = rank_and_size()
    training, parts = model.training, []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(id_N), block * world_size):
            ids = id_N[start : start + block * world_size]
            share = -(-len(ids) // world_size)
            # Every rank encodes equally many; the last ones repeat an id and are cut off again.
            own = np.resize(ids, share * world_size)[rank * share : (rank + 1) * share]
            batch = pad_rows(collator.entities(entity, own).to(device))
            vectors = model(batch, {} if task is None else {task: entity})
            local_ED = vectors.negative[entity] if task is None else vectors.anchor[task]
            parts.append(gather(local_ED)[: len(ids)])
            if progress:
                progress(min(start + len(ids), len(id_N)), len(id_N))
    model.train(training)
    vector_ND = torch.cat(parts)
    _check_finite(vector_ND, entity if task is None else f"{entity}, as anchors of '{task}'")
    return vector_ND


def _check_finite(vector_ND: Tensor, what: str) -> None:
    broken = int((~torch.isfinite(vector_ND)).any(dim=1).sum())
    if broken:
        raise UserError(
            f"{broken} of {len(vector_ND)} vectors of {what} are no finite numbers: the weights have diverged; train "
            "again with a lower optim.table_rate or optim.dense_rate, or look for extreme numbers in the data",
            exit_code=1,
        )


class ModelRanker:
    """Ranks the whole catalogue for anchors of one task by the model's vectors.

    Args:
        anchor_ND: vectors of the anchors in `id_N` (sorted catalogue rows). candidate_ND: vectors of the whole
            catalogue.
        exclude_self: leave the anchor itself out of its candidates.
    """

    def __init__(self, id_N: np.ndarray, anchor_ND: Tensor, candidate_ND: Tensor, *, exclude_self: bool) -> None:
        self._id_N, self._anchor_ND, self._candidate_ND, self._exclude = id_N, anchor_ND, candidate_ND, exclude_self

    def __call__(self, anchor_B: np.ndarray, k: int) -> np.ndarray:
        """Best candidates of each anchor, best first: rows_BK."""
        position_B = torch.from_numpy(np.searchsorted(self._id_N, anchor_B)).to(self._anchor_ND.device)
        exclude_B = torch.from_numpy(anchor_B).to(self._anchor_ND.device) if self._exclude else None
        _, rows_BK = exact_topk(self._anchor_ND[position_B], self._candidate_ND, k, exclude_B=exclude_B)
        return rows_BK.cpu().numpy()


def model_rankers(
    model: nn.Module,
    collator: Collator,
    dataset: PreparedDataset,
    tasks: Sequence[str],
    config: EvaluateConfig,
    device: torch.device,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, ModelRanker]:
    """A ranker per task: each catalogue is encoded once, then every task's anchors. Called on every rank.

    Args:
        progress: told what is encoded, how much of it, of how much.
    """

    def told(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    info = dataset.manifest.tasks
    candidate_ND = {
        entity: encode(
            model,
            collator,
            entity,
            np.arange(dataset.manifest.entities[entity].count),
            device=device,
            progress=told(entity),
        )
        for entity in dict.fromkeys(info[name].candidate for name in tasks)
    }
    rankers = {}
    for name in tasks:
        task = info[name]
        id_N = split_anchors(dataset, name, config)
        anchor_ND = encode(
            model,
            collator,
            task.anchor,
            id_N,
            task=task.trained_as or name,
            device=device,
            progress=told(f"{name} anchors"),
        )
        rankers[name] = ModelRanker(
            id_N, anchor_ND, candidate_ND[task.candidate], exclude_self=task.anchor == task.candidate
        )
    return rankers
