"""The synthetic shop's queries: what is wanted, and the words it is said with.

Shapes: Q queries.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from torchrec_mt.data.sources.shop_catalogue import Catalogue, numbered
from torchrec_mt.data.sources.shop_choice import CLUSTER, CLUSTER_BRAND, LEAF, LEAF_BRAND, Pool
from torchrec_mt.data.sources.shop_config import SyntheticShop
from torchrec_mt.data.sources.shop_words import SPELLINGS, Vocabulary, join_words, maybe, pick, spellings

_LEVELS = np.array([LEAF, CLUSTER, LEAF_BRAND, CLUSTER_BRAND])
_LEVEL_SHARES = (0.15, 0.45, 0.25, 0.15)


@dataclass(frozen=True)
class Queries:
    """All queries as arrays: the wanted segment's key, how often each is asked (sums to 1), and the text."""

    key_Q: np.ndarray
    weight_Q: np.ndarray
    text_Q: pa.Array


def make_queries(
    config: SyntheticShop, catalogue: Catalogue, warm: Pool, words: Vocabulary, rng: np.random.Generator
) -> Queries:
    """A query wants a leaf, or also a style, a brand, or both: those of some product on sale from the beginning."""
    count = config.queries
    model = warm.draw(rng, np.full(count, warm.everything))
    level = rng.choice(_LEVELS, size=count, p=_LEVEL_SHARES)
    leaf, style, slot = catalogue.leaf_N[model], catalogue.style_N[model], catalogue.slot_N[model]
    weight = (rng.permutation(count) + 1.0) ** -config.query_exponent
    styled, branded = np.isin(level, (CLUSTER, CLUSTER_BRAND)), np.isin(level, (LEAF_BRAND, CLUSTER_BRAND))
    slots = [
        np.where(branded, words.brand_words[catalogue.brand_LS[leaf, slot]], -1),
        np.where(styled, _word(rng, words.style_words[style], words.style_synonyms[style], config.synonym_share), -1),
        _word(rng, words.leaf_words[leaf], words.leaf_synonyms[leaf], config.synonym_share),
        maybe(rng, 0.1, rng.choice(words.noise_words, size=count)),
    ]
    spelt = pa.array(spellings(rng, words.words.to_pylist()))
    return Queries(
        key_Q=warm.key_LN[level, model],
        weight_Q=weight / weight.sum(),
        text_Q=join_words(spelt, [_misspell(rng, slot, config.typo_share) for slot in slots]),
    )


def _word(rng: np.random.Generator, said: np.ndarray, synonyms: np.ndarray, synonym_share: float) -> np.ndarray:
    return np.where(rng.random(len(said)) < synonym_share, pick(rng, synonyms), pick(rng, said))


def _misspell(rng: np.random.Generator, slot: np.ndarray, share: float) -> np.ndarray:
    spelling = np.where(rng.random(len(slot)) < share, rng.integers(1, SPELLINGS, size=len(slot)), 0)
    return np.where(slot < 0, -1, slot * SPELLINGS + spelling)


def query_ids(count: int) -> pa.Array:
    """q00000000, q00000001, ..."""
    return numbered("q", count)


def queries_table(queries: Queries) -> pa.Table:
    """queries.parquet: query_id, text."""
    return pa.table({"query_id": query_ids(len(queries.text_Q)), "text": queries.text_Q})
