"""The documents keep up with the code: every key is told, every example loads, nothing outside the project is named."""

import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from torchrec_mt import schema
from torchrec_mt.config import load_config

DOCUMENTS = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
BLOCK = re.compile(r"```toml\n(.*?)```", re.DOTALL)
BLOCKS = [(file.name, block) for file in DOCUMENTS for block in BLOCK.findall(file.read_text())]


def field_names(annotation: Any, seen: set[type]) -> set[str]:
    found: set[str] = set()
    for argument in get_args(annotation):
        found |= field_names(argument, seen)
    if isinstance(annotation, type) and is_dataclass(annotation) and annotation not in seen:
        seen.add(annotation)
        found |= {field.name for field in fields(annotation)}
        for hint in get_type_hints(annotation).values():
            found |= field_names(hint, seen)
    return found


def test_every_key_of_the_declaration_is_told() -> None:
    text = Path("docs/data.md").read_text()
    told = set(re.findall(r"[A-Za-z_0-9]+", " ".join(re.findall(r"`[^`\n]+`", text) + BLOCK.findall(text))))
    missing = field_names(schema.Schema, set()) - told
    assert not missing, f"docs/data.md does not tell {sorted(missing)}"


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_examples_are_toml_and_whole_ones_load(name: str, block: str, tmp_path: Path) -> None:
    if block.startswith(("pairs =", "split =")):
        for line in block.strip().splitlines():
            tomllib.loads(line)
        return
    tomllib.loads(block)
    if "[dataset]" in block:
        (tmp_path / "example.toml").write_text(block)
        assert load_config([tmp_path / "example.toml"]).dataset.tasks


def test_links_lead_somewhere() -> None:
    for file in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), f"{file} links to {target}"
