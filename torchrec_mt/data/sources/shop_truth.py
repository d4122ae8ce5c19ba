"""What the synthetic shop knows about itself: for each anchor the candidates by their true probability.

The truth of the test period, so cold products are in it. A score is the probability that one more choice is this
candidate: a click of a search of the query; a view of a session that holds the anchor; a thing put to a basket whose
main product is the anchor. The anchor itself is left out. Ranking by score is therefore the best possible ranking.

Shapes: A anchors (or kinds of anchors), J segments of a mixture, D depth.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from torchrec_mt.data.sources.shop_catalogue import Catalogue, product_ids
from torchrec_mt.data.sources.shop_choice import CLUSTER, Pool, rankings
from torchrec_mt.data.sources.shop_config import SyntheticShop
from torchrec_mt.data.sources.shop_queries import Queries, query_ids

_ANCHORS_AT_ONCE = 10_000
_KINDS_AT_ONCE = 2_000


def search_truth(config: SyntheticShop, queries: Queries, pool: Pool) -> Iterator[pa.RecordBatch]:
    """truth_search.parquet: query_id, product_id, score."""
    key_A, kind_Q = np.unique(queries.key_Q, return_inverse=True)
    kinds = _rank_kinds(
        pool, key_A[:, None], np.full((len(key_A), 1), 1 - config.click_noise), config.click_noise, config.truth_depth
    )
    names = ("query_id", "product_id", "score")
    yield from _rows(names, kind_Q, kinds, config.truth_depth, query_ids(config.queries), config, without_anchor=False)


def similar_truth(config: SyntheticShop, catalogue: Catalogue, pool: Pool) -> Iterator[pa.RecordBatch]:
    """truth_similar.parquet: anchor_id, candidate_id, score.

    Views of a session are independent given its cluster k: m_k(c) = (1 - e) p_k(c) + e w(c), with noise share e and
    popularity w(c) = P(k) p_k(c). Given that one view is `a`, the chance that another is `c` is
    sum_k P(k) m_k(a) m_k(c) / w(a) = (1 - e)^2 p(c | cluster of a) + (1 - (1 - e)^2) w(c).
    """
    key_A, kind_N = np.unique(catalogue.cluster_N, return_inverse=True)
    share = (1 - config.view_noise) ** 2
    kinds = _rank_kinds(pool, key_A[:, None], np.full((len(key_A), 1), share), 1 - share, config.truth_depth + 1)
    names = ("anchor_id", "candidate_id", "score")
    yield from _rows(
        names, kind_N, kinds, config.truth_depth, product_ids(config.products), config, without_anchor=True
    )


def complement_truth(config: SyntheticShop, catalogue: Catalogue, pool: Pool) -> Iterator[pa.RecordBatch]:
    """truth_complement.parquet: anchor_id, candidate_id, score. The anchor is a basket's main product."""
    key_A, kind_N = np.unique(catalogue.cluster_N, return_inverse=True)
    leaf_A, style_A = np.divmod(key_A - catalogue.keys.offsets[CLUSTER], catalogue.keys.styles)
    accessory_AJ = catalogue.accessory_LJ[leaf_A]
    key_AJ = catalogue.keys.key(CLUSTER, accessory_AJ, style_A[:, None], np.zeros_like(accessory_AJ))
    share_AJ = (1 - config.basket_noise) * catalogue.accessory_share_LJ[leaf_A]
    kinds = _rank_kinds(pool, key_AJ, share_AJ, config.basket_noise, config.truth_depth + 1)
    names = ("anchor_id", "candidate_id", "score")
    yield from _rows(
        names, kind_N, kinds, config.truth_depth, product_ids(config.products), config, without_anchor=True
    )


def _rank_kinds(
    pool: Pool, key_AJ: np.ndarray, share_AJ: np.ndarray, noise: float, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    blocks = [
        rankings(pool, key_AJ[i : i + _KINDS_AT_ONCE], share_AJ[i : i + _KINDS_AT_ONCE], noise, depth)
        for i in range(0, len(key_AJ), _KINDS_AT_ONCE)
    ]
    return np.concatenate([product for product, _ in blocks]), np.concatenate([score for _, score in blocks])


def _rows(
    names: tuple[str, str, str],
    kind_A: np.ndarray,
    kinds: tuple[np.ndarray, np.ndarray],
    depth: int,
    anchor_ids: pa.Array,
    config: SyntheticShop,
    *,
    without_anchor: bool,
) -> Iterator[pa.RecordBatch]:
    """The ranking of each anchor is that of its kind, without itself: rows by anchor, best candidate first."""
    candidates = product_ids(config.products)
    for begin in range(0, len(kind_A), _ANCHORS_AT_ONCE):
        kind = kind_A[begin : begin + _ANCHORS_AT_ONCE]
        anchor = np.arange(begin, begin + len(kind))[:, None]
        product, score = kinds[0][kind], kinds[1][kind]
        keep = (product >= 0) & ~(without_anchor & (product == anchor))
        keep &= np.cumsum(keep, axis=1) <= depth
        columns = [
            pa.DictionaryArray.from_arrays(
                pa.array(np.broadcast_to(anchor, keep.shape)[keep].astype(np.int32)), anchor_ids
            ),
            pa.DictionaryArray.from_arrays(pa.array(product[keep].astype(np.int32)), candidates),
            pa.array(score[keep]),
        ]
        yield pa.RecordBatch.from_arrays(columns, names=list(names))
