"""What lies at the output before preparation: damage is mended and told, what is the user's is never lost."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.raw_shop import given as given_pairs
from tests.raw_shop import make_schema, with_pairs, write_raw
from torchrec_mt.data.preparation import PreparedResult, check_output, prepare
from torchrec_mt.errors import UserError
from torchrec_mt.schema import GroupPairs, IdFeature, Schema, Table, VectorFeature


def prepared(tmp_path: Path, schema: Schema | None = None, output: str = "out") -> PreparedResult:
    if not (tmp_path / "raw").exists():
        write_raw(tmp_path / "raw")
    return prepare(schema or make_schema(), name="t", raw=tmp_path / "raw", output=tmp_path / output)


def other_schema() -> Schema:
    return with_pairs(given_pairs(min_grade=0.5))


@pytest.mark.parametrize(
    "file", ["pairs/search/train.parquet", "store/product/title.offsets.npy", "entities/query.parquet"]
)
def test_a_file_of_another_size_is_made_again(tmp_path: Path, file: str) -> None:
    first = prepared(tmp_path)
    path = tmp_path / "out" / file
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    again = prepared(tmp_path)
    assert again == (again.dataset, True, f"'{path}' had {size // 2} bytes, not {size}")
    assert path.stat().st_size == size
    assert again.dataset.manifest == first.dataset.manifest
    path.unlink()
    assert prepared(tmp_path).why == f"'{path}' was missing"
    assert not prepared(tmp_path).fresh


def test_every_file_is_listed(tmp_path: Path) -> None:
    listed = prepared(tmp_path).dataset.manifest.files
    found = {p.relative_to(tmp_path / "out").as_posix(): p.stat().st_size for p in (tmp_path / "out").rglob("*.*")}
    del found["manifest.json"]
    assert listed == found


@pytest.mark.parametrize(
    ("mine", "listed"),
    [
        ("mynotes.txt", True),
        ("pairs/search/mine.txt", True),
        (".git", True),
        ("entities/more/a.txt", True),
        # A manifest of an earlier version does not list its files: only what lies beside the known parts is noticed.
        ("mynotes.txt", False),
        (".git", False),
    ],
)
def test_what_is_the_users_is_not_replaced(tmp_path: Path, mine: str, listed: bool) -> None:
    prepared(tmp_path)
    manifest = tmp_path / "out/manifest.json"
    if not listed:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 1}))
    before = manifest.read_bytes()
    (tmp_path / "out" / mine).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / mine).write_text("years of work")
    if listed:
        assert not prepared(tmp_path).fresh, "nothing to replace"
    shown = "entities/more" if "more" in mine else mine
    with pytest.raises(UserError, match=rf"/out' is to be replaced, but holds .* did not write: '{shown}';"):
        prepared(tmp_path, other_schema())
    assert (tmp_path / "out" / mine).read_text() == "years of work"
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("path", [".", "/", "..", "a/.."])
def test_a_path_that_names_no_folder(path: str) -> None:
    with pytest.raises(UserError, match=r"names no folder of its own"):
        check_output(Path(path))


def test_widths_and_dropout_change_without_preparing_again(tmp_path: Path) -> None:
    schema = make_schema()
    first = prepared(tmp_path, schema)
    wider = replace(schema, tables={**schema.tables, "words": Table(dim=16)})
    product = schema.entities["product"]
    dropped = replace(product, features={**product.features, "key": IdFeature(kind="id", table="sku", dropout=0.5)})
    wider = replace(wider, entities={**schema.entities, "product": dropped})
    assert not prepared(tmp_path, wider).fresh
    first.dataset.check_declaration(wider)


def named(entity: str, **features: object) -> Schema:
    """The schema whose product has other features, or another name."""
    schema = make_schema()
    product = replace(schema.entities["product"], features={**schema.entities["product"].features, **features})
    tasks = {
        name: replace(task, candidate=entity, anchor=entity if isinstance(task.pairs, GroupPairs) else task.anchor)
        for name, task in schema.tasks.items()
    }
    return replace(schema, entities={"query": schema.entities["query"], entity: product}, tasks=tasks)


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        (
            named("dim", dropout=VectorFeature(kind="vector", column="v", dim=2)),
            named("dim", dropout=VectorFeature(kind="vector", column="w", dim=2)),
            "dataset.entities.dim.features.dropout.column",
        ),
        (
            named("dim", dropout=VectorFeature(kind="vector", column="v", dim=2)),
            named("dim", dropout=VectorFeature(kind="vector", column="v", dim=3)),
            "dataset.entities.dim.features.dropout.dim",
        ),
    ],
)
def test_what_is_called_like_a_free_key_is_not_free(tmp_path: Path, before: Schema, after: Schema, key: str) -> None:
    vectors = {"v": [[1.0, 2.0]] * 5, "w": [[2.0, 1.0]] * 5}
    products = {"sku": list("abcde"), "title": ["tea"] * 5, "kind": ["x"] * 5, "price": [1.0] * 5, **vectors}
    write_raw(tmp_path / "raw", products=products)
    dataset = prepared(tmp_path, before).dataset
    dataset.check_declaration(before)
    with pytest.raises(UserError, match=rf"\({key} differ\)"):
        dataset.check_declaration(after)
