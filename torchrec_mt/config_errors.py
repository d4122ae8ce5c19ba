"""What pydantic says is wrong with a config, in the words of the person who wrote it: dotted keys, kinds, values, and
where a mistake was written."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError

_LONGEST = 80
"""Characters of a value that are shown."""

_NEAR = 0.7
"""How alike names must be, of 1, for one to be what was meant."""


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong.

    Args:
        key: dotted, as far as it is known. text: says what is wrong with it, in one line.
    """

    key: str
    text: str


def explain(error: ValidationError, raw: dict[str, Any], annotation: Any) -> list[Mistake]:
    """The mistakes with their dotted keys; of the members of a union, only those of the one that the data means.

    Args:
        raw: the data. annotation: the config class that it was checked against.
    """
    kinds = kinds_of(annotation)
    items = [(_Place.of(item["loc"], raw, kinds), item) for item in error.errors(include_url=False)]
    found: list[Mistake] = []
    hints: set[str] = set()
    for place, item in items:
        if place.union is not None and not place.meant:
            rivals = [other for other, _ in items if other.union == place.union]
            if any(other.meant for other in rivals):
                continue
            known = ", ".join(dict.fromkeys(repr(other.kind) for other in rivals if other.kind != _NAMES))
            nameless = place.given in (None, _NAMES)
            given = f" = {_short(place.value)} has no kind" if nameless else f" has kind = {place.given!r}"
            mistake = Mistake(place.union, f"'{place.union}'{given}: choose one of {known}")
        else:
            key = place.key
            match item["type"]:
                case "unexpected_keyword_argument":
                    hint = _hint(key, annotation, item["loc"])
                    text = f"unknown key '{key}'{'' if hint in hints else hint}"
                    hints.add(hint)
                case "value_error":
                    text = f"{key}.{item['ctx']['error']}".removeprefix(".")
                    named = re.match(r"[\w.]+", text)
                    key = named[0].rstrip(".") if named else key
                case "missing":
                    text = f"key '{key}' is missing"
                case _:
                    text = f"'{key}' = {_short(item['input'])}: {item['msg'].lower()}"
            mistake = Mistake(key, text)
        if mistake not in found:
            found.append(mistake)
    return found


def told(mistakes: Sequence[Mistake], *, where: str, overrides: Mapping[str, str]) -> str:
    """All mistakes in one line, each after the place where it was written.

    Args:
        where: the files. overrides: keys that were given beside the files, each with what it is told as.
    """
    by_place: dict[str, list[str]] = {}
    for mistake in mistakes:
        given = [text for key, text in overrides.items() if _related(key, mistake.key)]
        by_place.setdefault(given[-1] if given else where, []).append(mistake.text)
    return "; ".join(f"{place}: {'; '.join(texts)}" for place, texts in by_place.items())


def _related(key: str, other: str) -> bool:
    """Whether they are the same, or one is a section that the other is in."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _hint(key: str, annotation: Any, loc: Sequence[int | str]) -> str:
    """What may have been meant by an unknown key: one that looks like it there, one of its name elsewhere, or all."""
    section, _, name = key.rpartition(".")
    known = sorted({one.name for kind in _classes_at(annotation, loc[:-1]) for one in fields(kind)})
    near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
    elsewhere = [one for one in _keys(annotation) if one.rpartition(".")[2] == name]
    meant = [f"{section}.{near[0]}" if section else near[0]] if near else elsewhere
    if meant:
        return f": did you mean {' or '.join(map(repr, meant))}?"
    return f": known there are {', '.join(map(repr, known))}"


def _classes_at(annotation: Any, loc: Sequence[int | str]) -> list[type]:
    """Config classes that may stand at one of pydantic's locations."""
    here = _members(annotation)
    for part in map(str, loc):
        chosen = [one for one in here if getattr(one, "__name__", None) == part]
        here = chosen or [member for one in here for inner in _inside(one, part) for member in _members(inner)]
    return [one for one in here if isinstance(one, type) and is_dataclass(one)]


def _members(annotation: Any) -> list[Any]:
    """Of a union its members, of anything else itself."""
    return list(get_args(annotation)) if isinstance(annotation, UnionType) else [annotation]


def _inside(annotation: Any, part: str) -> list[Any]:
    """What stands at a key of a class or a dictionary, or in a list."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return [hint for name, hint in get_type_hints(annotation).items() if name == part]
    return [one for one in get_args(annotation) if one is not Ellipsis]


def _keys(annotation: Any, section: str = "") -> Iterator[str]:
    """Dotted keys of a config class and the classes in it that are no choice."""
    for name, hint in get_type_hints(annotation).items() if is_dataclass(annotation) else ():
        yield f"{section}{name}"
        yield from _keys(hint, f"{section}{name}.")


_NAMES = "(a name)"
"""Stands for a kind where a choice is written in short, as a string."""


@dataclass(frozen=True)
class _Place:
    """Where an error lies: its dotted key, and the innermost choice on the way there.

    Args:
        union: dotted key of the choice, None if there is none. kind: the member that pydantic tried there.
        given: the `kind` that the data names there. value: all that it has there.
    """

    key: str
    union: str | None = None
    kind: str | None = None
    given: Any = None
    value: Any = None

    @property
    def meant(self) -> bool:
        return self.kind == self.given

    @classmethod
    def of(cls, loc: tuple[int | str, ...], raw: dict[str, Any], kinds: Mapping[str, str]) -> "_Place":
        """Reads pydantic's location, whose parts are keys of the data and, in a union, names of classes or types."""
        path: list[str] = []
        value: Any = raw
        choice: tuple[str | None, str | None, Any, Any] = (None, None, None, None)
        for part in map(str, loc):
            tried = _NAMES if part.startswith("literal[") else kinds.get(part)
            if tried is not None and not (isinstance(value, dict) and part in value):
                if choice[0] is None or choice[1] == choice[2]:
                    choice = (".".join(path), tried, _given(value), value)
                continue
            if isinstance(value, str | int | float) or (isinstance(value, list) and not part.isdigit()):
                continue  # the name of a plain type: such a value has no keys
            path.append(part)
            value = (
                value.get(part) if isinstance(value, dict) else value[int(part)] if isinstance(value, list) else None
            )
        return cls(".".join(path), *choice)


def _given(value: Any) -> Any:
    """The `kind` that a value of a choice names; _NAMES where it is no table at all, None where it names none."""
    if isinstance(value, dict):
        return value.get("kind")
    return _NAMES if isinstance(value, str | int | float) else None


def kinds_of(annotation: Any) -> dict[str, str]:
    """Class name -> `kind` of every tagged class in a tree of config classes."""
    found: dict[str, str] = {}
    _collect(annotation, found)
    return found


def _collect(annotation: Any, found: dict[str, str]) -> None:
    for argument in get_args(annotation):
        _collect(argument, found)
    if isinstance(annotation, type) and is_dataclass(annotation) and annotation.__name__ not in found:
        hints = get_type_hints(annotation)
        if "kind" in hints:
            found[annotation.__name__] = get_args(hints["kind"])[0]
        for name, hint in hints.items():
            if not name.startswith("_"):
                _collect(hint, found)
