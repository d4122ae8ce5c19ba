"""The synthetic shop: what its files hold, that they do not change, and every planted rule by counting."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from torchrec_mt.data.sources.synthetic_shop import TABLES, SyntheticShop, write_synthetic_shop
from torchrec_mt.errors import UserError

TINY = SyntheticShop(kind="synthetic_shop", products=600, queries=80, events=4_000, leaves=9, styles=3, seed=5)


def read(folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pq.read_table(folder / f"{name}.parquet").to_pandas() for name in TABLES}


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest() for name in TABLES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop")
    write_synthetic_shop(TINY, path)
    return path


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return read(folder)


@pytest.fixture(scope="module")
def noiseless(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    path = tmp_path_factory.mktemp("noiseless")
    write_synthetic_shop(
        replace(TINY, events=20_000, view_noise=0.0, basket_noise=0.0, click_noise=0.0, style_shown=1.0), path
    )
    return read(path)


def test_the_same_settings_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_synthetic_shop(TINY, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(folder)


def test_another_seed_gives_other_tables(folder: Path, tmp_path: Path) -> None:
    write_synthetic_shop(replace(TINY, seed=6), tmp_path)
    ours, others = digests(folder), digests(tmp_path)
    assert all(ours[name] != others[name] for name in TABLES)


def test_a_whole_shop_is_not_written_again_and_a_half_one_is(tmp_path: Path) -> None:
    write_synthetic_shop(TINY, tmp_path)
    views = tmp_path / "views.parquet"
    before, whole = digests(tmp_path), views.stat().st_mtime_ns
    write_synthetic_shop(TINY, tmp_path)
    assert views.stat().st_mtime_ns == whole
    marker = tmp_path / "source.json"
    marker.write_text(marker.read_text().replace("true", "false"))
    views.write_bytes(b"half")
    write_synthetic_shop(TINY, tmp_path)
    assert digests(tmp_path) == before
    write_synthetic_shop(replace(TINY, seed=6), tmp_path)
    assert digests(tmp_path) != before


def test_somebody_elses_tables_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "views.parquet").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds views\.parquet but no source\.json"):
        write_synthetic_shop(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["views.parquet"]


def test_an_unreadable_marker_is_told(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text("{")
    with pytest.raises(UserError, match=r"source\.json' is not readable"):
        write_synthetic_shop(TINY, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("products", 99),
        ("products", 110),
        ("queries", 0),
        ("events", 10),
        ("days", 1),
        ("seed", -1),
        ("leaves", 3),
        ("styles", 0),
        ("brands_per_leaf", 0),
        ("truth_depth", 0),
        ("cold_share", -0.1),
        ("cold_share", 0.99),
        ("test_share", 0.0),
        ("test_share", 0.6),
        ("test_share", float("nan")),
        ("view_share", 0.8),
        ("view_noise", 1.0),
        ("basket_noise", -0.01),
        ("click_noise", 2.0),
        ("style_shown", 1.1),
        ("synonym_share", -1.0),
        ("typo_share", 1.5),
        ("popularity_exponent", -1.0),
        ("query_exponent", 9.0),
    ],
)
def test_settings_out_of_range_are_named(key: str, value: float, tmp_path: Path) -> None:
    sizes = {"leaves": 20, "styles": 3} if value == 110 else {}
    with pytest.raises(UserError, match=rf"dataset\.source\.{key} = {value}"):
        write_synthetic_shop(replace(TINY, **(sizes | {key: value})), tmp_path / "shop")
    assert not (tmp_path / "shop").exists()


def test_tables_have_the_size_asked_for(tables: dict[str, pd.DataFrame]) -> None:
    products, queries = tables["products"], tables["queries"]
    assert len(products) == products.product_id.nunique() == 600
    assert len(queries) == queries.query_id.nunique() == 80
    assert products.product_id.is_monotonic_increasing
    assert not products.isna().any(axis=None)
    assert (queries.text.str.len() > 0).all()
    rows = {name: len(tables[name]) / 4_000 for name in ("views", "baskets", "clicks")}
    assert rows == pytest.approx({"views": 0.35, "baskets": 0.4, "clicks": 0.25}, abs=0.03)


def test_every_event_names_a_product_and_query_there_is(tables: dict[str, pd.DataFrame]) -> None:
    known = set(tables["products"].product_id)
    assert all(set(tables[name].product_id) <= known for name in ("views", "baskets", "clicks"))
    assert set(tables["clicks"].query_id) <= set(tables["queries"].query_id)
    assert set(tables["clicks"].groupby("action").weight.first().items()) == {
        ("click", 1.0),
        ("cart", 2.0),
        ("purchase", 3.0),
    }


def test_products_occur_only_after_their_launch_and_cold_ones_only_in_the_test(tables: dict[str, pd.DataFrame]) -> None:
    products = tables["products"].set_index("product_id")
    cold = products.index[products.launched == pd.Timestamp(TINY.test_from)]
    assert len(cold) == 60
    assert (products.launched.drop(cold) < pd.Timestamp("2025-01-01")).all()
    for name in ("views", "baskets", "clicks"):
        events = tables[name]
        assert (events.time >= products.launched[events.product_id].to_numpy()).all()
        assert events.time.between(pd.Timestamp("2025-01-01"), pd.Timestamp(TINY.end), inclusive="left").all()
        assert events.product_id.isin(cold).any()


def test_groups_never_lie_on_both_sides_of_the_test_moment(tables: dict[str, pd.DataFrame]) -> None:
    for name, group in (("views", "session_id"), ("baskets", "basket_id"), ("clicks", "search_id")):
        late = tables[name].time >= pd.Timestamp(TINY.test_from)
        assert (late.groupby(tables[name][group]).nunique() == 1).all()
        assert 0.07 < late.mean() < 0.13


def test_a_product_number_tells_nothing(tables: dict[str, pd.DataFrame]) -> None:
    number = np.arange(600)
    views = tables["views"].product_id.value_counts().reindex(tables["products"].product_id, fill_value=0)
    assert abs(np.corrcoef(number, views)[0, 1]) < 0.15
    assert tables["products"].category.ne(tables["products"].category.shift()).mean() > 0.7


def test_categories_are_a_tree_of_two_levels_above_the_leaves(tables: dict[str, pd.DataFrame]) -> None:
    paths = tables["products"].category_path.str.split("/", expand=True)
    assert paths.shape[1] == 3
    assert (paths[2] == tables["products"].category).all()
    assert paths[2].nunique() == 9
    assert (paths.groupby(2)[1].nunique() == 1).all()
    assert (paths.groupby(1)[0].nunique() == 1).all()


def test_without_noise_a_session_stays_in_one_leaf(noiseless: dict[str, pd.DataFrame]) -> None:
    leaf = noiseless["products"].set_index("product_id").category
    views = noiseless["views"]
    assert (leaf[views.product_id].groupby(views.session_id.to_numpy()).nunique() == 1).all()


def clusters(tables: dict[str, pd.DataFrame]) -> pd.Series:
    """The cluster of each product, found as the products that sessions link (name of one of them)."""
    views = tables["views"].merge(tables["views"], on="session_id")
    parent = {product: product for product in tables["products"].product_id}

    def root(product: str) -> str:
        while parent[product] != product:
            product = parent[product]
        return product

    for one, other in set(zip(views.product_id_x, views.product_id_y, strict=True)):
        parent[root(one)] = root(other)
    return pd.Series({product: root(product) for product in parent})


def test_without_noise_viewed_together_means_same_leaf_and_style(noiseless: dict[str, pd.DataFrame]) -> None:
    """Sessions link the products into 9 leaves x 3 styles clusters, plus products that nobody viewed."""
    cluster = clusters(noiseless)
    viewed = cluster[noiseless["views"].product_id.unique()]
    linked = viewed.value_counts()
    assert (linked > 1).sum() == 27
    leaf = noiseless["products"].set_index("product_id").category
    assert (leaf[viewed.index].groupby(viewed.to_numpy()).nunique() == 1).all()


def test_complements_are_directed(noiseless: dict[str, pd.DataFrame]) -> None:
    leaf = noiseless["products"].set_index("product_id").category
    baskets = noiseless["baskets"]
    main, added = baskets[baskets.line == 0], baskets[baskets.line == 1]
    assert (main.basket_id.value_counts() == 1).all()
    assert set(added.groupby("basket_id").size()) == {1, 2, 3}
    pairs = main.merge(added, on="basket_id")
    edges = set(zip(leaf[pairs.product_id_x], leaf[pairs.product_id_y], strict=True))
    assert not any((b, a) in edges for a, b in edges)
    out_degree = pd.Series([a for a, _ in edges]).value_counts()
    assert len(out_degree) == 9
    assert set(out_degree) <= {2, 3}


def test_complements_keep_the_style(noiseless: dict[str, pd.DataFrame]) -> None:
    """Main product and what is put to it link the 27 clusters into (at most) one web per style."""
    cluster = clusters(noiseless)
    baskets = noiseless["baskets"]
    pairs = baskets[baskets.line == 0].merge(baskets[baskets.line == 1], on="basket_id")
    edges = pd.DataFrame({"a": cluster[pairs.product_id_x].to_numpy(), "b": cluster[pairs.product_id_y].to_numpy()})
    big = cluster.value_counts().index[:27]
    edges = edges[edges.a.isin(big) & edges.b.isin(big)].drop_duplicates()
    web = {name: name for name in big}
    for _ in range(27):
        for a, b in edges.itertuples(index=False):
            web[a] = web[b] = min(web[a], web[b])
    assert len(set(web.values())) == 3
    leaf = noiseless["products"].set_index("product_id").category
    assert edges.assign(leaf=leaf[edges.b].to_numpy()).groupby(["a", "leaf"]).size().max() == 1


def test_noise_leaves_the_plan_about_as_often_as_asked(tables: dict[str, pd.DataFrame]) -> None:
    """Of two views, (1 - .05)^2 follow the plan; of the rest a ninth or so lies in the same leaf anyhow."""
    leaf = tables["products"].set_index("product_id").category
    views = tables["views"]
    first, second = views[views.position == 0], views[views.position == 1]
    share = (leaf[first.product_id].to_numpy() == leaf[second.product_id].to_numpy()).mean()
    assert 0.9025 - 0.04 < share < 0.9025 + 0.0975 / 5 + 0.04


def test_popularity_is_zipf_within_a_cluster(tmp_path: Path) -> None:
    """Views of a cluster's best, second and fourth product stand as 1 : 1/2 : 1/4 (exponent 1)."""
    config = replace(
        TINY, products=420, leaves=7, events=200_000, view_noise=0.0, cold_share=0.0, view_share=0.9, basket_share=0.05
    )
    write_synthetic_shop(config, tmp_path)
    tables = read(tmp_path)
    cluster, count = clusters(tables), tables["views"].product_id.value_counts()
    ranked = (
        count.groupby(cluster[count.index].to_numpy()).apply(lambda c: pd.Series(sorted(c, reverse=True)[:4])).unstack()
    )
    share = ranked.sum() / ranked[0].sum()
    assert share.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4], rel=0.05)


def test_some_query_words_are_in_no_title_and_most_are(noiseless: dict[str, pd.DataFrame]) -> None:
    in_titles = set(" ".join(noiseless["products"].title).split())
    said = pd.Series(" ".join(noiseless["queries"].text).split())
    assert 0.4 < said.isin(in_titles).mean() < 0.8


def test_titles_name_their_category_and_mostly_their_brand(tables: dict[str, pd.DataFrame]) -> None:
    products = tables["products"]
    named = [brand in title.split() for brand, title in zip(products.brand, products.title, strict=True)]
    assert 0.85 < np.mean(named) < 0.95
    words = products.assign(word=products.title.str.split()).explode("word")
    # Each category has two nouns; every title of it holds one of them.
    for _, group in words.groupby("category"):
        nouns = group.groupby("word").product_id.nunique().nlargest(2)
        assert group[group.word.isin(nouns.index)].product_id.nunique() == group.product_id.nunique()


def test_without_noise_a_query_is_clicked_into_one_leaf(noiseless: dict[str, pd.DataFrame]) -> None:
    leaf = noiseless["products"].set_index("product_id").category
    clicks = noiseless["clicks"]
    assert (leaf[clicks.product_id].groupby(clicks.query_id.to_numpy()).nunique() == 1).all()
