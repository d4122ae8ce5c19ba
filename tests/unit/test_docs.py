"""The documents keep up with the code: every key is told where it belongs, with its default; every example loads;
nothing outside the project is named."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from torchrec_mt.config import RunConfig, load_config
from torchrec_mt.workflows.grid_config import cells_of, load_grid
from torchrec_mt.workflows.sweep_config import load_sweep

DOCUMENTS = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
DEMO = Path("launch/demo.toml")
BLOCK = re.compile(r"```toml\n(.*?)```", re.DOTALL)
RUN_ELSEWHERE = Path("docs/extending.md")
"""Its examples are of code that is not there: tests/e2e/test_extending.py."""
BLOCKS = [
    (file.name, block) for file in DOCUMENTS if file != RUN_ELSEWHERE for block in BLOCK.findall(file.read_text())
]
CONFIG = Path("docs/config.md").read_text()
DATA = Path("docs/data.md").read_text()
DATA_HEADINGS = {
    "DatasetConfig": "## `[dataset]`",
    "Files": "### `source`",
    "SyntheticShop": "### `source`",
    "PlantedShop": "### `source`",
    "BundleRec": "### `source`",
    "CompleteJourney": "### `source`",
    "Icecat": "### `source`",
    "Table": "## `[dataset.tables.NAME]`",
    "Entity": "## `[dataset.entities.NAME]`",
    "IdFeature": "### `features`",
    "CategoryFeature": "### `features`",
    "CategoriesFeature": "### `features`",
    "TextFeature": "### `features`",
    "NumberFeature": "### `features`",
    "VectorFeature": "### `features`",
    "Task": "## `[dataset.tasks.NAME]`",
    "GivenPairs": "### `pairs` of kind `given`",
    "GroupPairs": "### `pairs` of kind `groups`",
    "TimeSplit": "## `split`",
    "GroupSplit": "## `split`",
}
"""Where docs/data.md tells the keys of each class. `Truth` has a sentence instead of a table."""


@dataclass(frozen=True)
class Key:
    """A key of the config: where it must be told, under which kind, and its default (MISSING: it has none)."""

    section: str
    kind: str | None
    name: str
    default: Any


def plain(value: Any) -> Any:
    """A default as TOML gives it: of a dataclass its kind and what differs from its own defaults."""
    if is_dataclass(value):
        kept = {field.name: getattr(value, field.name) for field in fields(value)}
        return {
            field.name: plain(kept[field.name])
            for field in fields(value)
            if field.name == "kind" or kept[field.name] != default_of(field)
        }
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def default_of(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def classes(annotation: Any) -> list[type]:
    """The dataclasses that an annotation names."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return [annotation]
    return [found for argument in get_args(annotation) for found in classes(argument)]


def keys_of(kind: type, section: str, prefix: str = "") -> Iterator[Key]:
    """The keys of a class and of all that it holds, under a section or where docs/data.md tells the class."""
    section = DATA_HEADINGS.get(kind.__name__, section)
    hints = get_type_hints(kind)
    tag = get_args(hints["kind"])[0] if "kind" in hints else None
    for field in fields(kind):
        if field.name == "kind":
            continue
        yield Key(section, tag, prefix + field.name, plain(default_of(field)))
        for inner in dict.fromkeys(classes(hints[field.name])):
            tagged = "kind" in get_type_hints(inner)
            # A table of single tasks has the keys of the default before it: told once.
            of_tasks = (
                not tagged and inner.__name__ not in DATA_HEADINGS and isinstance(plain(default_of(field)), dict | None)
            )
            if inner.__name__ == "Truth" or (of_tasks and field.name.endswith("s")):
                continue
            yield from keys_of(inner, section, f"{prefix}{field.name}." if of_tasks else "")


def all_keys() -> list[Key]:
    hints = get_type_hints(RunConfig)
    found = list(keys_of(hints["dataset"], ""))
    for field in fields(RunConfig):
        if field.name != "dataset":
            found += keys_of(hints[field.name], f"## `[{field.name}]`")
    return list({(key.section, key.kind, key.name): key for key in found}.values())


def section_text(heading: str) -> str:
    """From a heading (or one that begins so) to the next of its level or above."""
    text = CONFIG if f"\n{heading}" in CONFIG else DATA
    start = text.index(f"\n{heading}")
    level = len(heading.partition(" ")[0])
    end = re.search(rf"\n#{{1,{level}}} ", text[start + 1 :])
    return text[start:] if end is None else text[start : start + 1 + end.start()]


def rows(text: str) -> list[list[str]]:
    """Cells of all tables of a text; a bar inside backticks parts nothing."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.findall(r"((?:`[^`]*`|[^`|])*)\|", line[1:])] for line in lines]


KEYS = all_keys()


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key.section.split('`')[1]}-{key.kind}-{key.name}")
def test_every_key_is_told_with_its_default(key: Key) -> None:
    by_kind = key.kind is not None and not key.section.endswith(f"`{key.kind}`")
    found = rows(section_text(key.section))
    if by_kind:
        found = [cells[1:] for cells in found if cells[0] == f"`{key.kind}`"]
    found = [cells for cells in found if f"`{key.name}`" in cells[0].split(", ")]
    assert found, f"no row of '{key.name}' (kind {key.kind}) under {key.section}"
    told = found[0][1]
    if key.default is MISSING:
        assert told == "required"
    elif key.default is None:
        assert told == "none"
    else:
        assert tomllib.loads(f"told = {told.strip('`')}")["told"] == key.default


def test_every_kind_is_told() -> None:
    kinds = {key.kind for key in KEYS if key.kind} | {"in_batch", "proportional", "manifest", "bce"}
    assert not [kind for kind in kinds if f"`{kind}`" not in CONFIG + DATA]


def test_the_walk_sees_members_of_unions_and_nested_tables() -> None:
    names = {(key.section, key.kind, key.name) for key in KEYS}
    assert ("## `[negatives]`", "mined", "path") in names
    assert ("## `[model]`", None, "temperature.initial") in names
    assert ("### `features`", "text", "char_ngrams") in names
    assert ("### `source`", "synthetic_shop", "typo_share") in names
    assert len(names) > 120


def examples() -> list[tuple[str, str]]:
    """Section and last cell of every row of docs/config.md."""
    found = []
    for section in re.findall(r"\n## `\[(\w+)\]`", CONFIG):
        for cells in rows(section_text(f"## `[{section}]`")):
            if cells[-1].startswith("`"):
                found.append((section, cells[-1].strip("`")))
    return found


@pytest.mark.parametrize(("section", "example"), examples())
def test_examples_of_keys_load(section: str, example: str, tmp_path: Path) -> None:
    (tmp_path / "example.toml").write_text(f"[{section}]\n{example}\n")
    given = load_config([DEMO, tmp_path / "example.toml"])
    assert given.dataset.tasks


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_examples_are_toml_and_whole_ones_load(name: str, block: str, tmp_path: Path) -> None:
    if block.startswith(("pairs =", "split =")):
        for line in block.strip().splitlines():
            tomllib.loads(line)
        return
    tomllib.loads(block)
    (tmp_path / "example.toml").write_text(block)
    if block.startswith("question ="):
        assert cells_of(load_grid(str(tmp_path / "example.toml")))
    elif block.startswith("goal ="):
        assert load_sweep(str(tmp_path / "example.toml"))
    elif "[dataset]" in block:
        assert load_config([tmp_path / "example.toml"]).dataset.tasks
    elif "[dataset" not in block:
        assert load_config([DEMO, tmp_path / "example.toml"]).dataset.tasks


def test_the_readme_counts_its_lines(tmp_path: Path) -> None:
    shop, task = BLOCK.findall(DOCUMENTS[0].read_text())
    assert (len(shop.splitlines()), len(task.splitlines())) == (20, 4)
    (tmp_path / "shop.toml").write_text(shop + task)
    assert list(load_config([tmp_path / "shop.toml"]).dataset.tasks) == ["search", "complement"]


def test_links_lead_somewhere() -> None:
    for file in DOCUMENTS:
        prose = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!http)([^)#]+)", prose):
            assert (file.parent / target).exists(), f"{file} links to {target}"
