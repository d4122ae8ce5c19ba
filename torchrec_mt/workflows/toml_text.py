"""Values and tables as TOML text, which the standard library only reads."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


def toml_value(value: Any) -> str:
    """A string, number, list or table on one line."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(toml_value, value))}]"
        case dict():
            return "{ " + ", ".join(f"{_key(name)} = {toml_value(inner)}" for name, inner in value.items()) + " }"
    raise TypeError(f"{value!r} is no value of TOML")


def toml_lines(table: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """A tree as a file of TOML: a table per section; tables with a `kind` on one line.

    Args:
        path: dotted key of the table.
    """
    sections = {name: inner for name, inner in table.items() if isinstance(inner, dict) and "kind" not in inner}
    plain = {name: value for name, value in table.items() if name not in sections}
    if plain and path:
        yield f"\n[{path}]"
    for name, value in plain.items():
        yield f"{_key(name)} = {toml_value(value)}"
    for name, inner in sections.items():
        yield from toml_lines(inner, f"{path}.{_key(name)}" if path else _key(name))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else toml_value(name)
