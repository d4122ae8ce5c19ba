"""What ranked lists are like beyond being right: coverage, novelty, popularity, diversity, other categories.

Stands beside `metrics`: the same ranked rows, but nobody asks what is relevant. Every measure looks at the first k
places. Empty places (-1) are left out, a repeated item counts once; a list where nothing is left to measure has no
value: NaN. A category of -1 is unknown: `unknown_categories` counts what the measures of categories leave out.

Legend: B anchors, K ranks, N products of the catalogue.
"""

from collections.abc import Iterator

import numpy as np

from torchrec_mt.retrieval.metrics import row_blocks


def coverage(ranked_BK: np.ndarray, k: int, num_products: int) -> float:
    """Share of the catalogue that stands in at least one list (Ge et al., RecSys 2010).

    Args:
        ranked_BK: product rows, best first, -1 padded. num_products: size of the catalogue, at least 1.

    Raises:
        ValueError: k < 1.
    """
    return float(covered(ranked_BK, k, num_products).mean())


def covered(ranked_BK: np.ndarray, k: int, num_products: int) -> np.ndarray:
    """Which products of the catalogue stand in at least one list: stands_N, to be joined (or) over parts of the lists.

    Raises:
        ValueError: k < 1.
    """
    stands_N = np.zeros(num_products, bool)
    for _, item_BK in _lists(ranked_BK, k):
        stands_N[item_BK[item_BK >= 0]] = True
    return stands_N


def novelty(ranked_BK: np.ndarray, k: int, count_N: np.ndarray) -> np.ndarray:
    """Mean self-information of a list's products in bits: how surprising they are to who knows the popular ones.

    -log2 p of a product (Zhou et al., PNAS 2010; Vargas & Castells, RecSys 2011, without their discounts), where p is
    its share of the training pairs. One more pair is added to each product (Laplace), or one without pairs would be
    infinitely surprising.

    Args:
        ranked_BK: product rows, best first, -1 padded. count_N: training pairs of each product.

    Returns:
        bits_B; NaN for an empty list.

    Raises:
        ValueError: k < 1.
    """
    count_N = count_N + 1.0
    return _mean(ranked_BK, k, -np.log2(count_N / count_N.sum()))


def popularity_lift(ranked_BK: np.ndarray, k: int, count_N: np.ndarray) -> np.ndarray:
    """How much more popular a list is than what is chosen anyway: 0 as popular as the training pairs, 1 twice so.

    (q - p) / p (Abdollahpouri et al., RecSys 2020): q is the mean popularity of the list's products, p that of the
    products of the training pairs, a product being met there as often as it has pairs. An anchor need not have
    training pairs of its own, so p is one number for all of them; the mean of the lifts is the lift of the mean.

    Args:
        ranked_BK: product rows, best first, -1 padded. count_N: training pairs of each product, its popularity.

    Returns:
        lift_B, from -1; NaN for an empty list, and for all where there are no training pairs.

    Raises:
        ValueError: k < 1.
    """
    count_N = count_N.astype(np.float64)
    if not count_N.any():
        return np.full(len(ranked_BK), np.nan)
    return _mean(ranked_BK, k, count_N) / ((count_N**2).sum() / count_N.sum()) - 1


def diversity(ranked_BK: np.ndarray, k: int, category_N: np.ndarray) -> np.ndarray:
    """Intra-list diversity: share of the pairs of a list's products that are of different categories.

    The mean distance of two products of the list (Smyth & McClave, ICCBR 2001), which is 1 across categories, else 0.

    Args:
        ranked_BK: product rows, best first, -1 padded. category_N: of each product, -1 for unknown.

    Returns:
        share_B; NaN for a list with fewer than two products of known category.

    Raises:
        ValueError: k < 1.
    """
    share_B = np.full(len(ranked_BK), np.nan)
    for rows, item_BK in _lists(ranked_BK, k):
        category_BK = np.sort(_categories(item_BK, category_N), axis=1)
        # Place in the run of one's category: so many products before this one are of the same category.
        place_K = np.arange(category_BK.shape[1])
        begins_BK = np.diff(category_BK, axis=1, prepend=-2) != 0
        same_BK = place_K - np.maximum.accumulate(np.where(begins_BK, place_K, 0), axis=1)
        known_B = (category_BK >= 0).sum(axis=1)
        pairs_B = known_B * (known_B - 1) / 2
        share_B[rows] = 1 - np.where(category_BK >= 0, same_BK, 0).sum(axis=1) / np.where(pairs_B > 0, pairs_B, np.nan)
    return share_B


def cross_category(ranked_BK: np.ndarray, k: int, category_N: np.ndarray, anchor_category_B: np.ndarray) -> np.ndarray:
    """Share of a list's products that are of another category than the anchor.

    Args:
        ranked_BK: product rows, best first, -1 padded. category_N, anchor_category_B: of each product and each anchor,
            numbered alike, -1 for unknown.

    Returns:
        share_B among products of known category; NaN where the list has none or the anchor's category is unknown.

    Raises:
        ValueError: k < 1.
    """
    share_B = np.full(len(ranked_BK), np.nan)
    for rows, item_BK in _lists(ranked_BK, k):
        category_BK, own_B1 = _categories(item_BK, category_N), anchor_category_B[rows, None]
        known_BK = (category_BK >= 0) & (own_B1 >= 0)
        share_B[rows] = _ratio(known_BK & (category_BK != own_B1), known_BK)
    return share_B


def unknown_categories(ranked_BK: np.ndarray, k: int, category_N: np.ndarray) -> np.ndarray:
    """Products of each list whose category is unknown, which `diversity` and `cross_category` leave out: count_B.

    Raises:
        ValueError: k < 1.
    """
    count_B = np.zeros(len(ranked_BK), np.int64)
    for rows, item_BK in _lists(ranked_BK, k):
        count_B[rows] = ((item_BK >= 0) & (_categories(item_BK, category_N) < 0)).sum(axis=1)
    return count_B


def _lists(ranked_BK: np.ndarray, k: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The first k places of each list, block by block; a repeated item's later places are empty (-1)."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    ranked_BK = ranked_BK[:, :k]
    for rows in row_blocks(ranked_BK):
        item_BK = ranked_BK[rows].copy()
        sorted_BK = np.sort(item_BK, axis=1)
        repeats = np.flatnonzero(((sorted_BK[:, 1:] == sorted_BK[:, :-1]) & (sorted_BK[:, 1:] >= 0)).any(axis=1))
        if len(repeats):
            some = item_BK[repeats]
            order = np.argsort(some, axis=1, kind="stable")
            some = np.take_along_axis(some, order, axis=1)
            again = np.diff(some, axis=1, prepend=-2) == 0
            np.put_along_axis(some, order, np.where(again, -1, some), axis=1)
            item_BK[repeats] = some
        yield rows, item_BK


def _categories(item_BK: np.ndarray, category_N: np.ndarray) -> np.ndarray:
    """Category at each place; -1 where it is unknown or the place is empty."""
    return np.where(item_BK >= 0, category_N[item_BK], -1)


def _mean(ranked_BK: np.ndarray, k: int, value_N: np.ndarray) -> np.ndarray:
    mean_B = np.full(len(ranked_BK), np.nan)
    for rows, item_BK in _lists(ranked_BK, k):
        mean_B[rows] = _ratio(np.where(item_BK >= 0, value_N[item_BK], 0.0), item_BK >= 0)
    return mean_B


def _ratio(value_BK: np.ndarray, among_BK: np.ndarray) -> np.ndarray:
    """Sum of the values of each row over the number of places they are taken from; NaN where there are none."""
    number_B = among_BK.sum(axis=1)
    return value_BK.sum(axis=1) / np.where(number_B > 0, number_B, np.nan)
