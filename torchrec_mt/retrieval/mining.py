"""Hard negatives: candidates that the model ranks high for an anchor although no training pair says so.

Legend: B anchors of a chunk, N anchors (or candidates), K depth, D width.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from torchrec_mt.data.links import Links
from torchrec_mt.data.mined import MinedTask
from torchrec_mt.retrieval.excluded import Excluded
from torchrec_mt.retrieval.topk import Catalogue


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
        depth: how deep to look. per_anchor: negatives kept, the best-ranked. margin: a negative's cosine is at least
            this much below the mean cosine of the anchor's known candidates (so that unlabelled positives stay out:
            RocketQA, Qu et al., NAACL 2021, calls it denoising).
    """
    length_N = np.zeros(anchors, np.int64)
    kept: list[np.ndarray] = []
    catalogue = Catalogue(candidate_ND)
    for start in range(0, len(id_N), chunk):
        id_B, vector_BD = id_N[start : start + chunk], anchor_ND[start : start + chunk]
        itself = Excluded.one_each(torch.from_numpy(id_B)) if same_entity else None
        scores_BK, rows_BK = (x.cpu().numpy() for x in catalogue.topk(vector_BD, depth, excluded=itself))
        owner_L, known_L = known.of(id_B)
        good_BK = (rows_BK >= 0) & ~_contains(owner_L, known_L, rows_BK)
        limit_B = _mean_cosine(vector_BD, candidate_ND, owner_L, known_L) - margin
        good_BK &= scores_BK <= limit_B[:, None]
        good_BK &= good_BK.cumsum(axis=1) <= per_anchor
        length_N[id_B] = good_BK.sum(axis=1)
        # Rows ascending within an anchor.
        rows = np.sort(np.where(good_BK, rows_BK, np.iinfo(np.int64).max), axis=1)
        kept.append(rows[rows < np.iinfo(np.int64).max])
        if progress:
            progress(min(start + chunk, len(id_N)), len(id_N))
    return MinedTask(length_N, np.concatenate(kept) if kept else np.zeros(0, np.int64))


def _contains(owner_L: np.ndarray, id_L: np.ndarray, rows_BK: np.ndarray) -> np.ndarray:
    """Whether each row is among the entries of its anchor."""
    width = int(max(id_L.max(initial=0), rows_BK.max(initial=0))) + 1
    return np.isin(np.arange(len(rows_BK))[:, None] * width + np.maximum(rows_BK, 0), owner_L * width + id_L)


def _mean_cosine(vector_BD: Tensor, candidate_ND: Tensor, owner_L: np.ndarray, id_L: np.ndarray) -> np.ndarray:
    """Mean cosine of each anchor's known candidates; without any, no limit."""
    owner, ids = torch.from_numpy(owner_L).to(vector_BD.device), torch.from_numpy(id_L).to(vector_BD.device)
    cosine_L = torch.cat(
        [
            (vector_BD[o] * candidate_ND[i]).sum(dim=1)
            for o, i in zip(owner.split(1 << 18), ids.split(1 << 18), strict=True)
        ]
    )
    sum_B = np.bincount(owner_L, weights=cosine_L.cpu().numpy(), minlength=len(vector_BD))
    count_B = np.bincount(owner_L, minlength=len(vector_BD))
    return np.where(count_B > 0, sum_B / np.maximum(count_B, 1), np.inf)
