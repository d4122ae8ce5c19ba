"""Experiments on the debug shop: grid files of trainings that take a second each."""

from collections.abc import Sequence
from pathlib import Path

from tests.shop import FILES, debug_overrides

UNIFIED_TWINS_BROKEN = """
[methods.unified]

[methods.twins]
twins_of = "unified"

[methods.broken]
settings = ["optim.table_rate=1e25", "optim.dense_rate=1e25"]
"""
"""A run, its twins, and a run that fails."""


def written_grid(
    root: Path,
    folder: Path,
    methods: str,
    *settings: str,
    name: str = "out",
    reference: str = "twins",
    files: Sequence[Path] = (),
) -> str:
    """A grid file of one seed in a folder, with its output beside it under `name`.

    Args:
        methods: as TOML. settings: beside those of the debug shop. files: config files after the shop's.
    """
    file = folder / f"{name}.toml"
    file.write_text(
        f"""
question = "Is one model as good as three?"
base = {[*FILES, *map(str, files)]}
output = "{folder}/{name}"
reference = "{reference}"
seeds = [0]
metrics = ["recall@100"]
settings = {[*debug_overrides(root), "trainer.validations=1", *settings]}
{methods}"""
    )
    return str(file)
