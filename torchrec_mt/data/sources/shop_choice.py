"""How the synthetic shop chooses: first a segment of the catalogue, then a product in it by popularity.

Every event of the shop is such a choice (`Pool.draw`, used by shop_events), so the probability of any product is known
and the best ranking is exact (`rankings`, used by shop_truth).

Shapes: N products, B draws, A kinds of anchor, J segments a kind chooses from, D depth of a ranking.
"""

from dataclasses import dataclass

import numpy as np

LEAF, CLUSTER, LEAF_BRAND, CLUSTER_BRAND, EVERYTHING = range(5)
"""Levels of segments: leaf; leaf and style (substitutes); leaf and brand; all three; the whole catalogue."""


@dataclass(frozen=True)
class SegmentKeys:
    """Numbers the segments of all levels in one range."""

    leaves: int
    styles: int
    brands: int

    @property
    def offsets(self) -> np.ndarray:
        """First key of each level, and the number of keys."""
        sizes = (
            self.leaves,
            self.leaves * self.styles,
            self.leaves * self.brands,
            self.leaves * self.styles * self.brands,
            1,
        )
        return np.concatenate([[0], np.cumsum(sizes)])

    def key(self, level: int, leaf: np.ndarray, style: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Keys of segments of one level; attributes that the level does not fix are ignored."""
        cluster = leaf * self.styles + style
        inside = (leaf, cluster, leaf * self.brands + slot, cluster * self.brands + slot, np.zeros_like(leaf))[level]
        return self.offsets[level] + inside


class Pool:
    """The products on sale in one period, ready to be drawn from any segment.

    Args:
        keys: how segments are numbered.
        key_LN: the segment of each product on each level.
        weight_N: popularity; 0 for what is not on sale.
    """

    def __init__(self, keys: SegmentKeys, key_LN: np.ndarray, weight_N: np.ndarray) -> None:
        self.keys, self.key_LN = keys, key_LN
        self.weight_N = weight_N / weight_N.sum()
        levels, products = key_LN.shape
        member = np.tile(np.arange(products), levels)
        weight, key = np.tile(self.weight_N, levels), key_LN.ravel()
        order = np.lexsort((member, -weight, key))
        self.member = member[order]
        self._below = np.concatenate([[0.0], np.cumsum(weight[order])])
        bounds = np.searchsorted(key[order], np.arange(keys.offsets[-1] + 1))
        self.start = bounds[:-1]
        self.size = np.bincount(key[weight > 0], minlength=len(self.start))
        self.total = np.bincount(key, weights=weight, minlength=len(self.start))

    @property
    def everything(self) -> int:
        """Key of the segment of all products."""
        return int(self.keys.offsets[EVERYTHING])

    def draw(self, rng: np.random.Generator, key_B: np.ndarray) -> np.ndarray:
        """One product per segment key, by popularity: product_B. Segments must not be empty."""
        first_B = self.start[key_B]
        last_B = first_B + self.size[key_B] - 1
        low_B, high_B = self._below[first_B], self._below[last_B + 1]
        place_B = np.searchsorted(self._below, low_B + rng.random(len(key_B)) * (high_B - low_B), side="right") - 1
        return self.member[np.clip(place_B, first_B, last_B)]

    def draw_noisy(self, rng: np.random.Generator, key_B: np.ndarray, noise: float) -> np.ndarray:
        """As `draw`, but a share of choices is made from the whole catalogue."""
        return self.draw(rng, np.where(rng.random(len(key_B)) < noise, self.everything, key_B))

    def top(self, key_A: np.ndarray, depth: int) -> np.ndarray:
        """The most popular products of segments, best first: product_AD, -1 where there are no more."""
        place_D = np.arange(depth)
        place_AD = np.minimum(self.start[key_A][:, None] + place_D, len(self.member) - 1)
        return np.where(place_D < self.size[key_A][:, None], self.member[place_AD], -1)


def rankings(
    pool: Pool, key_AJ: np.ndarray, share_AJ: np.ndarray, noise: float, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best products by probability, for choices from a mixture of segments and noise.

    A product c has probability `sum_j share_j * [c in segment j] * weight_c / total_j + noise * weight_c`. The best
    `depth` are among the best of each segment and the best of the catalogue: whatever is outside of all of these has
    `depth` products above it.

    Args:
        key_AJ: segments without common products. share_AJ: probability of choosing each; 0 for none.
        noise: probability of choosing from the whole catalogue.

    Returns:
        product_AD, and its probability score_AD: best first, ties by product; -1 and 0.0 where there are no more.
    """
    inside = pool.top(key_AJ.ravel(), depth).reshape(*key_AJ.shape, depth)
    inside = np.where(share_AJ[:, :, None] > 0, inside, -1)
    scale = share_AJ / np.maximum(pool.total[key_AJ], np.finfo(float).tiny)
    inside_score = pool.weight_N[inside] * (scale[:, :, None] + noise)

    best_D = pool.top(np.array([pool.everything]), depth)[0]
    best_D = best_D[best_D >= 0]
    level_AJ = np.searchsorted(pool.keys.offsets, key_AJ, side="right") - 1
    taken = pool.key_LN[level_AJ[:, :, None], best_D] == key_AJ[:, :, None]
    taken_AD = (taken & (share_AJ[:, :, None] > 0)).any(axis=1)
    outside = np.where(taken_AD | (noise == 0), -1, best_D)

    product = np.concatenate([inside.reshape(len(key_AJ), -1), outside], axis=1)
    score = np.concatenate([inside_score.reshape(len(key_AJ), -1), noise * pool.weight_N[outside]], axis=1)
    score = np.where(product < 0, 0.0, score)
    order = np.lexsort((product, -score), axis=-1)[:, :depth]
    return np.take_along_axis(product, order, axis=1), np.take_along_axis(score, order, axis=1)
