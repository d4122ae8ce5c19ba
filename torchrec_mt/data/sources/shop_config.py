"""The synthetic shop's settings, and what they must satisfy.

First step of the shop: every other `shop_*` module takes this config.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from torchrec_mt.errors import UserError, at_most

BEGIN = datetime(2025, 1, 1)
"""The shop's first day."""
PRODUCTS_PER_LEAF = 330
FEWEST_LEAVES = 7
"""A leaf has up to 3 accessory leaves less than half a circle ahead, so accessories never go both ways."""


@dataclass(frozen=True, kw_only=True)
class SyntheticShop:
    """A made-up shop that knows its own truth. The same settings give the same bytes.

    Args:
        products, queries, events: how many of each; events are rows of views, baskets and clicks together (about).
        cold_share: share of products launched only when the test period begins.
        days: days of events. test_share: the last share of them is the test period.
        leaves: leaf categories; none means one per 330 products. styles, brands_per_leaf: of each leaf.
        view_share, basket_share: shares of the event rows; the rest are clicks.
        popularity_exponent, query_exponent: Zipf exponents of products within their cluster, and of queries.
        view_noise, basket_noise, click_noise: share of choices that ignore the intent and follow popularity alone.
        style_shown: share of product titles that tell their style.
        synonym_share: share of query words that no title uses. typo_share: misspelt or cut-off query words.
        truth_depth: candidates kept per anchor in the truth tables.
    """

    kind: Literal["synthetic_shop"]
    seed: int = 0
    products: int = 20_000
    queries: int = 5_000
    events: int = 300_000
    cold_share: float = 0.10
    days: int = 90
    test_share: float = 0.1
    leaves: int | None = None
    styles: int = 8
    brands_per_leaf: int = 8
    view_share: float = 0.35
    basket_share: float = 0.4
    popularity_exponent: float = 1.0
    query_exponent: float = 0.9
    view_noise: float = 0.05
    basket_noise: float = 0.05
    click_noise: float = 0.08
    style_shown: float = 0.85
    synonym_share: float = 0.35
    typo_share: float = 0.1
    truth_depth: int = 200

    def __post_init__(self) -> None:
        at_most(self, seed=2**32 - 1, products=100_000_000, queries=100_000_000, events=10_000_000_000, days=36_500)
        at_most(self, leaves=1_000_000, styles=1_000_000, brands_per_leaf=1_000_000, truth_depth=1_000_000)

    @property
    def leaf_count(self) -> int:
        """Leaf categories, settled."""
        return max(FEWEST_LEAVES + 1, self.products // PRODUCTS_PER_LEAF) if self.leaves is None else self.leaves

    @property
    def test_from(self) -> datetime:
        """First moment of the test period; cold products are launched here."""
        return BEGIN + timedelta(seconds=round(self.days * 86_400 * (1 - self.test_share)))

    @property
    def end(self) -> datetime:
        """First moment after the last event."""
        return BEGIN + timedelta(days=self.days)


_SHARES = ("cold_share", "view_share", "basket_share", "view_noise", "basket_noise", "click_noise")
_SHARES_OR_ALL = ("style_shown", "synonym_share", "typo_share")
_LEAST = {
    "seed": 0,
    "products": 100,
    "queries": 1,
    "events": 1_000,
    "days": 2,
    "leaves": FEWEST_LEAVES,
    "styles": 1,
    "brands_per_leaf": 1,
    "truth_depth": 1,
}


def check_synthetic_shop(config: SyntheticShop) -> None:
    """Refuses settings no shop can be made from.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    for key, least in _LEAST.items():
        value = getattr(config, key)
        if value is not None and value < least:
            raise _bad(key, value, f"give at least {least}")
    for key in _SHARES:
        if not 0 <= getattr(config, key) < 1:
            raise _bad(key, getattr(config, key), "give a share from 0 to below 1")
    for key in _SHARES_OR_ALL:
        if not 0 <= getattr(config, key) <= 1:
            raise _bad(key, getattr(config, key), "give a share from 0 to 1")
    if not 0.01 <= config.test_share <= 0.5:
        raise _bad("test_share", config.test_share, "give a share from 0.01 to 0.5")
    for key in ("popularity_exponent", "query_exponent"):
        if not 0 <= getattr(config, key) <= 3:
            raise _bad(key, getattr(config, key), "give a number from 0 to 3")
    if config.view_share + config.basket_share >= 1:
        raise _bad(
            "view_share",
            config.view_share,
            f"with basket_share = {config.basket_share} stay below 1 (the rest are clicks)",
        )
    clusters = config.leaf_count * config.styles
    if 2 * clusters > config.products:
        raise _bad(
            "products",
            config.products,
            f"{config.leaf_count} leaves of {config.styles} styles need at least {2 * clusters}",
        )
    if config.cold_share * config.products > config.products - clusters:
        raise _bad(
            "cold_share",
            config.cold_share,
            f"{clusters} of {config.products} products must stay warm, give a smaller share",
        )


def _bad(key: str, value: object, remedy: str) -> UserError:
    return UserError(f"dataset.source.{key} = {value!r} makes no synthetic shop: {remedy}")
