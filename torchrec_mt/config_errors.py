"""What pydantic says is wrong with a config, in the words of the person who wrote it: dotted keys, kinds, values."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError


def explain(error: ValidationError, raw: dict[str, Any], kinds: Mapping[str, str]) -> list[str]:
    """One line per mistake with its dotted key; of the members of a union, only the one that the data means.

    Args:
        raw: the data. kinds: of `kinds_of`.
    """
    items = [(_Place.of(item["loc"], raw, kinds), item) for item in error.errors(include_url=False)]
    lines: list[str] = []
    for place, item in items:
        if place.union is not None and not place.meant:
            rivals = [other for other, _ in items if other.union == place.union]
            if any(other.meant for other in rivals):
                continue
            known = ", ".join(dict.fromkeys(repr(other.kind) for other in rivals if other.kind != _NAMES))
            given = "no kind" if place.given in (None, _NAMES) else f"kind = {place.given!r}"
            line = f"'{place.union}' has {given}: choose one of {known}"
        else:
            match item["type"]:
                case "unexpected_keyword_argument":
                    line = f"unknown key '{place.key}'"
                case "value_error":
                    line = f"{place.key}.{item['ctx']['error']}".removeprefix(".")
                case "missing":
                    line = f"key '{place.key}' is missing"
                case _:
                    line = f"'{place.key}' = {item['input']!r}: {item['msg'].lower()}"
        if line not in lines:
            lines.append(line)
    return lines


_NAMES = "(a name)"
"""Stands for a kind where a choice is written in short, as a string."""


@dataclass(frozen=True)
class _Place:
    """Where an error lies: its dotted key, and the innermost choice on the way there.

    Args:
        union: dotted key of the choice, None if there is none. kind: the member that pydantic tried there.
        given: the `kind` that the data names there.
    """

    key: str
    union: str | None = None
    kind: str | None = None
    given: Any = None

    @property
    def meant(self) -> bool:
        return self.kind == self.given

    @classmethod
    def of(cls, loc: tuple[int | str, ...], raw: dict[str, Any], kinds: Mapping[str, str]) -> "_Place":
        """Reads pydantic's location, whose parts are keys of the data and, in a union, names of classes or types."""
        path: list[str] = []
        value: Any = raw
        choice: tuple[str | None, str | None, Any] = (None, None, None)
        for part in map(str, loc):
            tried = _NAMES if part.startswith("literal[") else kinds.get(part)
            if tried is not None and not (isinstance(value, dict) and part in value):
                if choice[0] is None or choice[1] == choice[2]:
                    choice = (".".join(path), tried, _given(value))
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
