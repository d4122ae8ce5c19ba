"""A made-up shop with planted structure, written as raw tables that preparation reads like anybody's.

    products.parquet          product_id, title, brand, category, category_path, price, launched
    queries.parquet           query_id, text
    clicks.parquet            search_id, query_id, product_id, action, weight, time
    views.parquet             session_id, product_id, position, time
    baskets.parquet           basket_id, product_id, line, time
    truth_search.parquet      query_id, product_id, score
    truth_similar.parquet     anchor_id, candidate_id, score
    truth_complement.parquet  anchor_id, candidate_id, score
    source.json               the settings it was made with, and whether it is whole

Planted are: leaf categories with styles, where a leaf's products of one style are substitutes (viewed together);
directed accessories (a leaf's products are bought with accessories of the same style, never the other way round);
queries that want a leaf, style or brand and say so in words, some of which no title uses; Zipf popularity in
everything; products launched only when the test period begins; noise. Every choice is a segment first and a product in
it by popularity (shop_choice), so the best ranking is known exactly (shop_truth).
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from torchrec_mt.data.sources.raw_tables import NamedParts, write_tables
from torchrec_mt.data.sources.shop_catalogue import Catalogue, brand_count, make_catalogue, products_table
from torchrec_mt.data.sources.shop_config import BEGIN, SyntheticShop, check_synthetic_shop
from torchrec_mt.data.sources.shop_events import Period, baskets, clicks, join_periods, views
from torchrec_mt.data.sources.shop_queries import Queries, make_queries, queries_table
from torchrec_mt.data.sources.shop_truth import complement_truth, search_truth, similar_truth
from torchrec_mt.data.sources.shop_words import make_vocabulary

__all__ = ["SyntheticShop", "check_synthetic_shop", "write_synthetic_shop"]

GENERATION = 1
"""Raised when the same settings give other tables."""
TABLES = ("products", "queries", "clicks", "views", "baskets", "truth_search", "truth_similar", "truth_complement")


def write_synthetic_shop(config: SyntheticShop, folder: Path) -> None:
    """Writes the tables; does nothing where they already lie whole and made with the same settings.

    Raises:
        UserError: settings that do not work, or a folder that holds such tables of somebody else.
    """
    check_synthetic_shop(config)
    write_tables(folder, {"generation": GENERATION, **asdict(config)}, lambda: _tables(config))


def _tables(config: SyntheticShop) -> Iterator[NamedParts]:
    words_rng, catalogue_rng, titles_rng, queries_rng, *event_rngs = (
        np.random.default_rng([config.seed, stream]) for stream in range(10)
    )
    words = make_vocabulary(words_rng, config.leaf_count, config.styles, brand_count(config))
    catalogue = make_catalogue(config, catalogue_rng)
    yield "products", [products_table(config, catalogue, words, titles_rng)]
    periods = (
        Period(BEGIN, config.test_from, 1 - config.test_share, catalogue.pool(with_cold=False)),
        Period(config.test_from, config.end, config.test_share, catalogue.pool(with_cold=True)),
    )
    queries = make_queries(config, catalogue, periods[0].pool, words, queries_rng)
    yield "queries", [queries_table(queries)]
    yield from _events(config, catalogue, queries, periods, event_rngs)
    yield "truth_search", search_truth(config, queries, periods[1].pool)
    yield "truth_similar", similar_truth(config, catalogue, periods[1].pool)
    yield "truth_complement", complement_truth(config, catalogue, periods[1].pool)


def _events(
    config: SyntheticShop,
    catalogue: Catalogue,
    queries: Queries,
    periods: tuple[Period, Period],
    rngs: list[np.random.Generator],
) -> Iterator[NamedParts]:
    made = {
        "clicks": ("search_id", [clicks(config, queries, p, rng) for p, rng in zip(periods, rngs[:2], strict=True)]),
        "views": ("session_id", [views(config, catalogue, p, rng) for p, rng in zip(periods, rngs[2:4], strict=True)]),
        "baskets": (
            "basket_id",
            [baskets(config, catalogue, p, rng) for p, rng in zip(periods, rngs[4:], strict=True)],
        ),
    }
    for name, (group, tables) in made.items():
        yield name, [join_periods(tables, group)]
