"""The model as a ranker: each rank scores its part of the catalogue, and the parts' best are merged.

Legend: B anchors of a chunk, N anchors of a task, K depth, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.collectives import gather, rank_and_size, sum_over_ranks
from torchrec_mt.retrieval.encode import Part, Side, anchors_of, candidates_of, encode, encode_part
from torchrec_mt.retrieval.evaluator import EvaluateConfig, split_anchors
from torchrec_mt.retrieval.excluded import Excluded
from torchrec_mt.retrieval.keys import best_keys, scores_and_rows, shifted_keys
from torchrec_mt.retrieval.topk import Catalogue

_ANCHORS_AT_ONCE = 4096


class ShardedCatalogue:
    """A catalogue of which every rank holds a part. Each method is called on every rank, with the same arguments.

    Args:
        part: this rank's vectors; together the parts are the catalogue.
    """

    def __init__(self, part: Part, device: torch.device) -> None:
        self._first, self._device = part.first, device
        self._own = Catalogue(part.vector_PD, device=device)
        self.candidates = int(sum_over_ranks(torch.tensor(len(part.vector_PD), device=device)))

    def topk(self, anchor_BD: Tensor, k: int, excluded: Excluded | None = None) -> tuple[Tensor, Tensor]:
        """As `Catalogue.topk`: scores_BK and rows_BK of the whole catalogue, the same bits on any number of ranks."""
        excluded = excluded or Excluded.nothing(self._device)
        inside_L = excluded.row_L >= self._first
        own = Excluded(excluded.owner_L, torch.where(inside_L, excluded.row_L - self._first, -1))
        key_BK = shifted_keys(self._own.keys(anchor_BD, k, own, None), self._first)
        _, world_size = rank_and_size()
        if world_size > 1:
            key_BK = best_keys(gather(key_BK).view(world_size, *key_BK.shape).transpose(0, 1).flatten(1), k)
        return scores_and_rows(key_BK)


class ModelRanker:
    """A task's ranking by the model, made beforehand.

    Args:
        id_N: the anchors, as ascending catalogue rows. rows_NK: their candidates, best first. candidates: how many
            there are.
    """

    def __init__(self, id_N: np.ndarray, rows_NK: np.ndarray, candidates: int) -> None:
        self._id_N, self._rows_NK, self._candidates = id_N, rows_NK, candidates

    def __call__(self, anchor_B: np.ndarray, k: int) -> np.ndarray:
        """Best candidates of each anchor, best first: rows_BK.

        Raises:
            ValueError: more than was ranked.
        """
        ranked = self._rows_NK.shape[1]
        if min(k, self._candidates) > ranked:
            raise ValueError(f"{k} candidates an anchor are asked for, {ranked} were ranked")
        rows_BK = self._rows_NK[np.searchsorted(self._id_N, anchor_B), :k]
        return np.pad(rows_BK, ((0, 0), (0, max(0, k - ranked))), constant_values=-1)


def rank_anchors(
    anchor_ND: Tensor,
    id_N: np.ndarray,
    catalogue: ShardedCatalogue,
    depth: int,
    *,
    exclude_self: bool,
    progress: Callable[[int, int], None] | None = None,
) -> ModelRanker:
    """The `depth` best candidates of every anchor, the anchor itself left out on wish. Called on every rank."""
    depth, parts = min(depth, catalogue.candidates), []
    for start in range(0, len(id_N), _ANCHORS_AT_ONCE):
        here = slice(start, start + _ANCHORS_AT_ONCE)
        own = Excluded.one_each(torch.from_numpy(id_N[here]).to(anchor_ND.device)) if exclude_self else None
        parts.append(catalogue.topk(anchor_ND[here], depth, own)[1].cpu().numpy())
        if progress:
            progress(min(start + _ANCHORS_AT_ONCE, len(id_N)), len(id_N))
    return ModelRanker(id_N, np.concatenate([np.zeros((0, depth), np.int64), *parts]), catalogue.candidates)


def model_rankers(
    model: nn.Module,
    collator: Collator,
    dataset: PreparedDataset,
    tasks: Sequence[str],
    config: EvaluateConfig,
    device: torch.device,
    *,
    depths: Mapping[str, int],
    folder: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, ModelRanker]:
    """A ranker per task: each catalogue is encoded once (once a task, where candidates have a vector per task), then
    every task's anchors. Called on every rank.

    Args:
        depths: how deep each task's anchors are ranked. folder: where catalogues' vectors lie in files; none is memory.
        progress: told what is done, how much of it, of how much.
    """

    def told(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    info = dataset.manifest.tasks
    spaces: dict[tuple[str, Side], list[str]] = {}
    for name in tasks:
        side = candidates_of(model, info[name].trained_as or name)
        spaces.setdefault((info[name].candidate, side), []).append(name)
    rankers = {}
    for (entity, side), names in spaces.items():
        every, what = np.arange(dataset.manifest.entities[entity].count), entity
        if side.task is not None:
            what = f"{entity} of {side.task}"
        part = encode_part(model, collator, entity, every, side=side, device=device, folder=folder, progress=told(what))
        catalogue = ShardedCatalogue(part, device)
        for name in names:
            task, id_N, anchors = (
                info[name],
                split_anchors(dataset, name, config),
                anchors_of(info[name].trained_as or name),
            )
            anchor_ND = encode(
                model, collator, task.anchor, id_N, side=anchors, device=device, progress=told(f"{name} anchors")
            )
            rankers[name] = rank_anchors(
                anchor_ND,
                id_N,
                catalogue,
                depths[name],
                exclude_self=task.anchor == task.candidate,
                progress=told(f"{name} ranking"),
            )
    return {name: rankers[name] for name in tasks}
