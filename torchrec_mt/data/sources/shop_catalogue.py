"""The synthetic shop's products: a tree of categories, brands, styles, popularity, titles, and what goes with what.

Second step of the shop: events (shop_events) and truth (shop_truth) only look at the arrays made here.

Shapes: N products, L leaf categories, J accessory leaves of a leaf.
"""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mt.data.sources.shop_choice import CLUSTER, Pool, SegmentKeys
from torchrec_mt.data.sources.shop_config import BEGIN, SyntheticShop
from torchrec_mt.data.sources.shop_words import Vocabulary, join_words, maybe, pick

LEAVES_PER_GROUP, GROUPS_PER_ROOT = 5, 3
LONGEST_ON_SALE = timedelta(days=1000)
_ACCESSORY_SHARES = np.array([0.6, 0.25, 0.15])
_US = timedelta(microseconds=1)


@dataclass(frozen=True)
class Catalogue:
    """All products as arrays; a product is its row, its id says nothing else.

    Args:
        leaf_N, style_N, slot_N: category, style, and brand as its place among the leaf's brands.
        weight_N: popularity (sums to 1): Zipf within the cluster of a leaf's style, clusters by their size.
        cold_N: launched when the test period begins.
        accessory_LJ: leaves whose products go with a leaf's products (directed: never both ways).
        accessory_share_LJ: how often each of them is chosen; 0 where a leaf has fewer.
        brand_LS: the brands of a leaf.
    """

    keys: SegmentKeys
    leaf_N: np.ndarray
    style_N: np.ndarray
    slot_N: np.ndarray
    weight_N: np.ndarray
    cold_N: np.ndarray
    accessory_LJ: np.ndarray
    accessory_share_LJ: np.ndarray
    brand_LS: np.ndarray

    @property
    def cluster_N(self) -> np.ndarray:
        """Segment key of each product's substitutes: same leaf, same style."""
        return self.keys.key(CLUSTER, self.leaf_N, self.style_N, self.slot_N)

    def pool(self, *, with_cold: bool) -> Pool:
        """What is on sale before (without cold products) or in the test period."""
        levels = [self.keys.key(level, self.leaf_N, self.style_N, self.slot_N) for level in range(5)]
        return Pool(self.keys, np.stack(levels), np.where(self.cold_N & (not with_cold), 0.0, self.weight_N))


def make_catalogue(config: SyntheticShop, rng: np.random.Generator) -> Catalogue:
    """Draws the structure of the shop. Every leaf has products of every style that are on sale from the beginning."""
    leaves, styles, brands = config.leaf_count, config.styles, config.brands_per_leaf
    clusters, products = leaves * styles, config.products
    size_share = _zipf(rng.permutation(leaves), 0.4)[:, None] * _zipf(
        rng.permuted(np.tile(np.arange(styles), (leaves, 1)), axis=1), 0.4
    )
    rest = rng.choice(clusters, size=products - clusters, p=(size_share / size_share.sum()).ravel())
    cold = np.zeros(products, dtype=bool)
    cold[clusters + rng.permutation(products - clusters)[: round(config.cold_share * products)]] = True
    shuffled = rng.permutation(products)
    cluster_N = np.concatenate([np.arange(clusters), rest])[shuffled]
    accessory_LJ, accessory_share_LJ = _accessories(rng, leaves)
    slot_share = _zipf(np.arange(brands), 0.5)
    return Catalogue(
        keys=SegmentKeys(leaves, styles, brands),
        leaf_N=cluster_N // styles,
        style_N=cluster_N % styles,
        slot_N=rng.choice(brands, size=products, p=slot_share / slot_share.sum()),
        weight_N=_popularity(rng, cluster_N, clusters, config.popularity_exponent),
        cold_N=cold[shuffled],
        accessory_LJ=accessory_LJ,
        accessory_share_LJ=accessory_share_LJ,
        brand_LS=np.argsort(rng.random((leaves, brand_count(config))), axis=1)[:, :brands],
    )


def brand_count(config: SyntheticShop) -> int:
    """Brands of the whole shop; a leaf carries `brands_per_leaf` of them."""
    return min(2 * config.leaf_count + config.brands_per_leaf, 500 + config.brands_per_leaf)


def _zipf(rank: np.ndarray, exponent: float) -> np.ndarray:
    return (rank + 1.0) ** -exponent


def _popularity(rng: np.random.Generator, cluster_N: np.ndarray, clusters: int, exponent: float) -> np.ndarray:
    order = np.lexsort((rng.random(len(cluster_N)), cluster_N))
    size = np.bincount(cluster_N, minlength=clusters)
    rank_N = np.empty(len(cluster_N), dtype=np.int64)
    rank_N[order] = np.arange(len(cluster_N)) - np.repeat(np.cumsum(size) - size, size)
    weight_N = _zipf(rank_N, exponent)
    within = np.bincount(cluster_N, weights=weight_N, minlength=clusters)
    return weight_N / within[cluster_N] * size[cluster_N] / len(cluster_N)


def _accessories(rng: np.random.Generator, leaves: int) -> tuple[np.ndarray, np.ndarray]:
    # Leaves stand on a circle in random order; accessories stand less than half a circle ahead, so never both ways.
    # All leaves take the same steps, so that none is everybody's accessory (popularity alone would find those).
    circle = rng.permutation(leaves)
    steps = 1 + rng.permutation((leaves - 1) // 2)[:3]
    accessory = np.empty((leaves, 3), dtype=np.int64)
    accessory[circle] = circle[(np.arange(leaves)[:, None] + steps) % leaves]
    share = np.tile(_ACCESSORY_SHARES, (leaves, 1))
    share[rng.random(leaves) < 0.5, 2] = 0.0
    return accessory, share / share.sum(axis=1, keepdims=True)


def product_ids(count: int) -> pa.Array:
    """p00000000, p00000001, ..."""
    return numbered("p", count)


def numbered(letter: str, count: int) -> pa.Array:
    """Ids of one length, so that their order as strings is their order as numbers."""
    return pa.array(np.char.add(letter, np.char.zfill(np.arange(count).astype("U8"), 8)))


def products_table(
    config: SyntheticShop, catalogue: Catalogue, words: Vocabulary, rng: np.random.Generator
) -> pa.Table:
    """products.parquet: product_id, title, brand, category, category_path, price, launched."""
    leaf, count = catalogue.leaf_N, config.products
    brand = words.brand_words[catalogue.brand_LS[leaf, catalogue.slot_N]]
    styles = words.style_words[catalogue.style_N]
    shown = rng.random(count) < config.style_shown
    title = join_words(
        words.words,
        [
            maybe(rng, 0.9, brand),
            np.where(shown, pick(rng, styles), -1),
            maybe(rng, 0.6, rng.choice(words.noise_words, size=count)),
            pick(rng, words.leaf_words[leaf]),
            maybe(rng, 0.4, np.where(shown, pick(rng, styles), -1)),
            maybe(rng, 0.6, rng.choice(words.noise_words, size=count)),
        ],
    )
    category = words.words.take(pa.array(words.leaf_words[leaf, 0]))
    return pa.table(
        {
            "product_id": product_ids(count),
            "title": title,
            "brand": words.words.take(pa.array(brand)),
            "category": category,
            "category_path": _category_path(words, leaf, category),
            "price": _price(catalogue, rng),
            "launched": _launched(config, catalogue, rng),
        }
    )


def _category_path(words: Vocabulary, leaf: np.ndarray, category: pa.Array) -> pa.Array:
    group = leaf // LEAVES_PER_GROUP
    names = words.group_words[::-1]
    upper = [names[group // GROUPS_PER_ROOT], words.group_words[group]]
    parts = [words.words.take(pa.array(level)) for level in upper]
    return pc.binary_join_element_wise(*parts, category, "/")


def _price(catalogue: Catalogue, rng: np.random.Generator) -> np.ndarray:
    leaf_price = rng.lognormal(3.5, 0.8, size=catalogue.keys.leaves)
    slot_factor = rng.lognormal(0.0, 0.4, size=catalogue.keys.brands)
    noise = rng.lognormal(0.0, 0.25, size=len(catalogue.leaf_N))
    return np.round(leaf_price[catalogue.leaf_N] * slot_factor[catalogue.slot_N] * noise + 0.5, 2)


def _launched(config: SyntheticShop, catalogue: Catalogue, rng: np.random.Generator) -> np.ndarray:
    begin = np.datetime64(BEGIN, "us")
    before = rng.integers(LONGEST_ON_SALE // _US, size=config.products).astype("timedelta64[us]")
    return np.where(catalogue.cold_N, np.datetime64(config.test_from, "us"), begin - before)
