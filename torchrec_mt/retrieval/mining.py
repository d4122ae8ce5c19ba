"""Hard negatives: candidates that the model ranks high for an anchor although no training pair says so.

Legend: B anchors of a chunk, N anchors (or candidates), K how deep is looked, L known candidates or negatives found, D
width.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from torchrec_mt.data.links import Links
from torchrec_mt.data.mined import MinedTask
from torchrec_mt.distributed.collectives import gather, gather_numbers, sum_over_ranks
from torchrec_mt.retrieval.excluded import Excluded
from torchrec_mt.retrieval.topk import Catalogue

_FIRST_LOOK, _DEEPER = 8, 8
"""How deep is looked at first, in numbers of negatives that are kept; and how much deeper where too few were found."""
_PLACES_AT_ONCE = 1 << 22


def mine_task(
    anchor_ND: Tensor,
    candidate_ND: Tensor,
    id_N: np.ndarray,
    known: Links,
    *,
    anchors: int,
    same_entity: bool,
    depth: int,
    per_anchor: int,
    margin: float,
    chunk: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> MinedTask:
    """The best-ranked candidates of each anchor that are not known to go with it and stay a margin below those that do.

    Args:
        anchor_ND, id_N: vectors of the anchors to mine for, and their catalogue rows, ascending. candidate_ND: vectors
            of the whole catalogue.
        known: candidates of each anchor in training. anchors: number of anchor entities.
        depth: how deep to look; beyond the catalogue is all of it. per_anchor: negatives kept, the best-ranked. margin:
            a negative's cosine is at least this much below the mean cosine of the anchor's known candidates (so that
            unlabelled positives stay out: RocketQA, Qu et al., NAACL 2021, calls it denoising).
    """
    depth, catalogue = min(depth, len(candidate_ND)), Catalogue(candidate_ND)
    position_L, row_L, done = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    waiting_N, look = np.arange(len(id_N)), min(depth, _FIRST_LOOK * per_anchor)
    while len(waiting_N):
        deeper = []
        for here_B in _chunks(waiting_N, min(chunk, max(1, _PLACES_AT_ONCE // look))):
            id_B, vector_BD = id_N[here_B], anchor_ND[torch.from_numpy(here_B).to(anchor_ND.device)]
            itself = Excluded.one_each(torch.from_numpy(id_B)) if same_entity else None
            scores_BK, rows_BK = (x.cpu().numpy() for x in catalogue.topk(vector_BD, look, excluded=itself))
            owner_L, known_L = known.of(id_B)
            limit_B = _mean_cosine(vector_BD, candidate_ND, owner_L, known_L) - margin
            good_BK = (rows_BK >= 0) & (scores_BK <= limit_B[:, None]) & ~_contains(owner_L, known_L, rows_BK)
            good_BK &= good_BK.cumsum(axis=1, dtype=np.int32) <= per_anchor
            settled_B = (good_BK.sum(axis=1) >= per_anchor) | (look == depth)
            found_L, place_L = np.nonzero(good_BK & settled_B[:, None])
            position_L.append(here_B[found_L])
            row_L.append(rows_BK[found_L, place_L])
            deeper.append(here_B[~settled_B])
            done += int(settled_B.sum())
            if progress:
                progress(done, len(id_N))
        waiting_N, look = np.concatenate(deeper), min(depth, look * _DEEPER)
    position, row = np.concatenate(position_L), np.concatenate(row_L)
    order = np.lexsort((row, position))  # rows ascending within an anchor
    return MinedTask(np.bincount(id_N[position], minlength=anchors), row[order])


def _chunks(row_N: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (row_N[start : start + size] for start in range(0, len(row_N), size))


def of_all_ranks(own: MinedTask, device: torch.device) -> MinedTask:
    """What all ranks mined, on every rank: each for anchors of its own, those of later ranks behind those of earlier.

    Args:
        device: where ranks talk.
    """
    counts = [int(count) for (count,) in gather_numbers([len(own.id_L)], device)]
    length_N = sum_over_ranks(torch.from_numpy(own.length_N).to(device))
    id_L = gather(torch.from_numpy(own.id_L).to(device), counts)
    return MinedTask(length_N.cpu().numpy(), id_L.cpu().numpy())


def _contains(owner_L: np.ndarray, id_L: np.ndarray, rows_BK: np.ndarray) -> np.ndarray:
    """Whether each row is among the entries of its anchor."""
    width = int(max(id_L.max(initial=0), rows_BK.max(initial=0))) + 1
    return np.isin(np.arange(len(rows_BK))[:, None] * width + np.maximum(rows_BK, 0), owner_L * width + id_L)


def _mean_cosine(vector_BD: Tensor, candidate_ND: Tensor, owner_L: np.ndarray, id_L: np.ndarray) -> np.ndarray:
    """Mean cosine of each anchor's known candidates, which hangs on no other anchor; without any, no limit."""
    owner, ids = torch.from_numpy(owner_L).to(vector_BD.device), torch.from_numpy(id_L).to(vector_BD.device)
    cosine_L = torch.cat(
        [
            (vector_BD[o].double() * candidate_ND[i].double()).sum(dim=1)
            for o, i in zip(owner.split(1 << 17), ids.split(1 << 17), strict=True)
        ]
    )
    sum_B = np.bincount(owner_L, weights=cosine_L.cpu().numpy(), minlength=len(vector_BD))
    count_B = np.bincount(owner_L, minlength=len(vector_BD))
    return np.where(count_B > 0, sum_B / np.maximum(count_B, 1), np.inf)
