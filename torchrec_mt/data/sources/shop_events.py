"""The synthetic shop's events: searches with clicks, viewing sessions, baskets.

Each is drawn for a period with the products then on sale (a `Pool`), by the choices that shop_truth knows:

- a search: its clicks are independent choices from the segment that its query wants;
- a session: its views are independent choices from the cluster (leaf and style) of one product;
- a basket: a main product, then things put to it: independent choices from the same style of an accessory leaf.

Any choice ignores all that with the noise share, and follows popularity alone. The main product's `line` is 0 and that
of everything put to it is 1, so that a pair (earlier, later) is always (main product, what was put to it).

Shapes: G groups (searches, sessions, baskets), B rows.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from torchrec_mt.data.sources.shop_catalogue import Catalogue, product_ids
from torchrec_mt.data.sources.shop_choice import CLUSTER, Pool
from torchrec_mt.data.sources.shop_config import SyntheticShop
from torchrec_mt.data.sources.shop_queries import Queries, query_ids

CLICKS, CLICK_SHARES = np.array([1, 2, 3]), (0.5, 0.3, 0.2)
VIEWS, VIEW_SHARES = np.array([2, 3, 4, 5, 6]), (0.3, 0.25, 0.2, 0.15, 0.1)
ADDED, ADDED_SHARES = np.array([1, 2, 3]), (0.4, 0.35, 0.25)
ACTIONS, ACTION_WEIGHTS, ACTION_SHARES = ("click", "cart", "purchase"), np.array([1.0, 2.0, 3.0]), (0.75, 0.15, 0.1)
_SECONDS_BETWEEN = 20


@dataclass(frozen=True)
class Period:
    """A stretch of time in which the same products are on sale."""

    begin: datetime
    end: datetime
    share: float
    pool: Pool

    def times(self, rng: np.random.Generator, groups: int) -> np.ndarray:
        """Sorted moments, uniform over the period: time_G (microseconds)."""
        begin, end = np.datetime64(self.begin, "us"), np.datetime64(self.end, "us")
        return begin + np.sort(rng.integers((end - begin).astype(np.int64), size=groups)).astype("timedelta64[us]")

    def groups(self, rows: float, sizes: np.ndarray, shares: tuple[float, ...]) -> int:
        """How many groups give about this share of the rows."""
        return max(1, round(rows * self.share / float(sizes @ np.array(shares))))


def clicks(config: SyntheticShop, queries: Queries, period: Period, rng: np.random.Generator) -> pa.Table:
    """clicks.parquet: search_id, query_id, product_id, action, weight, time."""
    rows = config.events * (1 - config.view_share - config.basket_share)
    groups = period.groups(rows, CLICKS, CLICK_SHARES)
    query_G = rng.choice(len(queries.weight_Q), size=groups, p=queries.weight_Q)
    group_B, place_B = _spread(rng.choice(CLICKS, size=groups, p=CLICK_SHARES))
    query_B = query_G[group_B]
    action_B = rng.choice(len(ACTIONS), size=len(group_B), p=ACTION_SHARES)
    product_B = period.pool.draw_noisy(rng, queries.key_Q[query_B], config.click_noise)
    return pa.table(
        {
            "search_id": group_B,
            "query_id": _named(query_B, query_ids(config.queries)),
            "product_id": _named(product_B, product_ids(config.products)),
            "action": _named(action_B, pa.array(ACTIONS)),
            "weight": ACTION_WEIGHTS[action_B],
            "time": _row_times(period, period.times(rng, groups), group_B, place_B),
        }
    )


def views(config: SyntheticShop, catalogue: Catalogue, period: Period, rng: np.random.Generator) -> pa.Table:
    """views.parquet: session_id, product_id, position, time. A product may come twice in a session."""
    groups = period.groups(config.events * config.view_share, VIEWS, VIEW_SHARES)
    wanted_G = catalogue.cluster_N[period.pool.draw(rng, np.full(groups, period.pool.everything))]
    group_B, place_B = _spread(rng.choice(VIEWS, size=groups, p=VIEW_SHARES))
    product_B = period.pool.draw_noisy(rng, wanted_G[group_B], config.view_noise)
    return pa.table(
        {
            "session_id": group_B,
            "product_id": _named(product_B, product_ids(config.products)),
            "position": place_B,
            "time": _row_times(period, period.times(rng, groups), group_B, place_B),
        }
    )


def baskets(config: SyntheticShop, catalogue: Catalogue, period: Period, rng: np.random.Generator) -> pa.Table:
    """baskets.parquet: basket_id, product_id, line (0: main product, 1: put to it), time (one per basket)."""
    groups = period.groups(config.events * config.basket_share, ADDED + 1, ADDED_SHARES)
    main_G = period.pool.draw(rng, np.full(groups, period.pool.everything))
    group_B, place_B = _spread(1 + rng.choice(ADDED, size=groups, p=ADDED_SHARES))
    product_B = main_G[group_B]
    added = place_B > 0
    product_B[added] = period.pool.draw_noisy(
        rng, _accessory_cluster(catalogue, product_B[added], rng), config.basket_noise
    )
    return pa.table(
        {
            "basket_id": group_B,
            "product_id": _named(product_B, product_ids(config.products)),
            "line": added.astype(np.int64),
            "time": period.times(rng, groups)[group_B],
        }
    )


def _accessory_cluster(catalogue: Catalogue, main_B: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    leaf_B, style_B = catalogue.leaf_N[main_B], catalogue.style_N[main_B]
    below_B = np.cumsum(catalogue.accessory_share_LJ, axis=1)[leaf_B]
    choice_B = (rng.random(len(main_B))[:, None] >= below_B[:, :-1]).sum(axis=1)
    return catalogue.keys.key(CLUSTER, catalogue.accessory_LJ[leaf_B, choice_B], style_B, np.zeros_like(leaf_B))


def _spread(size_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of groups: each row's group and its place in the group."""
    group_B = np.repeat(np.arange(len(size_G)), size_G)
    return group_B, np.arange(len(group_B)) - np.repeat(np.cumsum(size_G) - size_G, size_G)


def _row_times(period: Period, time_G: np.ndarray, group_B: np.ndarray, place_B: np.ndarray) -> np.ndarray:
    # A group that begins in a period ends in it: its products are those on sale in it.
    last = np.datetime64(period.end, "us") - np.timedelta64(1, "us")
    return np.minimum(time_G[group_B] + place_B * np.timedelta64(_SECONDS_BETWEEN * 1_000_000, "us"), last)


def _named(index: np.ndarray, names: pa.Array) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), names)


def join_periods(tables: list[pa.Table], group: str) -> pa.Table:
    """One table, with groups numbered on from period to period."""
    begin, parts = 0, []
    for table in tables:
        numbers = table[group].to_numpy() + begin
        parts.append(table.set_column(0, group, pa.array(numbers)))
        begin = int(numbers[-1]) + 1
    return pa.concat_tables(parts)
