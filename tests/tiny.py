"""A tiny prepared dataset written by hand: two entities, a shared token table, three tasks with something to learn."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import (
    MANIFEST,
    SPLITS,
    EntityInfo,
    FeatureInfo,
    Manifest,
    PreparedDataset,
    TaskInfo,
    manifest_to_json,
)
from torchrec_mt.data.links import write_links
from torchrec_mt.data.store import write_store
from torchrec_mt.schema import (
    CategoryFeature,
    Entity,
    GivenPairs,
    GroupPairs,
    IdFeature,
    NumberFeature,
    Schema,
    Table,
    Task,
    TextFeature,
    TimeSplit,
)

PRODUCTS, QUERIES, TOKENS, GROUPS = 60, 24, 40, 6
TASKS = {"find": ("query", "product"), "alike": ("product", "product"), "goes_with": ("product", "product")}


def tiny_schema(dim: int = 16, id_dropout: float = 0.1) -> Schema:
    pairs = GroupPairs(kind="groups", path="views.parquet", group=("session",), item="product", time="at")
    return Schema(
        tables={name: Table(dim=dim) for name in ("tokens", "product_id", "kind")},
        entities={
            "query": Entity(
                path="queries.parquet",
                id="id",
                features={"text": TextFeature(kind="text", columns=("text",), table="tokens")},
            ),
            "product": Entity(
                path="products.parquet",
                id="id",
                features={
                    "product_id": IdFeature(kind="id", table="product_id", dropout=id_dropout),
                    "title": TextFeature(kind="text", columns=("title",), table="tokens", weights="idf"),
                    "kind": CategoryFeature(kind="category", column="kind", table="kind"),
                    "price": NumberFeature(kind="number", column="price"),
                },
            ),
        },
        tasks={
            "find": Task(
                anchor="query",
                candidate="product",
                pairs=GivenPairs(
                    kind="given",
                    path="clicks.parquet",
                    anchor="q",
                    candidate="p",
                    grade="g",
                    negatives="shown",
                    time="at",
                ),
            ),
            "alike": Task(anchor="product", candidate="product", pairs=pairs),
            "goes_with": Task(anchor="product", candidate="product", pairs=pairs),
        },
        split=TimeSplit(kind="time"),
    )


def _bags(rng: np.random.Generator, group_E: np.ndarray) -> list[list[int]]:
    """Tokens that tell the group (2 per group), and noise."""
    return [[1 + 2 * int(g), 2 + 2 * int(g), *rng.integers(13, TOKENS, rng.integers(0, 4)).tolist()] for g in group_E]


def write_tiny(path: Path, *, seed: int = 0, row_group: int = 32, train_pairs: int = 300) -> PreparedDataset:
    """Writes the dataset. Products of a group are alike; group g goes with group g + 1; queries name a group."""
    rng = np.random.default_rng(seed)
    product_group, query_group = np.arange(PRODUCTS) % GROUPS, np.arange(QUERIES) % GROUPS
    (path / "entities").mkdir(parents=True)
    titles = _bags(rng, product_group)
    products = pa.table(
        {
            "product_id": pa.array([[row + 1] for row in range(PRODUCTS)], pa.list_(pa.int32())),
            "title": pa.array(titles, pa.list_(pa.int32())),
            "title__weight": pa.array([[1.0 + t % 3 for t in bag] for bag in titles], pa.list_(pa.float32())),
            "title__text": pa.array([" ".join(f"t{t}" for t in bag) for bag in titles]),
            "kind": pa.array([[1 + int(g) % 3] if g else [] for g in product_group], pa.list_(pa.int32())),
            "price": pa.array(rng.normal(size=PRODUCTS).astype(np.float32)),
            "train_count": pa.array(np.ones(PRODUCTS, np.int64)),
        }
    )
    texts = _bags(rng, query_group)
    queries = pa.table(
        {
            "text": pa.array(texts, pa.list_(pa.int32())),
            "text__text": pa.array([" ".join(f"t{t}" for t in bag) for bag in texts]),
            "train_count": pa.array(np.ones(QUERIES, np.int64)),
        }
    )
    pq.write_table(products, path / "entities/product.parquet", row_group_size=row_group)
    pq.write_table(queries, path / "entities/query.parquet", row_group_size=row_group)
    infos = {
        "query": EntityInfo(
            count=QUERIES, cold=0, features={"text": FeatureInfo(kind="text", table="tokens", mean_bag=3)}
        ),
        "product": EntityInfo(
            count=PRODUCTS,
            cold=0,
            features={
                "product_id": FeatureInfo(kind="id", table="product_id", mean_bag=1),
                "title": FeatureInfo(kind="text", table="tokens", weighted=True, mean_bag=3),
                "kind": FeatureInfo(kind="category", table="kind", mean_bag=1),
                "price": FeatureInfo(kind="number", width=1),
            },
        ),
    }
    for name, info in infos.items():
        write_store(path / f"entities/{name}.parquet", path / "store" / name, info)
    _write_vocabularies(path)
    sizes = dict(zip(SPLITS, (train_pairs, 40, 40), strict=True))
    for name, (anchor, _) in TASKS.items():
        _write_pairs(path, name, anchor, sizes, rng, row_group)
    named = _write_negatives(path)
    manifest = Manifest(
        name="tiny",
        tables={"tokens": TOKENS, "product_id": PRODUCTS + 1, "kind": 4},
        entities=infos,
        tasks={
            name: TaskInfo(
                anchor=anchor,
                candidate=candidate,
                trained_as=None,
                pairs=dict(sizes),
                anchors=dict.fromkeys(SPLITS, 20),
                notes={"named_negatives": named} if name == "find" else {},
            )
            for name, (anchor, candidate) in TASKS.items()
        },
        split={},
        declaration={},
        sources={},
        fingerprint="",
        digest="",
    )
    (path / MANIFEST).write_text(manifest_to_json(manifest))
    return PreparedDataset.open(path)


def _write_pairs(
    path: Path, name: str, anchor: str, sizes: dict[str, int], rng: np.random.Generator, row_group: int
) -> None:
    (path / "pairs" / name).mkdir(parents=True)
    (path / "frequencies" / name).mkdir(parents=True)
    count = QUERIES if anchor == "query" else PRODUCTS
    for split, size in sizes.items():
        anchors = rng.integers(0, count, size)
        group = (anchors + (1 if name == "goes_with" else 0)) % GROUPS
        candidates = group + GROUPS * rng.integers(0, PRODUCTS // GROUPS, size)
        candidates = np.where(
            (candidates == anchors) & (anchor == "product"), (candidates + GROUPS) % PRODUCTS, candidates
        )
        if split != "train":  # what is judged names a pair once, as preparation has it
            anchors, candidates = np.unique(np.stack([anchors, candidates]), axis=1)
        ones = np.ones(len(anchors), np.float32)
        columns = {"anchor": anchors, "candidate": candidates, "count": ones, "weight": ones, "grade": ones}
        pq.write_table(pa.table(columns), path / f"pairs/{name}/{split}.parquet", row_group_size=row_group)
        if split == "train":
            ends = {"anchors": (anchors, count), "candidates": (candidates, PRODUCTS)}
            for end, (rows, entities) in ends.items():
                frequency = pa.table({"train_count": np.bincount(rows, minlength=entities)})
                pq.write_table(frequency, path / f"frequencies/{name}/{end}.parquet")
            _write_links(path / "known" / name, "candidates", ends["anchors"], ends["candidates"])
            _write_links(path / "known" / name, "anchors", ends["candidates"], ends["anchors"])


def _write_vocabularies(path: Path) -> None:
    (path / "vocabulary").mkdir()
    for table, rows in {"tokens": TOKENS, "product_id": PRODUCTS + 1, "kind": 4}.items():
        row = np.arange(1, rows, dtype=np.int32)
        columns = {"value": [f"{table} {n}" for n in row], "row": row, "count": np.ones(len(row), np.int64)}
        kinds = {"kind": ["word"] * len(row)} if table == "tokens" else {}
        pq.write_table(pa.table(columns | kinds), path / f"vocabulary/{table}.parquet")


def _write_negatives(path: Path) -> int:
    """Queries of `find` name 0, 1 or 2 products of the next group but one; how many in all."""
    query, number = np.nonzero(np.arange(2) < np.arange(QUERIES)[:, None] % 3)
    product = (query + 2) % GROUPS + GROUPS * number
    _write_links(path / "negatives/find", "candidates", (query, QUERIES), (product, PRODUCTS))
    return len(product)


def _write_links(folder: Path, name: str, owner: tuple[np.ndarray, int], linked: tuple[np.ndarray, int]) -> None:
    """Distinct links; each end is its rows and the number of its entities."""
    distinct = np.unique(np.stack([owner[0], linked[0]], axis=1), axis=0)
    lengths = np.bincount(distinct[:, 0], minlength=owner[1])
    write_links(folder, name, lengths, linked[1], [distinct[:, 1]])
