"""Every number of every config class is finite and has its bounds: the whole tree is walked, no key is left out."""

import json
import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from torchrec_mt.config import RunConfig, check_config
from torchrec_mt.data.sources.files import Files
from torchrec_mt.data.sources.shop_config import SyntheticShop, check_synthetic_shop
from torchrec_mt.errors import UserError


@dataclass(frozen=True)
class Place:
    """A number of the tree: its key, its type, and the classes on the way to it with the field taken."""

    key: str
    kind: type
    path: tuple[Any, ...]


def members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def places(hint: Any, key: str = "", path: tuple[Any, ...] = ()) -> Iterator[Place]:
    """Every place under a type that takes a number."""
    for member in members(hint):
        if member in (int, float):
            yield Place(key, member, path)
        elif is_dataclass(member):
            for name, inner in get_type_hints(member).items():
                if not name.startswith("_"):
                    yield from places(inner, f"{key}.{name}".lstrip("."), (*path, (member, name)))
        elif get_origin(member) is dict:
            yield from places(get_args(member)[1], f"{key}.x", (*path, (dict, "x")))
        elif get_origin(member) is tuple:
            yield from places(get_args(member)[0], f"{key}.0", (*path, (tuple, 0)))


def least(hint: Any) -> Any:
    """A small valid value of a type, as JSON."""
    first = members(hint)[0]
    if get_origin(first) is Literal:
        return get_args(first)[0]
    if get_origin(first) is tuple:
        return [least(get_args(first)[0])]
    if get_origin(first) is dict:
        return {}
    return {int: 4, float: 0.5, str: "x"}[first] if not is_dataclass(first) else smallest(first)


def smallest(cls: Any) -> dict[str, Any]:
    """A dataclass with nothing but what it demands, and its kind."""
    hints = get_type_hints(cls)
    return {
        field.name: least(hints[field.name])
        for field in fields(cls)
        if field.name == "kind" or (field.default is MISSING and field.default_factory is MISSING)
    }


def tree(place: Place, value: Any) -> Any:
    """The smallest config that holds `value` at a place."""
    for owner, name in reversed(place.path):
        if owner is tuple:
            value = [value]
        elif owner is dict:
            value = {name: value}
        else:
            value = {**smallest(owner), name: value}
    return value


PLACES = list(places(RunConfig))


def test_the_walk_sees_the_tree() -> None:
    keys = {place.key for place in PLACES}
    assert {
        "trainer.steps",
        "reader.mixing.shares.x",
        "dataset.split.valid_from",
        "model.temperatures.x.initial",
    } < keys
    assert {"negatives.tasks.x.0.count", "dataset.entities.x.features.x.char_ngrams.0", "dataset.source.leaves"} < keys
    assert len(PLACES) > 90


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**31, 10**400, 1e300, True])
def test_no_number_without_bounds(value: float) -> None:
    wrong = []
    for place in PLACES:
        try:
            source = check_config(tree(place, value), where="").dataset.source
            if isinstance(source, SyntheticShop):
                check_synthetic_shop(source)  # of what `at_most` leaves open
        except UserError as error:
            if place.key.removesuffix(".0").rpartition(".")[2] in str(error):
                continue
            wrong.append(f"{place.key}: {error}")
        else:
            wrong.append(f"{place.key} = {value}: accepted")
    assert wrong == []


BELOW = "dataset."
"""Least values of the declaration and of the shop are told by `check_schema` and `check_synthetic_shop`."""


@pytest.mark.parametrize("place", [place for place in PLACES if not place.key.startswith(BELOW)], ids=lambda p: p.key)
def test_negative_numbers(place: Place) -> None:
    with pytest.raises(UserError, match=place.key.removesuffix(".0").rpartition(".")[2]):
        check_config(tree(place, -1), where="")


def test_the_smallest_trees_are_valid() -> None:
    """What the walk changes in them is what is refused."""
    for source in (SyntheticShop, Files):
        raw = smallest(RunConfig)
        raw["dataset"]["source"] = smallest(source)
        assert json.loads(json.dumps(raw)) == raw
        check_config(raw, where="")
    for place in PLACES:
        # Looks at gradients are refused of a method that makes none, which the smallest tree has.
        if "temperature" not in place.key and place.key not in ("balancing.every", "balancing.average"):
            check_config(tree(place, least(place.kind)), where=place.key)
